// swiglu.cpp: y = silu(gate) * up (Shazeer 2020, arXiv:2002.05202), silu(g) = g sigmoid(g).
//
//   dgate = dy up s (1 + g (1 - s))        dup = dy g s        with s = sigmoid(g)
#include "math.h"
#include "ops.h"
#include "vec.h"

namespace metalora {
namespace ML_ISA {

static const int64_t ROWS = 8;  // rows a task

// gate_up [T, 2f], rows ldg apart, gate first; y [T, ldy].
void swiglu_forward(Pool& pool, int64_t T, int64_t f, const float* gate_up, int64_t ldg, float* y, int64_t ldy) {
  parallel(pool, ceil_div(T, ROWS), [&](int64_t task, int) {
    for (int64_t t = task * ROWS; t < min64(T, (task + 1) * ROWS); t++) {
      const float* gate = gate_up + t * ldg;
      const float* up = gate + f;
      float* to = y + t * ldy;
      int64_t j = 0;
      for (; j + VL <= f; j += VL) {
        const vf g = load(gate + j);
        store(to + j, g * vsigmoid(g) * load(up + j));
      }
      if (j < f) {
        const vf g = load_part(gate + j, f - j);
        store_part(to + j, g * vsigmoid(g) * load_part(up + j, f - j), f - j);
      }
    }
  });
}

// dgate_up [T, 2f], rows ldg apart, may be gate_up itself, and y [T, lddy] may be dy: each element is read before it is written.
void swiglu_backward(Pool& pool, int64_t T, int64_t f, const float* gate_up, int64_t ldg, const float* dy, int64_t lddy, float* dgate_up,
                     float* y) {
  parallel(pool, ceil_div(T, ROWS), [&](int64_t task, int) {
    for (int64_t t = task * ROWS; t < min64(T, (task + 1) * ROWS); t++) {
      const float* gate = gate_up + t * ldg;
      const float* up = gate + f;
      const float* out = dy + t * lddy;
      float* dgate = dgate_up + t * ldg;
      float* dup = dgate + f;
      for (int64_t j = 0; j < f; j += VL) {
        const int64_t n = min64(VL, f - j);
        const bool whole = n == VL;
        const vf g = whole ? load(gate + j) : load_part(gate + j, n);
        const vf u = whole ? load(up + j) : load_part(up + j, n);
        const vf o = whole ? load(out + j) : load_part(out + j, n);
        const vf s = vsigmoid(g);
        const vf dg = o * u * s * (1.0f + g * (1.0f - s)), du = o * g * s;
        const auto put = [&](float* to, vf x) { whole ? store(to, x) : store_part(to, x, n); };
        put(dgate + j, dg);
        put(dup + j, du);
        if (y) put(y + t * lddy + j, g * s * u);
      }
    }
  });
}

}  // namespace ML_ISA
}  // namespace metalora
