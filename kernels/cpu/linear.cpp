// linear.cpp: a group of adapted matrices that read one input, as products over one widened W (ffi/metalora.h).
//
//   h_g = x A_g^T,  y_g = [x | h_g] [W_g | s_g B_g]^T          forward
//   [dx | g_h] = dY [W | s B],  dx += g_h A                    backward
//
// The columns of W behind d_in hold s_g B_g for group g and zeros for the others; K jumps over those zeros.
#include "ops.h"
#include "vec.h"

namespace metalora {
namespace ML_ISA {

static int64_t total_rank(int G, const Group* groups) {
  int64_t Q = 0;
  for (int g = 0; g < G; g++) Q += groups[g].r;
  return Q;
}

static const void* offset(const void* data, int dtype, int64_t elements) {
  return (const char*)data + elements * (dtype == 0 ? 4 : 2);
}

void linear_forward(Pool& pool, int64_t T, int64_t d_in, int G, const Group* groups, float* xh, int64_t ldx, const float* A, int64_t lda,
                    const void* W, int wdtype, int64_t ldw, const float* bias, bool relu, const float* add, int64_t ldadd, float* y, int64_t ldy) {
  const int64_t Q = total_rank(G, groups);
  // h [T, Q] = x A^T: all groups at once, their A lie one below the other
  if (Q > 0) {
    gemm(pool, T, Q, d_in, 1, {xh, ldx, 0, false, d_in, 0}, {A, lda, 0, true, d_in, 0}, 0, xh + d_in, ldx);
  }
  int64_t N = 0;
  for (int g = 0; g < G; g++) N += groups[g].d_out;
  // What the products are added to.
  if (bias || add) {
    parallel(pool, T, [&](int64_t t, int) {
      const float* from = add ? add + t * ldadd : bias;
      float* to = y + t * ldy;
      if (from != to) memcpy(to, from, (size_t)N * 4);
      if (bias && add)
        for (int64_t n = 0; n < N; n++) to[n] += bias[n];
    });
  }
  int64_t n = 0, q = 0;  // rows of W and columns behind d_in before this group
  for (int g = 0; g < G; g++) {
    const int64_t d_out = groups[g].d_out, r = groups[g].r;
    gemm(pool, T, d_out, d_in + r, 1, {xh, ldx, 0, false, d_in, q}, {offset(W, wdtype, n * ldw), ldw, wdtype, true, d_in, q},
         bias || add ? 1 : 0, y + n, ldy);
    n += d_out;
    q += r;
  }
  if (relu) relu_forward(pool, T, N, y, ldy);
}

void linear_backward(Pool& pool, int64_t T, int64_t d_in, int G, const Group* groups, const float* dy, int64_t lddy,
                     const float* A, int64_t lda, const void* W, int wdtype, int64_t ldw, float* dx, int64_t lddx, float* gh, int64_t ldgh) {
  const int64_t Q = total_rank(G, groups);
  if (G == 1 && dx && (Q == 0 || (gh == dx + d_in && ldgh == lddx))) {
    // [dx | g_h] [T, d_in + r] = dY [W | s B]
    const int64_t N = groups[0].d_out;
    gemm(pool, T, d_in + Q, N, 1, {dy, lddy, 0, false, N, 0}, {W, ldw, wdtype, false, N, 0}, 0, dx, lddx);
  } else {
    int64_t n = 0, q = 0;
    for (int g = 0; g < G; g++) {
      const int64_t d_out = groups[g].d_out, r = groups[g].r;
      if (r > 0) {
        gemm(pool, T, r, d_out, 1, {dy + n, lddy, 0, false, d_out, 0},
             {offset(W, wdtype, n * ldw + d_in + q), ldw, wdtype, false, d_out, 0}, 0, gh + q, ldgh);
      }
      n += d_out;
      q += r;
    }
    if (dx) {
      gemm(pool, T, d_in, n, 1, {dy, lddy, 0, false, n, 0}, {W, ldw, wdtype, false, n, 0}, 0, dx, lddx);
    }
  }
  if (dx && Q > 0) {
    gemm(pool, T, d_in, Q, 1, {gh, ldgh, 0, false, Q, 0}, {A, lda, 0, false, Q, 0}, 1, dx, lddx);
  }
}

void lora_refresh(Pool& pool, int64_t d_in, int G, const Group* groups, const float* scales, const float* theta, void* W,
                  int wdtype, int64_t ldw) {
  const int64_t Q = total_rank(G, groups);
  const float* B = theta + Q * d_in;
  int64_t n = 0, q = 0;
  for (int g = 0; g < G; g++) {
    const int64_t d_out = groups[g].d_out, r = groups[g].r;
    const float s = scales[g];
    constexpr int64_t STEP = 64;
    parallel(pool, ceil_div(d_out, STEP), [&](int64_t piece, int) {
      for (int64_t i = piece * STEP; i < min64(d_out, (piece + 1) * STEP); i++) {
        const int64_t row = (n + i) * ldw + d_in;
        for (int64_t j = 0; j < Q; j++) {
          const float value = j >= q && j < q + r ? s * B[i * r + j - q] : 0;
          if (wdtype == 0)
            ((float*)W)[row + j] = value;
          else
            ((uint16_t*)W)[row + j] = to_bf16(value);
        }
      }
    });
    B += d_out * r;
    n += d_out;
    q += r;
  }
}

}  // namespace ML_ISA
}  // namespace metalora
