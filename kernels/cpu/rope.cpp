// rope.cpp: rotary position embedding (Su et al. 2021, arXiv:2104.09864) in the pairing of Hugging Face Llama.
//
// Component j < D/2 of a head forms a pair with component j + D/2:
//   x_j' = x_j cos - x_{j+D/2} sin        x_{j+D/2}' = x_{j+D/2} cos + x_j sin
// The backward is the rotation by the opposite angle.
#include "ops.h"
#include "vec.h"

namespace metalora {
namespace ML_ISA {

// In place on x [T, ldx]: `heads` consecutive heads of D; cos, sin [positions, D/2].
void rope(Pool& pool, int64_t T, int64_t heads, int64_t D, float* x, int64_t ldx, const float* cos, const float* sin,
          const int32_t* positions, bool inverse) {
  const int64_t half = D / 2, rows = 16;
  const float sign = inverse ? -1.0f : 1.0f;
  parallel(pool, ceil_div(T, rows), [&](int64_t task, int) {
    for (int64_t t = task * rows; t < min64(T, (task + 1) * rows); t++) {
      const float* c = cos + positions[t] * half;
      const float* s = sin + positions[t] * half;
      for (int64_t h = 0; h < heads; h++) {
        float* low = x + t * ldx + h * D;
        float* high = low + half;
        for (int64_t j = 0; j < half; j += VL) {
          const int64_t n = min64(VL, half - j);
          if (n == VL) {
            const vf a = load(low + j), b = load(high + j), cj = load(c + j), sj = load(s + j) * sign;
            store(low + j, a * cj - b * sj);
            store(high + j, b * cj + a * sj);
          } else {
            const vf a = load_part(low + j, n), b = load_part(high + j, n);
            const vf cj = load_part(c + j, n), sj = load_part(s + j, n) * sign;
            store_part(low + j, a * cj - b * sj, n);
            store_part(high + j, b * cj + a * sj, n);
          }
        }
      }
    }
  });
}

}  // namespace ML_ISA
}  // namespace metalora
