// rmsnorm.cpp: root-mean-square normalisation (Zhang and Sennrich 2019, arXiv:1910.07467), as in Llama.
//
//   y_j = x_j rstd w_j          rstd = 1 / sqrt(mean_j x_j^2 + eps)
//   dL/dx_j = rstd (w_j dy_j - x_j rstd^2 mean_i(w_i dy_i x_i))
//
// One row stays in the first-level cache between its two passes, so memory is read and written once.
#include "ops.h"
#include "vec.h"

namespace metalora {
namespace ML_ISA {

static const int64_t ROWS = 16;  // rows a task

void rmsnorm_forward(Pool& pool, int64_t T, int64_t d, float eps, const float* x, const float* weight, float* y,
                     int64_t ldy, float* rstd) {
  parallel(pool, ceil_div(T, ROWS), [&](int64_t task, int) {
    for (int64_t t = task * ROWS; t < min64(T, (task + 1) * ROWS); t++) {
      const float* s = x + t * d;
      vf squares[4] = {};  // independent sums hide the latency of the addition
      int64_t j = 0;
      for (; j + 4 * VL <= d; j += 4 * VL)
        for (int i = 0; i < 4; i++) {
          const vf v = load(s + j + i * VL);
          squares[i] = fma(v, v, squares[i]);
        }
      for (; j < d; j += VL) {
        const vf v = load_part(s + j, min64(VL, d - j));
        squares[0] = fma(v, v, squares[0]);
      }
      const float mean = hsum((squares[0] + squares[1]) + (squares[2] + squares[3])) / (float)d;
      const float scale = 1.0f / sqrtf(mean + eps);
      rstd[t] = scale;
      float* to = y + t * ldy;
      j = 0;
      for (; j + VL <= d; j += VL) store(to + j, load(s + j) * scale * load(weight + j));
      for (; j < d; j++) to[j] = s[j] * scale * weight[j];
    }
  });
}

// dx += dL/dx.
void rmsnorm_backward(Pool& pool, int64_t T, int64_t d, const float* x, const float* weight, const float* rstd,
                      const float* dy, int64_t lddy, float* dx, int64_t lddx) {
  parallel(pool, ceil_div(T, ROWS), [&](int64_t task, int) {
    for (int64_t t = task * ROWS; t < min64(T, (task + 1) * ROWS); t++) {
      const float* s = x + t * d;
      const float* g = dy + t * lddy;
      vf dots[4] = {};
      int64_t j = 0;
      for (; j + 4 * VL <= d; j += 4 * VL)
        for (int i = 0; i < 4; i++) {
          const int64_t at = j + i * VL;
          dots[i] = fma(load(weight + at) * load(g + at), load(s + at), dots[i]);
        }
      for (; j < d; j += VL) {
        const int64_t n = min64(VL, d - j);
        dots[0] = fma(load_part(weight + j, n) * load_part(g + j, n), load_part(s + j, n), dots[0]);
      }
      const float mean = hsum((dots[0] + dots[1]) + (dots[2] + dots[3])) / (float)d;
      const float scale = rstd[t], back = scale * scale * scale * mean;
      float* to = dx + t * lddx;
      j = 0;
      for (; j + VL <= d; j += VL)
        store(to + j, load(to + j) + (load(weight + j) * load(g + j) * scale - load(s + j) * back));
      for (; j < d; j++) to[j] += weight[j] * g[j] * scale - s[j] * back;
    }
  });
}

}  // namespace ML_ISA
}  // namespace metalora
