// gemm_kernel.h: the innermost loop of every matrix product: one tile of C, held in registers over a block of K.
//
//   C [MR, NR] = beta * C + alpha * sum_k a_k b_k^T      a_k: MR numbers, b_k: NR = NV vectors
//
// Every element of C is one chain of fused multiply-adds in the order of k, whatever the tile's shape and wherever the
// element lies in it. That is what makes results independent of threads, of neighbouring rows and of the tile chosen.
//
// A step of k is one `unit` of 4 bytes a row: an f32, or (PAIRS) two bf16 that vdpbf16ps multiplies and adds in one go.
#pragma once
#include "vec.h"

namespace metalora {
namespace ML_ISA {

// The tiles: WIDE for most products, TALL when few columns are left, FLAT when few rows are. Register budget of AVX2:
// 12 accumulators + NV vectors of b + 1 broadcast of a = at most 16; of AVX-512: 28 + 2, broadcasts come from memory.
#if defined(__AVX512F__)
constexpr int WIDE_MR = 14, WIDE_NV = 2, FLAT_MR = 8, FLAT_NV = 3, TALL_MR = 24, TALL_NV = 1;
#else
constexpr int WIDE_MR = 6, WIDE_NV = 2, FLAT_MR = 4, FLAT_NV = 3, TALL_MR = 12, TALL_NV = 1;
#endif
constexpr int MAX_TILE = 28 * 16;  // elements of the largest tile

// acc += a * b for one unit of k.
template <bool PAIRS>
ML_INLINE vf multiply_add(const float* a, vf b, vf acc) {
#if defined(__AVX512BF16__)
  if (PAIRS) {
    int32_t pair;
    memcpy(&pair, a, 4);
    return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)b);
  }
#endif
  return fma(set1(*a), b, acc);
}

// a: unit k of row i lies at a[i + k * a_step], or (ROWS) at a[i * a_step + k], so A can also be read where it is.
// b: unit k of the columns lies at b[k * b_step ..].
template <int MR, int NV, bool ROWS, bool PAIRS>
static void tile_kernel(int64_t K, const float* a, int64_t a_step, const float* b, int64_t b_step, float alpha, float beta,
                        float* c, int64_t ldc) {
  vf acc[MR][NV] = {};
  const float* row[(MR + 2) / 3];  // every third row; the two between are reached by a_step
#pragma GCC unroll 32
  for (int i = 0; i < MR; i += 3) row[i / 3] = a + i * a_step;

  for (int64_t k = 0; k < K; k++) {
    vf bk[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) bk[j] = load(b + j * VL);
    __builtin_prefetch(b + 8 * b_step);  // a panel of B is a little larger than what the first-level cache keeps
    b += b_step;
#pragma GCC unroll 32
    for (int i = 0; i < MR; i++) {
      const float* ai = ROWS ? row[i / 3] + (i % 3) * a_step : a + i;
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) acc[i][j] = multiply_add<PAIRS>(ai, bk[j], acc[i][j]);
    }
    if (ROWS) {
#pragma GCC unroll 32
      for (int i = 0; i < MR; i += 3) row[i / 3]++;
    } else {
      a += a_step;
    }
  }

  const vf va = set1(alpha), vb = set1(beta);
#pragma GCC unroll 32
  for (int i = 0; i < MR; i++) {
    float* ci = c + i * ldc;
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) {
      vf sum = va * acc[i][j];
      if (beta != 0) sum = fma(vb, load(ci + j * VL), sum);  // beta = 0 never reads C: it may hold NaN
      store(ci + j * VL, sum);
    }
  }
}

typedef void (*TileKernel)(int64_t K, const float* a, int64_t a_step, const float* b, int64_t b_step, float alpha, float beta,
                           float* c, int64_t ldc);

}  // namespace ML_ISA
}  // namespace metalora
