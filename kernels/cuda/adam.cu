// adam.cu: AdamW (Loshchilov & Hutter, 2019) and Adam's preconditioner, element by element.
//
// The arithmetic is in double and in the order of lib/optim/adam.ts, every operation rounded on its own (the _rn intrinsics
// are never contracted into fused multiply-adds), and m and v are used as stored, in f32: the same bits as in JavaScript.
#include "pieces.cuh"

namespace metalora {
namespace cuda {

static const int THREADS = 256;

// g / (sqrt(v / bias2) + eps)
static __device__ __forceinline__ double scaled(double g, float v, double bias2, double eps) {
  return __ddiv_rn(g, __dadd_rn(__dsqrt_rn(__ddiv_rn((double)v, bias2)), eps));
}

template <int W>
static __global__ void __launch_bounds__(THREADS) precondition(int64_t P, const float* g, const float* v, double bias2, double eps,
                                                               float* out) {
  const int64_t j = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * W;
  if (j >= P) return;
  float a[W], b[W];
  load<W>(g + j, a);
  load<W>(v + j, b);
#pragma unroll
  for (int i = 0; i < W; i++) a[i] = __double2float_rn(scaled((double)a[i], b[i], bias2, eps));
  store<W>(out + j, a);
}

struct Numbers {
  double lr, b1, c1, b2, c2, eps, decay, bias1, bias2, grad_scale;
};

template <int W>
static __global__ void __launch_bounds__(THREADS) update(const Listed g, float* theta, float* m, float* v, const Numbers at) {
  const auto& piece = g.items[item_of(g.items, g.count, blockIdx.x)];
  const int k = ((int)(blockIdx.x - piece.before) * THREADS + (int)threadIdx.x) * W;
  if (k >= piece.length) return;
  const int64_t j = piece.first + k;
  float old[W], grad[W], first[W], second[W];
  load<W>(theta + j, old);
  load<W>(piece.x + k, grad);
  load<W>(m + j, first);
  load<W>(v + j, second);
#pragma unroll
  for (int i = 0; i < W; i++) {
    const double x = __dmul_rn(at.grad_scale, (double)grad[i]), was = (double)old[i];
    first[i] = __double2float_rn(__dadd_rn(__dmul_rn(at.b1, (double)first[i]), __dmul_rn(at.c1, x)));
    second[i] = __double2float_rn(__dadd_rn(__dmul_rn(at.b2, (double)second[i]), __dmul_rn(at.c2, __dmul_rn(x, x))));
    const double decayed = __dsub_rn(was, __dmul_rn(at.decay, was));
    const double step = __dmul_rn(at.lr, __ddiv_rn((double)first[i], at.bias1));
    old[i] = __double2float_rn(__dsub_rn(decayed, scaled(step, second[i], at.bias2, at.eps)));
  }
  store<W>(theta + j, old);
  store<W>(m + j, first);
  store<W>(v + j, second);
}

cudaError_t adam_precondition(const Launch& on, int64_t P, const float* g, const float* v, double bias2, double eps, float* out) {
  if (P == 0) return cudaSuccess;
  const bool wide = P % 4 == 0 && aligned16(g) && aligned16(v) && aligned16(out);
  const unsigned grid = (unsigned)ceil_div(P, (wide ? 4 : 1) * THREADS);
  if (wide)
    precondition<4><<<grid, THREADS, 0, on.stream>>>(P, g, v, bias2, eps, out);
  else
    precondition<1><<<grid, THREADS, 0, on.stream>>>(P, g, v, bias2, eps, out);
  return cudaGetLastError();
}

cudaError_t adam(const Launch& on, const Piece* g, int count, float* theta, float* m, float* v, double lr, double b1, double b2, double eps,
                 double weight_decay, double bias1, double bias2, double grad_scale) {
  const Numbers at = {lr, b1, 1 - b1, b2, 1 - b2, eps, lr * weight_decay, bias1, bias2, grad_scale};
  const bool wide = aligned(1, g, count, theta, 0) && fours(g, count) && aligned16(m) && aligned16(v);
  return each_list(g, count, (wide ? 4 : 1) * THREADS, [&](const Listed& list, int64_t units, int64_t) {
    if (wide)
      update<4><<<(unsigned)units, THREADS, 0, on.stream>>>(list, theta, m, v, at);
    else
      update<1><<<(unsigned)units, THREADS, 0, on.stream>>>(list, theta, m, v, at);
  });
}

}  // namespace cuda
}  // namespace metalora
