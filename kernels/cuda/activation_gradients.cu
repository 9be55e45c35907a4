// activation_gradients.cu: the backward pass of y = silu(gate) * up together with the adapter gradients that are made of what it reads and
// makes: dL/dA of the layer behind it, gh^T y, and dL/dB of the one before it, dgate^T h_gate and dup^T h_up. And the same of ReLU.
//
// One after the other, these move 11 f numbers a row: y is formed once more (3 f), then dgate and dup (5 f), then three products read
// them again (3 f). Here a block has WT columns of gate, up and dy on the chip, writes dgate and dup, and multiplies what it has: 5 f.
// Of ReLU it has y and dy and writes dx, 3 f instead of 5 f.
// As in outer_hopper.cu the rows of a segment are shared out over the blocks of a cluster, whose sums meet in a fixed order.
#include "outer.cuh"
#include "swiglu.cuh"

namespace metalora {
namespace cuda {

static const int WT = 128, ROWS = 32;
static const int WIDE_PITCH = WT * 2 + 16, WIDE_TILE = ROWS * WIDE_PITCH, COLUMNS_A_WARP = WT / OUTER_WARPS;

// The activations: how many products there are, the first that of y, and the step back, which makes the wide sides of these products
// out of what lies in memory (x[p] W elements of each).
struct Swiglu {
  static const int PRODUCTS = 3;
  static const bool FORMS_Y = true;
  // (dy, gate, up) become (y, dgate, dup).
  static __device__ __forceinline__ void back(float (&x)[3][8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) swiglu_backward(x[1][i], x[2][i], x[0][i]);
  }
};
struct Relu {
  static const int PRODUCTS = 2;
  static const bool FORMS_Y = false;
  // (y, dy) become (y, dx).
  static __device__ __forceinline__ void back(float (&x)[2][8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) x[1][i] = x[0][i] <= 0 ? 0 : x[1][i];
  }
};

// NR: columns of the narrow sides.
template <int PRODUCTS, int NR>
struct Sizes {
  static const int NARROW_PITCH = NR * 2 + 16, NARROW_TILE = ROWS * NARROW_PITCH;
  static const int STAGE = PRODUCTS * (WIDE_TILE + NARROW_TILE);
  static const int FIT = 99 * 1024 / STAGE;  // the shared memory of devices 8.6 and 8.9
  static const int STAGES = FIT < 3 ? FIT : 3;
  static const int STRAIGHT_PITCH = WT + 8, TURNED_PITCH = NR <= 32 ? NR + 4 : NR;  // lines of the sums, as in segment.cu, if there is room
  static const int STRAIGHT = NR * STRAIGHT_PITCH, TURNED = WT * TURNED_PITCH;  // floats
  static const int SUMS = 4 * (STRAIGHT + (PRODUCTS - 1) * TURNED);
  static const int SHARED = STAGES * STAGE > SUMS ? STAGES * STAGE : SUMS;
  static_assert(STAGES >= 2 && SHARED <= 99 * 1024, "");
};

template <int PRODUCTS>
struct Gradients {
  const int32_t* cu;
  const bf16* wide[PRODUCTS];  // what the step back reads
  bf16* made[PRODUCTS];        // where it writes; nowhere, of the first
  int64_t f, ld_wide[PRODUCTS], ld_made;
  const bf16* narrow[PRODUCTS];
  int64_t ld_narrow[PRODUCTS], out_stride;
  int r[PRODUCTS];
  float scale[PRODUCTS], beta;
  float* out[PRODUCTS];
  bool vectors[PRODUCTS];
  int64_t T, S;
  int wide_tiles, split;
};

template <class Activation, int NR>
static __global__ void __launch_bounds__(OUTER_THREADS, NR <= 32 ? 2 : 1) gradients_kernel(const Gradients<Activation::PRODUCTS> o) {
  const int PRODUCTS = Activation::PRODUCTS;
  using S = Sizes<PRODUCTS, NR>;
  extern __shared__ __align__(16) char memory[];
  unsigned block = blockIdx.x;
  const int rank = (int)(block % o.split);
  block /= o.split;
  const int64_t at = (int64_t)(block % o.wide_tiles) * WT, segment = block / o.wide_tiles;
  const int begin = o.cu[segment], rows = o.cu[segment + 1] - begin, stages = (rows + ROWS - 1) / ROWS;
  const int first = (int)((unsigned)stages * rank / o.split), last = (int)((unsigned)stages * (rank + 1) / o.split);
  const int width = (int)min(o.f - at, (int64_t)WT);
  const auto made = [&](int p, int64_t t) { return o.made[p] + (begin + t) * o.ld_made + at; };

  // A stage: the wide sides (what they are made of, first), then their narrow sides.
  const auto load_stage = [&](int stage) {
    char* to = memory + (stage - first) % S::STAGES * S::STAGE;
    const int row = stage * ROWS, left = rows - row;
#pragma unroll
    for (int p = 0; p < PRODUCTS; p++)
      load_tile<WT, ROWS, WIDE_PITCH, true>(to + p * WIDE_TILE, o.wide[p] + (begin + row) * o.ld_wide[p] + at, o.ld_wide[p], left, width);
#pragma unroll
    for (int p = 0; p < PRODUCTS; p++)
      load_tile<NR, ROWS, S::NARROW_PITCH, true>(to + PRODUCTS * WIDE_TILE + p * S::NARROW_TILE,
                                                 o.narrow[p] + (begin + row) * o.ld_narrow[p], o.ld_narrow[p], left, o.r[p]);
  };

  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const int narrow_lane = (lane / 16 * 8 + lane % 8) * S::NARROW_PITCH + lane / 8 % 2 * 16;
  const int wide_lane = (lane / 8 % 2 * 8 + lane % 8) * WIDE_PITCH + lane / 16 * 16 + warp * COLUMNS_A_WARP * 2;
  float c[PRODUCTS][NR / 16][2][4] = {};

  for (int i = 0; i < S::STAGES - 1; i++) {
    if (first + i < last) load_stage(first + i);
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  for (int stage = first; stage < last; stage++) {
    asm volatile("cp.async.wait_group %0;" ::"n"(S::STAGES - 2) : "memory");
    char* here = memory + (stage - first) % S::STAGES * S::STAGE;
    // A thread works on the pieces that it copied itself, so nobody has to wait yet. All are read before the first is written.
    const int CHUNKS = WT / 8, PIECES = ROWS * CHUNKS / OUTER_THREADS;
    static_assert(PIECES * OUTER_THREADS == ROWS * CHUNKS, "");
    Bits<8> pieces[PIECES][PRODUCTS];
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
      const int chunk = i * OUTER_THREADS + threadIdx.x;
      const char* place = here + chunk / CHUNKS * WIDE_PITCH + chunk % CHUNKS * 16;
#pragma unroll
      for (int p = 0; p < PRODUCTS; p++) pieces[i][p] = load_bits<8>(reinterpret_cast<const bf16*>(place + p * WIDE_TILE));
    }
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
      const int chunk = i * OUTER_THREADS + threadIdx.x, row = chunk / CHUNKS, column = chunk % CHUNKS * 8;
      char* place = here + row * WIDE_PITCH + column * 2;
      float x[PRODUCTS][8];
#pragma unroll
      for (int p = 0; p < PRODUCTS; p++) unpack(pieces[i][p], x[p]);
      Activation::back(x);
      const int64_t t = stage * ROWS + row;
#pragma unroll
      for (int p = Activation::FORMS_Y ? 0 : 1; p < PRODUCTS; p++) {
        const Bits<8> bits = pack(x[p]);
        store_bits<8>(reinterpret_cast<bf16*>(place + p * WIDE_TILE), bits);
        // Most of it leaves the cache before it is read: marked as such it takes 370 us instead of 375 (f = 11008, 8,192 rows).
        if (p > 0 && t < rows && column < width) __stcs(reinterpret_cast<uint4*>(made(p, t) + column), bits.raw);
      }
    }
    __syncthreads();  // this stage is whole, and everybody has left the one that is loaded next
    if (stage + S::STAGES - 1 < last) load_stage(stage + S::STAGES - 1);
    asm volatile("cp.async.commit_group;" ::: "memory");
    const uint32_t base = (uint32_t)__cvta_generic_to_shared(here);
#pragma unroll
    for (int step = 0; step < ROWS / 16; step++) {
#pragma unroll
      for (int p = 0; p < PRODUCTS; p++) {
        uint32_t b[4];
        load_matrices(b, base + p * WIDE_TILE + step * 16 * WIDE_PITCH + wide_lane);
        const uint32_t narrow = base + PRODUCTS * WIDE_TILE + p * S::NARROW_TILE + step * 16 * S::NARROW_PITCH + narrow_lane;
#pragma unroll
        for (int i = 0; i < NR / 16; i++) {
          uint32_t a[4];
          load_matrices(a, narrow + i * 32);
          multiply(c[p][i][0], a, b[0], b[1]);
          multiply(c[p][i][1], a, b[2], b[3]);
        }
      }
    }
  }
  // Rows of no segment, behind the last: zeros, so that nothing adds up in dL/dx there.
  if (segment == o.S - 1 && rank == o.split - 1) {
    const int CHUNKS = WT / 8, column = threadIdx.x % CHUNKS * 8;
    if (column < width)
      for (int64_t t = rows + threadIdx.x / CHUNKS; begin + t < o.T; t += OUTER_THREADS / CHUNKS)
#pragma unroll
        for (int p = 1; p < PRODUCTS; p++) store_bits<8>(made(p, t) + column, Bits<8>{make_uint4(0, 0, 0, 0)});
  }
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  __syncthreads();

  // Sums: of y in lines of the wide side, of the others in lines of the narrow one, as they lie in memory.
  float* sums = reinterpret_cast<float*>(memory);
#pragma unroll
  for (int p = 0; p < PRODUCTS; p++)
#pragma unroll
    for (int i = 0; i < NR / 16; i++)
#pragma unroll
      for (int j = 0; j < 2; j++)
#pragma unroll
        for (int k = 0; k < 4; k += 2) {
          const int row = i * 16 + lane / 4 + k / 2 * 8, column = warp * COLUMNS_A_WARP + j * 8 + lane % 4 * 2;
          if (p == 0) {
            *reinterpret_cast<float2*>(sums + row * S::STRAIGHT_PITCH + column) = make_float2(c[p][i][j][k], c[p][i][j][k + 1]);
          } else {
            float* to = sums + S::STRAIGHT + (p - 1) * S::TURNED + column * S::TURNED_PITCH + row;
            to[0] = c[p][i][j][k], to[S::TURNED_PITCH] = c[p][i][j][k + 1];
          }
        }
  __syncthreads();
  sums_are_there(o.split);
  const auto end = [&](int p) { return TileEnd{o.scale[p], o.beta, nullptr, o.vectors[p], o.split}; };
  const int64_t skip = segment * o.out_stride;
  if (o.r[0] > 0) write_tile<NR, WT, S::STRAIGHT_PITCH>(end(0), sums, rank, o.r[0], width, o.out[0] + skip + at, o.f);
#pragma unroll
  for (int p = 1; p < PRODUCTS; p++)
    if (o.r[p] > 0)
      write_tile<WT, NR, S::TURNED_PITCH>(end(p), sums + S::STRAIGHT + (p - 1) * S::TURNED, rank, width, o.r[p],
                                          o.out[p] + skip + at * o.r[p], o.r[p]);
  sums_were_read(o.split);
}

template <class Activation, int NR>
static cudaError_t launch_with(const Launch& on, int64_t S, Gradients<Activation::PRODUCTS> o) {
  o.wide_tiles = (int)ceil_div(o.f, WT);
  // Until enough places for a block are taken. 8,192 rows of one segment: a gate of f = 11008 takes 456 us in 2 x 86 blocks, 370 in 4 x 86,
  // 384 in 8 x 86; ReLU of f = 8192, of which one block a multiprocessor has enough on its way, 157 us in 2 x 64 blocks, 182 in 4 x 64,
  // 179 in 8 x 64 (H100, `gpu-kernels time` of builds with a fixed split).
  const int64_t tiles = S * o.wide_tiles, places = Activation::PRODUCTS == 3 && NR <= 32 ? 2 * on.units : on.units * 15 / 16;
  o.split = 1;
  if (has_clusters(on))
    while (o.split < MOST_SPLIT && tiles * o.split < places) o.split *= 2;
  const int shared = Sizes<Activation::PRODUCTS, NR>::SHARED;
  return launch_clusters(on, gradients_kernel<Activation, NR>, tiles * o.split, OUTER_THREADS, shared, o.split, false, o);
}

// o has everything but what `sides` tell: the narrow side of every product.
template <class Activation>
static cudaError_t launch(const Launch& on, int64_t S, Gradients<Activation::PRODUCTS> o, const NarrowSide* const (&sides)[Activation::PRODUCTS]) {
  int64_t most = 0;
  for (int p = 0; p < Activation::PRODUCTS; p++) {
    const NarrowSide& side = *sides[p];
    // Nothing is read of a side without columns; its address must be one all the same.
    o.narrow[p] = side.r > 0 ? (const bf16*)side.rows : o.wide[0];
    o.ld_narrow[p] = side.r > 0 ? side.ld : o.ld_wide[0];
    o.r[p] = (int)side.r, o.scale[p] = side.scale, o.out[p] = (float*)side.out;
    o.vectors[p] = aligned16(side.out, o.out_stride, 4) && (p == 0 ? o.f : side.r) % 4 == 0;
    if (side.r > most) most = side.r;
  }
  return most <= 32 ? launch_with<Activation, 32>(on, S, o) : launch_with<Activation, 64>(on, S, o);
}

static const int64_t MOST_RANK = 64;

static bool fits(const NarrowSide& side) { return side.r == 0 || (side.r <= MOST_RANK && aligned16((const bf16*)side.rows, side.ld)); }

bool swiglu_gradients_fits(int64_t f, const bf16* gate_up, int64_t ldg, const bf16* dy, int64_t lddy, const NarrowSide& y,
                           const NarrowSide& gate, const NarrowSide& up) {
  return f % 8 == 0 && aligned16(gate_up, ldg) && aligned16(dy, lddy) && y.r + gate.r + up.r > 0 && fits(y) && fits(gate) && fits(up);
}

cudaError_t swiglu_gradients(const Launch& on, int64_t T, int64_t f, bf16* gate_up, int64_t ldg, const bf16* dy, int64_t lddy, int64_t S,
                             const int32_t* cu, const NarrowSide& y, const NarrowSide& gate, const NarrowSide& up, float beta,
                             int64_t out_stride) {
  if (T == 0 || S == 0 || f == 0) return cudaSuccess;
  Gradients<3> o = {};
  o.cu = cu;
  o.wide[0] = dy, o.wide[1] = gate_up, o.wide[2] = gate_up + f;
  o.ld_wide[0] = lddy, o.ld_wide[1] = o.ld_wide[2] = ldg;
  o.made[1] = gate_up, o.made[2] = gate_up + f, o.ld_made = ldg;
  o.T = T, o.S = S;
  o.f = f, o.out_stride = out_stride, o.beta = beta;
  return launch<Swiglu>(on, S, o, {&y, &gate, &up});
}

bool relu_gradients_fits(int64_t f, const bf16* y, int64_t ldy, const bf16* dy, int64_t lddy, const NarrowSide& behind,
                         const NarrowSide& before) {
  return f % 8 == 0 && aligned16(y, ldy) && aligned16(dy, lddy) && behind.r + before.r > 0 && fits(behind) && fits(before);
}

cudaError_t relu_gradients(const Launch& on, int64_t T, int64_t f, bf16* y, int64_t ldy, const bf16* dy, int64_t lddy, int64_t S,
                           const int32_t* cu, const NarrowSide& behind, const NarrowSide& before, float beta, int64_t out_stride) {
  if (T == 0 || S == 0 || f == 0) return cudaSuccess;
  Gradients<2> o = {};
  o.cu = cu;
  o.wide[0] = y, o.wide[1] = dy;
  o.ld_wide[0] = ldy, o.ld_wide[1] = lddy;
  o.made[1] = y, o.ld_made = ldy;
  o.T = T, o.S = S;
  o.f = f, o.out_stride = out_stride, o.beta = beta;
  return launch<Relu>(on, S, o, {&behind, &before});
}

}  // namespace cuda
}  // namespace metalora
