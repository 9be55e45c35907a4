// gemm.cpp: C = alpha * op(A) op(B) + beta * C, after the BLIS design (Van Zee & van de Geijn, 2015).
//
// K is cut into blocks that fit the caches; A and B are packed into panels once, by all threads; then the threads share
// out rectangles of C. The cuts of K depend on K alone, so every element of C is summed in the same order whatever the
// number of threads, the size of C or the element's place in it: one row gives the same bits alone or among others.
#include "gemm_kernel.h"
#include "gemm_pack.h"
#include "ops.h"

namespace metalora {
namespace ML_ISA {

namespace {

// Units of k in one block: a panel of B about fills the first-level cache.
// On AVX-512 320 gave 2416 GFLOP/s summed over nine products of tests/bench/gemm.cpp, 256 gave 2391 (Sapphire Rapids, 2 threads).
constexpr int64_t KC = VL == 16 ? 320 : 576;
constexpr int64_t BLOCKS = 4;                 // blocks of K packed at a time
constexpr int64_t MC = 96;                    // rows of C one thread works on: their block of A stays in the second level
constexpr int64_t PACKED = int64_t(1) << 21;  // units of A, and of B, packed at a time (8 MB each)

struct Tile {
  int mr, nr;
  TileKernel columns, rows, pairs;  // A packed or [K, M]; A read from [M, K]; both packed as bf16 pairs
  PackPanel pack_a, pack_b;
};

template <int MR, int NV>
ML_INLINE Tile make_tile() {
#if defined(__AVX512BF16__)
  const TileKernel pairs = tile_kernel<MR, NV, false, true>;
#else
  const TileKernel pairs = nullptr;
#endif
  return {MR,    NV * VL,        tile_kernel<MR, NV, false, false>, tile_kernel<MR, NV, true, false>,
          pairs, pack_panel<MR>, pack_panel<NV * VL>};
}

// The tile that pads C [M, N] least; WIDE when in doubt.
ML_INLINE Tile choose_tile(int64_t M, int64_t N) {
  const Tile tiles[] = {make_tile<WIDE_MR, WIDE_NV>(), make_tile<FLAT_MR, FLAT_NV>(), make_tile<TALL_MR, TALL_NV>()};
  int best = 0;
  int64_t least = 0;
  for (int i = 0; i < 3; i++) {
    const int64_t padded = round_up(M, tiles[i].mr) * round_up(N, tiles[i].nr);
    if (i == 0 || padded + padded / 32 < least) {
      best = i;
      least = padded;
    }
  }
  return tiles[best];
}

// K in blocks, evenly cut on both sides of a jump; a block is read from one place.
struct Blocks {
  int64_t K, jump, unit;   // unit: elements of k in 4 bytes
  int64_t before, after;   // blocks on either side of the jump
  int64_t size[2];

  Blocks(int64_t K, int64_t jump, bool pairs) : K(K), jump(min64(jump, K)), unit(pairs ? 2 : 1) {
    before = ceil_div(this->jump, KC * unit);
    after = ceil_div(K - this->jump, KC * unit);
    size[0] = before ? round_up(ceil_div(this->jump, before), 2 * VL) : 0;
    size[1] = after ? round_up(ceil_div(K - this->jump, after), 2 * VL) : 0;
    if (before + after == 0) before = 1;  // K = 0 still scales C by beta
  }
  int64_t count() const { return before + after; }
  int64_t begin(int64_t i) const { return i < before ? min64(i * size[0], jump) : min64(jump + (i - before) * size[1], K); }
  int64_t end(int64_t i) const { return i < before ? min64((i + 1) * size[0], jump) : begin(i + 1); }
  int64_t units(int64_t i) const { return ceil_div(end(i) - begin(i), unit); }
};

// One operand as the sweep over C sees it: panels either packed, or (direct) read where they are, the ragged last one
// packed all the same.
struct Side {
  Source src;
  int64_t jump_at, jump_by;  // in elements of K
  int64_t count;             // rows of A, columns of B
  int64_t width;             // of a panel
  PackPanel pack;
  bool direct;
  float* packed;

  Side(const Operand& o, bool k_first, int64_t count) : count(count) {
    src = {(const char*)o.data, k_first ? 1 : o.ld, k_first ? o.ld : 1, o.dtype};
    jump_at = o.jump_at;
    jump_by = o.jump_by;
  }
  int64_t panels() const { return ceil_div(count, width); }
  bool reads_direct(int64_t panel) const { return direct && (panel + 1) * width <= count; }
  // Address of position i, element k.
  const char* at(int64_t i, int64_t k) const { return src.at(i, k + (k >= jump_at ? jump_by : 0)); }
};

// Who does the work: all threads of the pool, or (thread >= 0) one of its threads alone, from inside parallel().
struct Crew {
  Pool& pool;
  int thread;

  int size() const { return thread >= 0 ? 1 : pool.threads(); }
  float* scratch(int slot, int64_t units) { return (float*)pool.scratch(thread >= 0 ? thread : 0, slot, (size_t)units * 4); }
  template <class Body>
  void each(int64_t n, const Body& body) {
    if (size() == 1 || n <= 1)
      for (int64_t i = 0; i < n; i++) body(i);
    else
      parallel(pool, n, [&](int64_t i, int) { body(i); });
  }
};

struct Product {
  Tile tile;
  TileKernel kernel;
  bool pairs;
  Blocks blocks;
  Side a, b;
  float alpha, beta;
  float* c;
  int64_t ldc;

  // One tile of C over one block of K; ragged edges go through a full tile beside C, so that they run the same code.
  void tile_at(int64_t K, const float* pa, int64_t a_step, const float* pb, int64_t b_step, float beta_now, int64_t i,
               int64_t j, TileKernel run) const {
    const int64_t rows = min64(tile.mr, a.count - i), columns = min64(tile.nr, b.count - j);
    float* cij = c + i * ldc + j;
    if (rows == tile.mr && columns == tile.nr) return run(K, pa, a_step, pb, b_step, alpha, beta_now, cij, ldc);
    float edge[MAX_TILE];
    if (beta_now != 0)
      for (int64_t r = 0; r < tile.mr; r++)
        for (int64_t s = 0; s < tile.nr; s++) edge[r * tile.nr + s] = r < rows && s < columns ? cij[r * ldc + s] : 0;
    run(K, pa, a_step, pb, b_step, alpha, beta_now, edge, tile.nr);
    for (int64_t r = 0; r < rows; r++) memcpy(cij + r * ldc, edge + r * tile.nr, (size_t)columns * 4);
  }

  // Panels [i0, i1) x [j0, j1) of C over blocks [k0, k1) of K; `units` is the depth of the packed panels.
  void rectangle(int64_t i0, int64_t i1, int64_t j0, int64_t j1, int64_t k0, int64_t k1, int64_t units, int64_t a_first,
                 int64_t b_first) const {
    int64_t depth = 0;  // units of K before this block
    for (int64_t block = k0; block < k1; block++) {
      const int64_t k = blocks.begin(block), n = blocks.units(block);
      const float beta_now = block == 0 ? beta : 1.0f;
      for (int64_t j = j0; j < j1; j++) {
        const bool b_direct = b.reads_direct(j);
        const float* pb = b_direct ? (const float*)b.at(j * tile.nr, k) : b.packed + ((j - b_first) * units + depth) * tile.nr;
        const int64_t b_step = b_direct ? b.src.deep : tile.nr;
        for (int64_t i = i0; i < i1; i++) {
          const bool a_direct = a.reads_direct(i);
          const float* pa = a_direct ? (const float*)a.at(i * tile.mr, k) : a.packed + ((i - a_first) * units + depth) * tile.mr;
          const bool rows = a_direct && a.src.deep == 1;
          const int64_t a_step = !a_direct ? tile.mr : rows ? a.src.wide : a.src.deep;
          tile_at(n, pa, a_step, pb, b_step, beta_now, i * tile.mr, j * tile.nr, rows ? tile.rows : kernel);
        }
      }
      depth += n;
    }
  }

  // Panels packed by one task: enough to be worth handing out.
  static int64_t piece(const Side& side, int64_t deep) { return max64(1, 16384 / (deep * side.width)); }

  // One panel of an operand over blocks [k0, k1) of K.
  void pack(const Side& side, int64_t panel, float* to, int64_t k0, int64_t k1) const {
    for (int64_t block = k0; block < k1; block++) {
      const int64_t begin = blocks.begin(block);
      Source src = side.src;
      src.base = side.at(0, begin) - begin * src.deep * src.size();  // as if there were no jump
      side.pack(to, src, pairs, panel * side.width, side.count, begin, blocks.end(block));
      to += blocks.units(block) * side.width;
    }
  }
};

// Panels of one operand still to be packed: all of [p0, p1), or the ragged last one where the others are read directly.
int64_t first_packed(const Side& side, int64_t p0, int64_t p1) {
  if (!side.direct) return p0;
  return p1 > p0 && !side.reads_direct(p1 - 1) ? p1 - 1 : p1;
}

void multiply(Crew crew, int64_t M, int64_t N, int64_t K, float alpha, Operand oa, Operand ob, float beta, float* c,
              int64_t ldc) {
#if defined(__AVX512BF16__)
  const bool pairs = oa.dtype == 1 || ob.dtype == 1;
#else
  const bool pairs = false;
#endif
  const int64_t jump = min64(oa.jump_at, ob.jump_at);
  Product p = {choose_tile(M, N), nullptr, pairs, Blocks(K, jump, pairs), Side(oa, oa.trans, M), Side(ob, !ob.trans, N),
               alpha, beta, c, ldc};
  p.kernel = pairs ? p.tile.pairs : p.tile.columns;
  p.a.width = p.tile.mr;
  p.b.width = p.tile.nr;
  p.a.pack = p.tile.pack_a;
  p.b.pack = p.tile.pack_b;
  // Packing pays when a panel is used often; f32 operands that are not, and lie favourably, are read where they are.
  p.a.direct = !pairs && oa.dtype == 0 && p.b.panels() <= 4;
  p.b.direct = !pairs && ob.dtype == 0 && !ob.trans && p.a.panels() <= 8;
  const int64_t all_a = p.a.panels(), all_b = p.b.panels();

  for (int64_t k0 = 0, rounds = ceil_div(p.blocks.count(), BLOCKS), round = 0; round < rounds; round++) {
    const int64_t k1 = p.blocks.count() * (round + 1) / rounds;
    int64_t units = 0;
    for (int64_t block = k0; block < k1; block++) units += p.blocks.units(block);
    const int64_t deep = max64(units, 1);
    const int64_t step_b = p.b.direct ? all_b : min64(all_b, max64(1, PACKED / (deep * p.tile.nr)));
    const int64_t step_a = p.a.direct ? all_a : min64(all_a, max64(1, PACKED / (deep * p.tile.mr)));
    for (int64_t j0 = 0; j0 < all_b; j0 += step_b) {
      for (int64_t i0 = 0; i0 < all_a; i0 += step_a) {
        const int64_t i1 = min64(all_a, i0 + step_a), j1 = min64(all_b, j0 + step_b);
        // Pack.
        const int64_t a_first = first_packed(p.a, i0, i1), b_first = first_packed(p.b, j0, j1);
        const int64_t a_todo = all_a > step_a || j0 == 0 ? i1 - a_first : 0;
        const int64_t b_todo = i0 == 0 ? j1 - b_first : 0;
        p.a.packed = crew.scratch(0, max64(1, i1 - a_first) * deep * p.tile.mr);
        p.b.packed = crew.scratch(1, max64(1, j1 - b_first) * deep * p.tile.nr);
        const int64_t a_piece = p.piece(p.a, deep), b_piece = p.piece(p.b, deep);
        const int64_t a_pieces = ceil_div(a_todo, a_piece), b_pieces = ceil_div(b_todo, b_piece);
        crew.each(a_pieces + b_pieces, [&](int64_t piece) {
          const bool is_a = piece < a_pieces;
          const Side& side = is_a ? p.a : p.b;
          const int64_t first = is_a ? a_first : b_first, todo = is_a ? a_todo : b_todo, step = is_a ? a_piece : b_piece;
          const int64_t from = (is_a ? piece : piece - a_pieces) * step;
          for (int64_t q = from; q < min64(todo, from + step); q++)
            p.pack(side, first + q, side.packed + q * units * side.width, k0, k1);
        });
        // Multiply. Rectangles are even, at most MC rows high, and several for each thread.
        const int64_t high = i1 - i0, across = j1 - j0;
        int64_t rows = ceil_div(high * p.tile.mr, MC);
        const int64_t wanted = crew.size() == 1 ? 1 : 8 * crew.size();
        const int64_t columns = max64(ceil_div(across, 64), min64(ceil_div(across, 2), ceil_div(wanted, rows)));
        rows = max64(rows, min64(ceil_div(high, 2), ceil_div(wanted, columns)));
        crew.each(rows * columns, [&](int64_t piece) {
          const int64_t r = piece % rows, s = piece / rows;
          p.rectangle(i0 + high * r / rows, i0 + high * (r + 1) / rows, j0 + across * s / columns,
                      j0 + across * (s + 1) / columns, k0, k1, units, a_first, b_first);
        });
      }
    }
    k0 = k1;
  }
}

}  // namespace

void gemm(Pool& pool, int64_t M, int64_t N, int64_t K, float alpha, Operand a, Operand b, float beta, float* c, int64_t ldc) {
  multiply({pool, -1}, M, N, K, alpha, a, b, beta, c, ldc);
}

void gemm_alone(Pool& pool, int thread, int64_t M, int64_t N, int64_t K, float alpha, Operand a, Operand b, float beta,
                float* c, int64_t ldc) {
  multiply({pool, thread}, M, N, K, alpha, a, b, beta, c, ldc);
}

}  // namespace ML_ISA
}  // namespace metalora
