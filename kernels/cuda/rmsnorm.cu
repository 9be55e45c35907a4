// rmsnorm.cu: root-mean-square normalisation (Zhang and Sennrich 2019, arXiv:1910.07467), as in Llama.
//
//   y_j = x_j rstd w_j          rstd = 1 / sqrt(mean_j x_j^2 + eps)
//   dL/dx_j = rstd (w_j dy_j - x_j rstd^2 mean_i(w_i dy_i x_i))
//
// A block a row. A row that fits is held in registers between the reduction and its use, so memory is read and written once.
#include "math.cuh"

namespace metalora {
namespace cuda {

static const int MOST_THREADS = 512;

// Elements of a thread: K accesses of W elements, a block's width apart.
template <int W, int K>
static __global__ void __launch_bounds__(MOST_THREADS) forward(int d, float eps, const bf16* x, const float* weight, bf16* y,
                                                               int64_t ldy, float* rstd) {
  const int64_t t = blockIdx.x;
  const int stride = blockDim.x * W, begin = threadIdx.x * W;
  Bits<W> s[K];
  float w[K][W];
#pragma unroll
  for (int k = 0; k < K; k++)
    if (begin + k * stride < d) s[k] = load_bits<W>(x + t * d + begin + k * stride);
  // The weights do not depend on the sum over the row: they arrive while it is formed.
#pragma unroll
  for (int k = 0; k < K; k++)
    if (begin + k * stride < d) load<W>(weight + begin + k * stride, w[k]);
  float squares = 0;
#pragma unroll
  for (int k = 0; k < K; k++) {
    const int j = begin + k * stride;
    if (j >= d) continue;
    float a[W];
    unpack(s[k], a);
#pragma unroll
    for (int i = 0; i < W; i++) squares = fmaf(a[i], a[i], squares);
  }
  const float scale = 1.0f / sqrtf(block_sum(squares) / (float)d + eps);
  if (threadIdx.x == 0) rstd[t] = scale;
#pragma unroll
  for (int k = 0; k < K; k++) {
    const int j = begin + k * stride;
    if (j >= d) continue;
    float a[W];
    unpack(s[k], a);
#pragma unroll
    for (int i = 0; i < W; i++) a[i] = a[i] * scale * w[k][i];
    store<W>(y + t * ldy + j, a);
  }
}

// The same for rows that do not fit in registers.
template <int W>
static __global__ void __launch_bounds__(MOST_THREADS) forward_long(int64_t d, float eps, const bf16* x, const float* weight, bf16* y,
                                                                    int64_t ldy, float* rstd) {
  const int64_t t = blockIdx.x, stride = blockDim.x * W;
  float squares = 0;
  for (int64_t j = threadIdx.x * W; j < d; j += stride) {
    float a[W];
    load<W>(x + t * d + j, a);
#pragma unroll
    for (int i = 0; i < W; i++) squares = fmaf(a[i], a[i], squares);
  }
  const float scale = 1.0f / sqrtf(block_sum(squares) / (float)d + eps);
  if (threadIdx.x == 0) rstd[t] = scale;
  for (int64_t j = threadIdx.x * W; j < d; j += stride) {
    float a[W], w[W];
    load<W>(x + t * d + j, a);
    load<W>(weight + j, w);
#pragma unroll
    for (int i = 0; i < W; i++) a[i] = a[i] * scale * w[i];
    store<W>(y + t * ldy + j, a);
  }
}

template <int W, int K>
static __global__ void __launch_bounds__(MOST_THREADS) backward(int d, const bf16* x, const float* weight, const float* rstd,
                                                                const bf16* dy, int64_t lddy, bf16* dx, int64_t lddx) {
  const int64_t t = blockIdx.x;
  const int stride = blockDim.x * W, begin = threadIdx.x * W;
  Bits<W> s[K], g[K], old[K];
  float w[K][W];
#pragma unroll
  for (int k = 0; k < K; k++) {
    const int j = begin + k * stride;
    if (j >= d) continue;
    s[k] = load_bits<W>(x + t * d + j);
    g[k] = load_bits<W>(dy + t * lddy + j);
    old[k] = load_bits<W>(dx + t * lddx + j);
    load<W>(weight + j, w[k]);
  }
  const float scale = rstd[t];
  float dot = 0;
#pragma unroll
  for (int k = 0; k < K; k++) {
    if (begin + k * stride >= d) continue;
    float a[W], b[W];
    unpack(s[k], a);
    unpack(g[k], b);
#pragma unroll
    for (int i = 0; i < W; i++) dot = fmaf(w[k][i] * b[i], a[i], dot);
  }
  const float back = scale * scale * scale * (block_sum(dot) / (float)d);
#pragma unroll
  for (int k = 0; k < K; k++) {
    const int j = begin + k * stride;
    if (j >= d) continue;
    float a[W], b[W], c[W];
    unpack(s[k], a);
    unpack(g[k], b);
    unpack(old[k], c);
#pragma unroll
    for (int i = 0; i < W; i++) c[i] += w[k][i] * b[i] * scale - a[i] * back;
    store<W>(dx + t * lddx + j, c);
  }
}

template <int W>
static __global__ void __launch_bounds__(MOST_THREADS) backward_long(int64_t d, const bf16* x, const float* weight, const float* rstd,
                                                                     const bf16* dy, int64_t lddy, bf16* dx, int64_t lddx) {
  const int64_t t = blockIdx.x, stride = blockDim.x * W;
  const float scale = rstd[t];
  float dot = 0;
  for (int64_t j = threadIdx.x * W; j < d; j += stride) {
    float a[W], b[W], w[W];
    load<W>(x + t * d + j, a);
    load<W>(dy + t * lddy + j, b);
    load<W>(weight + j, w);
#pragma unroll
    for (int i = 0; i < W; i++) dot = fmaf(w[i] * b[i], a[i], dot);
  }
  const float back = scale * scale * scale * (block_sum(dot) / (float)d);
  for (int64_t j = threadIdx.x * W; j < d; j += stride) {
    float a[W], b[W], c[W], w[W];
    load<W>(x + t * d + j, a);
    load<W>(dy + t * lddy + j, b);
    load<W>(dx + t * lddx + j, c);
    load<W>(weight + j, w);
#pragma unroll
    for (int i = 0; i < W; i++) c[i] += w[i] * b[i] * scale - a[i] * back;
    store<W>(dx + t * lddx + j, c);
  }
}

// Accesses a thread makes along a row of `vectors`: enough to keep several loads in flight, few enough to stay in registers.
static int accesses(int64_t vectors) { return vectors <= 128 ? 1 : vectors <= 512 ? 2 : vectors <= 4 * MOST_THREADS ? 4 : 0; }

cudaError_t rmsnorm_forward(const Launch& on, int64_t T, int64_t d, float eps, const bf16* x, const float* weight, bf16* y, int64_t ldy,
                            float* rstd) {
  if (T == 0 || d == 0) return cudaSuccess;
  const bool wide = d % 8 == 0 && aligned16(x) && aligned16(weight) && aligned16(y, ldy);
  const int K = wide ? accesses(d / 8) : 0;
  const unsigned grid = (unsigned)T;
  const int threads = K ? round_to_warps(ceil_div(d / 8, K)) : MOST_THREADS;
  if (K == 1)
    forward<8, 1><<<grid, threads, 0, on.stream>>>((int)d, eps, x, weight, y, ldy, rstd);
  else if (K == 2)
    forward<8, 2><<<grid, threads, 0, on.stream>>>((int)d, eps, x, weight, y, ldy, rstd);
  else if (K == 4)
    forward<8, 4><<<grid, threads, 0, on.stream>>>((int)d, eps, x, weight, y, ldy, rstd);
  else if (wide)
    forward_long<8><<<grid, threads, 0, on.stream>>>(d, eps, x, weight, y, ldy, rstd);
  else
    forward_long<1><<<grid, threads, 0, on.stream>>>(d, eps, x, weight, y, ldy, rstd);
  return cudaGetLastError();
}

cudaError_t rmsnorm_backward(const Launch& on, int64_t T, int64_t d, const bf16* x, const float* weight, const float* rstd,
                             const bf16* dy, int64_t lddy, bf16* dx, int64_t lddx) {
  if (T == 0 || d == 0) return cudaSuccess;
  const bool wide = d % 8 == 0 && aligned16(x) && aligned16(weight) && aligned16(dy, lddy) && aligned16(dx, lddx);
  const int K = wide ? accesses(d / 8) : 0;
  const unsigned grid = (unsigned)T;
  const int threads = K ? round_to_warps(ceil_div(d / 8, K)) : MOST_THREADS;
  if (K == 1)
    backward<8, 1><<<grid, threads, 0, on.stream>>>((int)d, x, weight, rstd, dy, lddy, dx, lddx);
  else if (K == 2)
    backward<8, 2><<<grid, threads, 0, on.stream>>>((int)d, x, weight, rstd, dy, lddy, dx, lddx);
  else if (K == 4)
    backward<8, 4><<<grid, threads, 0, on.stream>>>((int)d, x, weight, rstd, dy, lddy, dx, lddx);
  else if (wide)
    backward_long<8><<<grid, threads, 0, on.stream>>>(d, x, weight, rstd, dy, lddy, dx, lddx);
  else
    backward_long<1><<<grid, threads, 0, on.stream>>>(d, x, weight, rstd, dy, lddy, dx, lddx);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace metalora
