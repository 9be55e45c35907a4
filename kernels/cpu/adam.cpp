// adam.cpp: AdamW (Loshchilov & Hutter, 2019) and Adam's preconditioner, element by element.
//
// The arithmetic is in double and without fused multiply-adds (kernels.mk compiles this file with -ffp-contract=off), in
// the order written here, and m and v are used as stored, in f32: the same program on Float32Arrays in JavaScript gives
// the same bits. Reading and writing memory takes longer than the divisions.
#include "ops.h"
#include "vec.h"

namespace metalora {
namespace ML_ISA {

constexpr int64_t CHUNK = 8192;  // elements of one task

void adam_precondition(Pool& pool, int64_t P, const float* g, const float* v, double bias2, double eps, float* out) {
  parallel(pool, ceil_div(P, CHUNK), [&](int64_t chunk, int) {
    const int64_t begin = chunk * CHUNK, end = min64(P, begin + CHUNK);
    for (int64_t j = begin; j < end; j++) out[j] = (float)((double)g[j] / (sqrt((double)v[j] / bias2) + eps));
  });
}

void adam(Pool& pool, int64_t P, float* theta, const float* g, float* m, float* v, double lr, double b1, double b2, double eps,
          double weight_decay, double bias1, double bias2, double grad_scale) {
  const double c1 = 1 - b1, c2 = 1 - b2, decay = lr * weight_decay;
  parallel(pool, ceil_div(P, CHUNK), [&](int64_t chunk, int) {
    const int64_t begin = chunk * CHUNK, end = min64(P, begin + CHUNK);
#pragma GCC ivdep
    for (int64_t j = begin; j < end; j++) {
      const double grad = grad_scale * (double)g[j];
      m[j] = (float)(b1 * (double)m[j] + c1 * grad);
      v[j] = (float)(b2 * (double)v[j] + c2 * (grad * grad));
      const double decayed = (double)theta[j] - decay * (double)theta[j];
      theta[j] = (float)(decayed - lr * ((double)m[j] / bias1) / (sqrt((double)v[j] / bias2) + eps));
    }
  });
}

}  // namespace ML_ISA
}  // namespace metalora
