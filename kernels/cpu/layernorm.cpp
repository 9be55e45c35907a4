// layernorm.cpp: layer normalisation (Ba, Kiros and Hinton 2016, arXiv:1607.06450).
//
//   z_j = (x_j - mean) rstd      y_j = z_j w_j + b_j      rstd = 1 / sqrt(mean_j (x_j - mean)^2 + eps)
//   dL/dx_j = rstd (w_j dy_j - mean_i(w_i dy_i) - z_j mean_i(w_i dy_i z_i))
//
// One row stays in the first-level cache between its passes, so memory is read and written once.
#include "ops.h"
#include "vec.h"

namespace metalora {
namespace ML_ISA {

static const int64_t ROWS = 16;  // rows a task

// The sum of term(j, n) over j = 0, VL, 2 VL, ... < d, in four independent parts; n = min(VL, d - j) elements count.
template <class Term>
ML_INLINE float sum_over(int64_t d, const Term& term) {
  vf parts[4] = {};
  int64_t j = 0;
  for (; j + 4 * VL <= d; j += 4 * VL)
    for (int i = 0; i < 4; i++) parts[i] += term(j + i * VL, VL);
  for (; j < d; j += VL) parts[0] += term(j, min64(VL, d - j));
  return hsum((parts[0] + parts[1]) + (parts[2] + parts[3]));
}

// v in lanes 0 .. n-1, 0 in the others.
ML_INLINE vf first(vf v, int64_t n) {
  float lanes[VL];
  store(lanes, v);
  return load_part(lanes, n);
}

ML_INLINE vf take(const float* p, int64_t n) { return n == VL ? load(p) : load_part(p, n); }
ML_INLINE void put(float* p, vf v, int64_t n) { n == VL ? store(p, v) : store_part(p, v, n); }

// y = z w + b, the same bits wherever it is formed.
ML_INLINE void write_norm(int64_t d, const float* s, float mean, float rstd, const float* weight, const float* bias, float* y) {
  for (int64_t j = 0; j < d; j += VL) {
    const int64_t n = min64(VL, d - j);
    put(y + j, fma((take(s + j, n) - mean) * rstd, take(weight + j, n), take(bias + j, n)), n);
  }
}

void layernorm_forward(Pool& pool, int64_t T, int64_t d, float eps, const float* x, const float* weight, const float* bias, float* y,
                       int64_t ldy, float* stats) {
  parallel(pool, ceil_div(T, ROWS), [&](int64_t task, int) {
    for (int64_t t = task * ROWS; t < min64(T, (task + 1) * ROWS); t++) {
      const float* s = x + t * d;
      const float mean = sum_over(d, [&](int64_t j, int64_t n) { return take(s + j, n); }) / (float)d;
      const float squares = sum_over(d, [&](int64_t j, int64_t n) {
        const vf v = take(s + j, n) - mean;
        return n == VL ? v * v : first(v * v, n);  // lanes behind the row are 0 - mean
      });
      const float rstd = 1.0f / sqrtf(squares / (float)d + eps);
      stats[2 * t] = mean;
      stats[2 * t + 1] = rstd;
      write_norm(d, s, mean, rstd, weight, bias, y + t * ldy);
    }
  });
}

// dx += dL/dx, y = z w + b; dx or y may be NULL.
void layernorm_backward(Pool& pool, int64_t T, int64_t d, const float* x, const float* weight, const float* bias, const float* stats,
                        const float* dy, int64_t lddy, float* dx, int64_t lddx, float* y, int64_t ldy) {
  parallel(pool, ceil_div(T, ROWS), [&](int64_t task, int) {
    for (int64_t t = task * ROWS; t < min64(T, (task + 1) * ROWS); t++) {
      const float* s = x + t * d;
      const float mean = stats[2 * t], rstd = stats[2 * t + 1];
      if (y) write_norm(d, s, mean, rstd, weight, bias, y + t * ldy);
      if (!dx) continue;
      const float* g = dy + t * lddy;
      const auto slope = [&](int64_t j, int64_t n) { return take(weight + j, n) * take(g + j, n); };
      const float even = sum_over(d, slope) / (float)d;
      const float along = sum_over(d, [&](int64_t j, int64_t n) { return slope(j, n) * ((take(s + j, n) - mean) * rstd); }) / (float)d;
      float* to = dx + t * lddx;
      for (int64_t j = 0; j < d; j += VL) {
        const int64_t n = min64(VL, d - j);
        const vf z = (take(s + j, n) - mean) * rstd;
        put(to + j, take(to + j, n) + rstd * (slope(j, n) - even - z * along), n);
      }
    }
  });
}

}  // namespace ML_ISA
}  // namespace metalora
