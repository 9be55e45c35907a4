// segment.cpp: products and means over the rows of each segment (sample) of the packed stream.
#include "ops.h"
#include "vec.h"

namespace metalora {
namespace ML_ISA {

// Pieces of [p, q] worth one task each: multiples of every tile's height and width.
constexpr int64_t ROWS = 168, COLUMNS = 192;

// Rows first .. of a [.., lda], `count` columns of each, times their factors: dense in `to`.
static void scale_rows(int64_t rows, int64_t count, const float* a, int64_t lda, const float* factors, float* to) {
  for (int64_t t = 0; t < rows; t++)
    for (int64_t i = 0; i < count; i++) to[t * count + i] = factors[t] * a[t * lda + i];
}

void segment_outer(Pool& pool, int64_t S, const int32_t* cu, int64_t p, int64_t q, const float* a, int64_t lda, const float* b,
                   int64_t ldb, const float* row_scale, const float* column_scale, float alpha, float beta, float* out,
                   int64_t out_stride) {
  const int64_t down = ceil_div(p, ROWS), across = ceil_div(q, COLUMNS);
  parallel(pool, S * down * across, [&](int64_t task, int thread) {
    const int64_t s = task / (down * across), i = task / across % down * ROWS, j = task % across * COLUMNS;
    const int64_t first = cu[s], rows = cu[s + 1] - first;  // K of this product, may be 0
    const int64_t height = min64(ROWS, p - i), width = min64(COLUMNS, q - j);
    float* to = out + s * out_stride + i * q + j;
    Operand left = {a + first * lda + i, lda, 0, true, rows, 0};
    if (row_scale) {
      float* scaled = (float*)pool.scratch(thread, 2, (size_t)(rows * height + 1) * 4);
      scale_rows(rows, height, a + first * lda + i, lda, row_scale + first, scaled);
      left = {scaled, height, 0, true, rows, 0};
    }
    const Operand right = {b + first * ldb + j, ldb, 0, false, rows, 0};
    if (!column_scale) return gemm_alone(pool, thread, height, width, rows, alpha, left, right, beta, to, q);
    float tile[ROWS * COLUMNS];
    gemm_alone(pool, thread, height, width, rows, alpha, left, right, 0, tile, COLUMNS);
    for (int64_t y = 0; y < height; y++)
      for (int64_t x = 0; x < width; x++) {
        const float product = column_scale[j + x] * tile[y * COLUMNS + x];
        to[y * q + x] = beta == 0 ? product : beta * to[y * q + x] + product;
      }
  });
}

void segment_mean(Pool& pool, int64_t S, const int32_t* cu, int64_t q, const float* a, int64_t lda, float* out, int64_t ld_out) {
  constexpr int64_t WIDTH = 4 * VL;
  const int64_t across = ceil_div(q, WIDTH);
  parallel(pool, S * across, [&](int64_t task, int) {
    const int64_t s = task / across;
    const int64_t rows = cu[s + 1] - cu[s];
    for (int64_t j = task % across * WIDTH, end = min64(q, j + WIDTH); j < end; j += VL) {
      const int64_t lanes = min64(VL, end - j);
      const float* row = a + cu[s] * lda + j;
      vd low = {}, high = {};
      for (int64_t t = 0; t < rows; t++) {
        const vf x = lanes == VL ? load(row + t * lda) : load_part(row + t * lda, lanes);
        low += widen_low(x);
        high += widen_high(x);
      }
      const double scale = rows > 0 ? 1.0 / (double)rows : 0;  // an empty segment has mean 0
      float mean[VL];
      for (int i = 0; i < VL; i++) mean[i] = (float)(scale * (i < VL / 2 ? low[i] : high[i - VL / 2]));
      memcpy(out + s * ld_out + j, mean, (size_t)lanes * 4);
    }
  });
}

}  // namespace ML_ISA
}  // namespace metalora
