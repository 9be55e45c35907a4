// relu.cpp: y = max(x, 0) (Nair and Hinton 2010), in place, and its slope from the sign of y. A NaN stays one.
#include "ops.h"
#include "vec.h"

namespace metalora {
namespace ML_ISA {

static const int64_t ROWS = 8;  // rows a task

void relu_forward(Pool& pool, int64_t T, int64_t f, float* y, int64_t ldy) {
  parallel(pool, ceil_div(T, ROWS), [&](int64_t task, int) {
    for (int64_t t = task * ROWS; t < min64(T, (task + 1) * ROWS); t++) {
      float* row = y + t * ldy;
      for (int64_t j = 0; j < f; j += VL) {
        const int64_t n = min64(VL, f - j);
        const bool whole = n == VL;
        const vf x = whole ? load(row + j) : load_part(row + j, n), v = x < 0 ? vf{} : x;
        whole ? store(row + j, v) : store_part(row + j, v, n);
      }
    }
  });
}

// y [T, ldy] becomes dy [T, lddy] where it is above 0, else 0.
void relu_backward(Pool& pool, int64_t T, int64_t f, float* y, int64_t ldy, const float* dy, int64_t lddy) {
  parallel(pool, ceil_div(T, ROWS), [&](int64_t task, int) {
    for (int64_t t = task * ROWS; t < min64(T, (task + 1) * ROWS); t++) {
      float* row = y + t * ldy;
      const float* from = dy + t * lddy;
      for (int64_t j = 0; j < f; j += VL) {
        const int64_t n = min64(VL, f - j);
        const bool whole = n == VL;
        const vf v = whole ? load(row + j) : load_part(row + j, n), g = whole ? load(from + j) : load_part(from + j, n);
        const vf kept = v <= 0 ? vf{} : g;
        whole ? store(row + j, kept) : store_part(row + j, kept, n);
      }
    }
  });
}

}  // namespace ML_ISA
}  // namespace metalora
