// vector.cpp: inner products and weighted sums of flat parameter vectors. Both are bound by memory: one pass over x.
#include "ops.h"
#include "vec.h"

namespace metalora {
namespace ML_ISA {

// Elements of one task; fixed, so that sums come out the same on any number of threads.
constexpr int64_t DOT_CHUNK = 8192, COMBINE_CHUNK = 4096;

static double dot(int64_t n, const float* a, const float* b) {
  vd sum[4] = {};
  int64_t j = 0;
  for (; j + 2 * VL <= n; j += 2 * VL) {
    const vf a0 = load(a + j), b0 = load(b + j), a1 = load(a + j + VL), b1 = load(b + j + VL);
    sum[0] += widen_low(a0) * widen_low(b0);
    sum[1] += widen_high(a0) * widen_high(b0);
    sum[2] += widen_low(a1) * widen_low(b1);
    sum[3] += widen_high(a1) * widen_high(b1);
  }
  for (; j < n; j += VL) {
    const int64_t lanes = min64(VL, n - j);
    const vf a0 = load_part(a + j, lanes), b0 = load_part(b + j, lanes);
    sum[0] += widen_low(a0) * widen_low(b0);
    sum[1] += widen_high(a0) * widen_high(b0);
  }
  return hsum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// out += the inner products.
void row_dots(Pool& pool, int64_t n, int64_t P, const float* a, int64_t lda, const float* b, int64_t ldb, double* out) {
  const int64_t chunks = ceil_div(P, DOT_CHUNK);
  double* parts = (double*)pool.scratch(0, 0, (size_t)(chunks * n) * sizeof(double));  // [chunks, n]
  parallel(pool, chunks, [&](int64_t chunk, int) {
    const int64_t j = chunk * DOT_CHUNK, count = min64(DOT_CHUNK, P - j);
    for (int64_t i = 0; i < n; i++) parts[chunk * n + i] = dot(count, a + i * lda + j, b + i * ldb + j);
  });
  for (int64_t i = 0; i < n; i++) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; chunk++) sum += parts[chunk * n + i];
    out[i] += sum;
  }
}

// y += w0 x0 + w1 x1 (x1 NULL: one row) over a chunk that stays in the first-level cache. Two rows at a time: rows lie far
// apart, and the prefetcher follows few streams.
static void add_rows(int64_t n, float w0, const float* x0, float w1, const float* x1, float* y) {
  const vf v0 = set1(w0), v1 = set1(w1);
  int64_t j = 0;
  if (x1)
    for (; j + VL <= n; j += VL) store(y + j, fma(v1, load(x1 + j), fma(v0, load(x0 + j), load(y + j))));
  else
    for (; j + VL <= n; j += VL) store(y + j, fma(v0, load(x0 + j), load(y + j)));
  if (j < n) {
    const int64_t lanes = n - j;
    vf sum = fma(v0, load_part(x0 + j, lanes), load_part(y + j, lanes));
    if (x1) sum = fma(v1, load_part(x1 + j, lanes), sum);
    store_part(y + j, sum, lanes);
  }
}

void combine(Pool& pool, int64_t n, int64_t P, const float* weights, const float* x, int64_t ldx, float beta, float* y) {
  parallel(pool, ceil_div(P, COMBINE_CHUNK), [&](int64_t chunk, int) {
    const int64_t j = chunk * COMBINE_CHUNK, count = min64(COMBINE_CHUNK, P - j);
    float sums[COMBINE_CHUNK];
    float* out = y == x ? sums : y + j;  // the first row takes the sum when all are read
    if (out == sums && beta != 0) memcpy(sums, y + j, (size_t)count * 4);
    if (beta == 0)
      memset(out, 0, (size_t)count * 4);  // y may hold NaN
    else if (beta != 1)
      for (int64_t k = 0; k < count; k++) out[k] *= beta;
    for (int64_t i = 0; i < n; i += 2) {
      const bool two = i + 1 < n;
      const float* row = x + i * ldx + j;
      add_rows(count, weights[i], row, two ? weights[i + 1] : 0, two ? row + ldx : nullptr, out);
    }
    if (out == sums) memcpy(y + j, sums, (size_t)count * 4);
  });
}

}  // namespace ML_ISA
}  // namespace metalora
