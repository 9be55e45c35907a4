// attention_tile.h: what attention's forward and backward are made of: products on one tile, in registers; copies of a
// strip of rows, transposed and plain; and the cut of all segments into strips and tiles.
#pragma once
#include "kernels.h"
#include "vec.h"

namespace metalora {
namespace ML_ISA {

// Register tile MR x 2 vectors: 12 accumulators of 16 registers, 24 of AVX-512's 32.
constexpr int MR = VL == 16 ? 12 : 6;
constexpr int PANEL = 2 * VL;     // rows whose scores are computed together
constexpr int ROWS = 3 * PANEL;   // rows of a strip: a multiple of MR, so that products over rows have no remainder
constexpr int KEYS = 96;          // keys of a tile: scores [96][48] are 18 KiB with AVX2
constexpr int TILES = 2;          // tiles a task of the dk, dv pass: each strip is transposed once for both

// ---- products ------------------------------------------------------------------------------------------------------

// c [M, NV vectors, the last with `last` lanes] = (add ? c : 0) + sum_k a(i, k) b[k, :];  a(i, k) = a[i * ra + k * ca], K > 0.
template <int M, int NV, bool WHOLE>
static void micro(int64_t K, const float* a, int64_t ra, int64_t ca, const float* b, int64_t ldb, float* c, int64_t ldc,
                  int64_t last, bool add) {
  vf acc[M][NV] = {};
  do {
    vf bk[NV];
#pragma GCC unroll 2
    for (int j = 0; j < NV; j++) bk[j] = WHOLE || j < NV - 1 ? load(b + j * VL) : load_part(b + j * VL, last);
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
      const vf ai = set1(a[i * ra]);
#pragma GCC unroll 2
      for (int j = 0; j < NV; j++) acc[i][j] = fma(ai, bk[j], acc[i][j]);
    }
    a += ca;
    b += ldb;
  } while (--K > 0);
#pragma GCC unroll 16
  for (int i = 0; i < M; i++)
#pragma GCC unroll 2
    for (int j = 0; j < NV; j++) {
      float* at = c + i * ldc + j * VL;
      if (WHOLE || j < NV - 1) store(at, add ? load(at) + acc[i][j] : acc[i][j]);
      else store_part(at, add ? load_part(at, last) + acc[i][j] : acc[i][j], last);
    }
}

// M rows of C, all N columns.
template <int M>
static void micro_row(int64_t N, int64_t K, const float* a, int64_t ra, int64_t ca, const float* b, int64_t ldb, float* c,
                      int64_t ldc, bool add) {
  int64_t j = 0;
  for (; j + 2 * VL <= N; j += 2 * VL) micro<M, 2, true>(K, a, ra, ca, b + j, ldb, c + j, ldc, VL, add);
  if (N - j > VL) micro<M, 2, false>(K, a, ra, ca, b + j, ldb, c + j, ldc, N - j - VL, add);
  else if (N - j == VL) micro<M, 1, true>(K, a, ra, ca, b + j, ldb, c + j, ldc, VL, add);
  else if (N > j) micro<M, 1, false>(K, a, ra, ca, b + j, ldb, c + j, ldc, N - j, add);
}

// C [M, N] = (add ? C : 0) + A B, where rows i .. i+m-1 only need k in begin(i) .. end(i + m)-1: the causal triangle.
template <class Begin, class End>
ML_INLINE void product(int64_t M, int64_t N, const float* a, int64_t ra, int64_t ca, const float* b, int64_t ldb, float* c,
                       int64_t ldc, bool add, const Begin& begin, const End& end) {
  for (int64_t i = 0; i < M;) {
    const int64_t left = M - i, m = left >= MR ? MR : left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    const int64_t k = begin(i), K = end(i + m) - k;
    const float* ai = a + i * ra + k * ca;
    const float* bi = b + k * ldb;
    float* ci = c + i * ldc;
    switch (K > 0 ? m : 0) {
      case 0: break;  // nothing to add
      case MR: micro_row<MR>(N, K, ai, ra, ca, bi, ldb, ci, ldc, add); break;
      case 8: micro_row<8>(N, K, ai, ra, ca, bi, ldb, ci, ldc, add); break;
      case 4: micro_row<4>(N, K, ai, ra, ca, bi, ldb, ci, ldc, add); break;
      case 2: micro_row<2>(N, K, ai, ra, ca, bi, ldb, ci, ldc, add); break;
      default: micro_row<1>(N, K, ai, ra, ca, bi, ldb, ci, ldc, add);
    }
    i += m;
  }
}

// ---- transposition ---------------------------------------------------------------------------------------------------

ML_INLINE vi lanes() {
  vi v = {};
  for (int i = 0; i < VL; i++) v[i] = i;
  return v;
}

// a[i][j] <-> a[j][i]: swaps blocks of 1, 2, 4 .. VL/2 off the diagonal (Eklundh 1972).
ML_INLINE void transpose(vf a[VL]) {
#pragma GCC unroll 4
  for (int step = 1; step < VL; step *= 2) {
    const vi upper = (lanes() & step) != 0;
    const vi low = upper ? lanes() - step + VL : lanes(), high = upper ? lanes() + VL : lanes() + step;
#pragma GCC unroll 16
    for (int i = 0; i < VL; i++) {
      if (i & step) continue;
      const vf x = a[i], y = a[i + step];
      a[i] = __builtin_shuffle(x, y, low);
      a[i + step] = __builtin_shuffle(x, y, high);
    }
  }
}

// out [D][ROWS] = scale * x^T, x [rows, D]; columns behind `rows` are 0.
static void transpose_strip(int64_t rows, int64_t D, const float* x, int64_t ldx, float scale, float* out) {
  for (int64_t i = 0; i < ROWS; i += VL)
    for (int64_t j = 0; j < D; j += VL) {
      const int64_t n = min64(VL, D - j), m = min64(VL, rows - i);
      const float* from = x + i * ldx + j;
      float* to = out + j * ROWS + i;
      vf block[VL];
      if (n == VL && m == VL) {
#pragma GCC unroll 16
        for (int r = 0; r < VL; r++) block[r] = load(from + r * ldx) * scale;
        transpose(block);
#pragma GCC unroll 16
        for (int d = 0; d < VL; d++) store(to + d * ROWS, block[d]);
      } else {
        for (int64_t r = 0; r < VL; r++) block[r] = r < m ? load_part(from + r * ldx, n) * scale : vf{};
        transpose(block);
        for (int64_t d = 0; d < n; d++) store(to + d * ROWS, block[d]);
      }
    }
}

// out [rows, pitch(D)] = x [rows, D]. Rows of k and v are often a multiple of 4096 bytes apart and then compete for a few
// lines of the first-level cache (measured: 30 % slower than with copies); a pitch of an odd number of lines never does.
ML_INLINE int64_t pitch(int64_t D) { return round_up(D, 32) + 16; }
static void copy_rows(int64_t rows, int64_t D, const float* x, int64_t ldx, float* out) {
  for (int64_t i = 0; i < rows; i++) {
    const float* from = x + i * ldx;
    float* to = out + i * pitch(D);
    int64_t d = 0;
    for (; d + VL <= D; d += VL) store(to + d, load(from + d));
    for (; d < D; d++) to[d] = from[d];
  }
}

// ---- what a task works on ------------------------------------------------------------------------------------------

// One strip of rows of a segment, or one tile of keys: `first` counts from the start of the segment.
struct Part {
  int64_t start, length, keys;  // the segment: its first row in the stream, its rows, how many of them serve as keys
  int64_t first, count;
};

struct Segments {
  int64_t S;
  const int32_t* cu;
  const int32_t* kv_lens;
  int64_t size = 0;                 // rows of a part
  const int64_t* before = nullptr;  // [S+1] parts of the segments before each: a scan per part would be quadratic in S

  int64_t length(int64_t i) const { return cu[i + 1] - cu[i]; }
  int64_t parts() const { return before[S]; }
  // The same, cut into parts of `rows` rows. The table lies in slot 1 of the calling thread, until the next call.
  Segments divide(Pool& pool, int64_t rows) const {
    int64_t* table = (int64_t*)pool.scratch(0, 1, (size_t)(S + 1) * sizeof(int64_t));
    table[0] = 0;
    for (int64_t i = 0; i < S; i++) table[i + 1] = table[i] + ceil_div(length(i), rows);
    return {S, cu, kv_lens, rows, table};
  }
  // Part `index` of them; within a segment the last comes first, since its rows see the most keys.
  Part part(int64_t index) const {
    int64_t i = 0;  // the last segment with before[i] <= index: those without rows have no part
    for (int64_t end = S; end - i > 1;) {
      const int64_t middle = i + (end - i) / 2;
      if (before[middle] <= index) i = middle;
      else end = middle;
    }
    const int64_t first = (before[i + 1] - 1 - index) * size, keys = kv_lens ? min64(kv_lens[i], length(i)) : length(i);
    return {cu[i], length(i), keys, first, min64(size, length(i) - first)};
  }
};

// The keys of a tile that some row of the panel behind `row` may see: the tile starts at key k0 and has `keys`.
ML_INLINE int64_t visible_keys(const Part& strip, int64_t row, int64_t k0, int64_t keys) {
  const int64_t last = strip.first + min64(strip.count, row + PANEL) - 1;
  return max64(0, min64(keys, last + 1 - k0));
}

// Lanes of rows first .. first+VL-1 that may see key j.
ML_INLINE vi visible(int64_t first, int64_t j) { return lanes() >= (int32_t)(j - first); }

static void zero_scores(float* s, int64_t from, int64_t to) {
  for (int64_t j = from; j < to; j++)
    for (int i = 0; i < PANEL; i += VL) store(s + j * ROWS + i, vf{});
}

}  // namespace ML_ISA
}  // namespace metalora
