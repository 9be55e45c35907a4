// layernorm.cu: layer normalisation (Ba, Kiros and Hinton 2016, arXiv:1607.06450).
//
//   z_j = (x_j - mean) rstd      y_j = z_j w_j + b_j      rstd = 1 / sqrt(mean_j (x_j - mean)^2 + eps)
//   dL/dx_j = rstd (w_j dy_j - mean_i(w_i dy_i) - z_j mean_i(w_i dy_i z_i))
//
// A block a row. A row that fits is held in registers between the reductions and its use, so memory is read and written once.
// The backward pass forms y again to the same bits.
#include "math.cuh"

namespace metalora {
namespace cuda {

static const int MOST_THREADS = 512;

// y = z w + b of W elements.
template <int W>
static __device__ __forceinline__ void write_norm(Bits<W> s, float mean, float rstd, const float (&w)[W], const float* bias, bf16* y) {
  float a[W], b[W];
  unpack(s, a);
  load<W>(bias, b);
#pragma unroll
  for (int i = 0; i < W; i++) a[i] = fmaf(__fmul_rn(__fsub_rn(a[i], mean), rstd), w[i], b[i]);
  store<W>(y, a);
}

// block_sum of two numbers at once.
static __device__ __forceinline__ float2 block_sums(float2 x) {
  __shared__ float2 parts[WARP];
  x = make_float2(warp_sum(x.x), warp_sum(x.y));
  const int warps = blockDim.x / WARP;
  if (warps == 1) return x;
  if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
  __syncthreads();
  float2 sum = parts[0];
  for (int i = 1; i < warps; i++) sum.x += parts[i].x, sum.y += parts[i].y;
  return sum;
}

// Elements of a thread: K accesses of W elements, a block's width apart.
template <int W, int K>
static __global__ void __launch_bounds__(MOST_THREADS) forward(int d, float eps, const bf16* x, const float* weight,
                                                               const float* bias, bf16* y, int64_t ldy, float2* stats) {
  const int64_t t = blockIdx.x;
  const int stride = blockDim.x * W, begin = threadIdx.x * W;
  Bits<W> s[K];
  float w[K][W];
#pragma unroll
  for (int k = 0; k < K; k++)
    if (begin + k * stride < d) s[k] = load_bits<W>(x + t * d + begin + k * stride);
  // The weights do not depend on the sums over the row: they arrive while these are formed.
#pragma unroll
  for (int k = 0; k < K; k++)
    if (begin + k * stride < d) load<W>(weight + begin + k * stride, w[k]);
  float total = 0, squares = 0;
#pragma unroll
  for (int k = 0; k < K; k++) {
    if (begin + k * stride >= d) continue;
    float a[W];
    unpack(s[k], a);
#pragma unroll
    for (int i = 0; i < W; i++) total += a[i];
  }
  const float mean = block_sum(total) / (float)d;
  __syncthreads();  // everybody has read the parts of this sum
#pragma unroll
  for (int k = 0; k < K; k++) {
    if (begin + k * stride >= d) continue;
    float a[W];
    unpack(s[k], a);
#pragma unroll
    for (int i = 0; i < W; i++) squares = fmaf(a[i] - mean, a[i] - mean, squares);
  }
  const float rstd = 1.0f / sqrtf(block_sum(squares) / (float)d + eps);
  if (threadIdx.x == 0) stats[t] = make_float2(mean, rstd);
#pragma unroll
  for (int k = 0; k < K; k++) {
    const int j = begin + k * stride;
    if (j < d) write_norm<W>(s[k], mean, rstd, w[k], bias + j, y + t * ldy + j);
  }
}

// The same for rows that do not fit in registers.
template <int W>
static __global__ void __launch_bounds__(MOST_THREADS) forward_long(int64_t d, float eps, const bf16* x, const float* weight,
                                                               const float* bias, bf16* y, int64_t ldy, float2* stats) {
  const int64_t t = blockIdx.x, stride = blockDim.x * W;
  float total = 0, squares = 0;
  for (int64_t j = threadIdx.x * W; j < d; j += stride) {
    float a[W];
    load<W>(x + t * d + j, a);
#pragma unroll
    for (int i = 0; i < W; i++) total += a[i];
  }
  const float mean = block_sum(total) / (float)d;
  __syncthreads();  // everybody has read the parts of this sum
  for (int64_t j = threadIdx.x * W; j < d; j += stride) {
    float a[W];
    load<W>(x + t * d + j, a);
#pragma unroll
    for (int i = 0; i < W; i++) squares = fmaf(a[i] - mean, a[i] - mean, squares);
  }
  const float rstd = 1.0f / sqrtf(block_sum(squares) / (float)d + eps);
  if (threadIdx.x == 0) stats[t] = make_float2(mean, rstd);
  for (int64_t j = threadIdx.x * W; j < d; j += stride) {
    float w[W];
    load<W>(weight + j, w);
    write_norm<W>(load_bits<W>(x + t * d + j), mean, rstd, w, bias + j, y + t * ldy + j);
  }
}

// Adds W elements to the sums over the row: w dy, and w dy z.
template <int W>
static __device__ __forceinline__ void add_slopes(float2& sums, Bits<W> s, Bits<W> dy, const float (&w)[W], float mean, float rstd) {
  float a[W], g[W];
  unpack(s, a);
  unpack(dy, g);
#pragma unroll
  for (int i = 0; i < W; i++) {
    const float slope = w[i] * g[i];
    sums.x += slope;
    sums.y = fmaf(slope, (a[i] - mean) * rstd, sums.y);
  }
}

// dx += rstd (w dy - even - z along) of W elements.
template <int W>
static __device__ __forceinline__ void add_gradient(Bits<W> old, Bits<W> s, Bits<W> dy, const float (&w)[W], float mean, float rstd, float even,
                                                    float along, bf16* dx) {
  float a[W], g[W], c[W];
  unpack(s, a);
  unpack(dy, g);
  unpack(old, c);
#pragma unroll
  for (int i = 0; i < W; i++) c[i] += rstd * (w[i] * g[i] - even - (a[i] - mean) * rstd * along);
  store<W>(dx, c);
}

template <int W, int K>
static __global__ void __launch_bounds__(MOST_THREADS) backward(int d, const bf16* x, const float* weight, const float* bias,
                                                                const float2* stats, const bf16* dy, int64_t lddy, bf16* dx, int64_t lddx,
                                                                bf16* y, int64_t ldy) {
  const int64_t t = blockIdx.x;
  const int stride = blockDim.x * W, begin = threadIdx.x * W;
  Bits<W> s[K], g[K], old[K];
  float w[K][W];
#pragma unroll
  for (int k = 0; k < K; k++) {
    const int j = begin + k * stride;
    if (j >= d) continue;
    s[k] = load_bits<W>(x + t * d + j);
    if (dx) g[k] = load_bits<W>(dy + t * lddy + j), old[k] = load_bits<W>(dx + t * lddx + j);
    load<W>(weight + j, w[k]);
  }
  const float2 known = stats[t];
  const float mean = known.x, rstd = known.y;
  if (y) {
#pragma unroll
    for (int k = 0; k < K; k++) {
      const int j = begin + k * stride;
      if (j < d) write_norm<W>(s[k], mean, rstd, w[k], bias + j, y + t * ldy + j);
    }
  }
  if (!dx) return;
  float2 sums = make_float2(0, 0);
#pragma unroll
  for (int k = 0; k < K; k++)
    if (begin + k * stride < d) add_slopes<W>(sums, s[k], g[k], w[k], mean, rstd);
  sums = block_sums(sums);
#pragma unroll
  for (int k = 0; k < K; k++) {
    const int j = begin + k * stride;
    if (j < d) add_gradient<W>(old[k], s[k], g[k], w[k], mean, rstd, sums.x / (float)d, sums.y / (float)d, dx + t * lddx + j);
  }
}

template <int W>
static __global__ void __launch_bounds__(MOST_THREADS) backward_long(int64_t d, const bf16* x, const float* weight, const float* bias,
                                                                     const float2* stats, const bf16* dy, int64_t lddy, bf16* dx,
                                                                     int64_t lddx, bf16* y, int64_t ldy) {
  const int64_t t = blockIdx.x, stride = blockDim.x * W;
  const float2 known = stats[t];
  const float mean = known.x, rstd = known.y;
  float2 sums = make_float2(0, 0);
  for (int64_t j = threadIdx.x * W; j < d; j += stride) {
    const Bits<W> s = load_bits<W>(x + t * d + j);
    float w[W];
    load<W>(weight + j, w);
    if (y) write_norm<W>(s, mean, rstd, w, bias + j, y + t * ldy + j);
    if (dx) add_slopes<W>(sums, s, load_bits<W>(dy + t * lddy + j), w, mean, rstd);
  }
  if (!dx) return;
  sums = block_sums(sums);
  for (int64_t j = threadIdx.x * W; j < d; j += stride) {
    float w[W];
    load<W>(weight + j, w);
    add_gradient<W>(load_bits<W>(dx + t * lddx + j), load_bits<W>(x + t * d + j), load_bits<W>(dy + t * lddy + j), w, mean, rstd,
                    sums.x / (float)d, sums.y / (float)d, dx + t * lddx + j);
  }
}

// Accesses a thread makes along a row of `vectors`: enough to keep several loads in flight, few enough to stay in registers.
static int accesses(int64_t vectors) { return vectors <= 128 ? 1 : vectors <= 512 ? 2 : vectors <= 4 * MOST_THREADS ? 4 : 0; }

cudaError_t layernorm_forward(const Launch& on, int64_t T, int64_t d, float eps, const bf16* x, const float* weight, const float* bias, bf16* y,
                              int64_t ldy, float* stats) {
  if (T == 0 || d == 0) return cudaSuccess;
  const bool wide = d % 8 == 0 && aligned16(x) && aligned16(weight) && aligned16(bias) && aligned16(y, ldy);
  const int K = wide ? accesses(d / 8) : 0;
  const unsigned grid = (unsigned)T;
  const int threads = K ? round_to_warps(ceil_div(d / 8, K)) : MOST_THREADS;
  float2* to = (float2*)stats;
  if (K == 1)
    forward<8, 1><<<grid, threads, 0, on.stream>>>((int)d, eps, x, weight, bias, y, ldy, to);
  else if (K == 2)
    forward<8, 2><<<grid, threads, 0, on.stream>>>((int)d, eps, x, weight, bias, y, ldy, to);
  else if (K == 4)
    forward<8, 4><<<grid, threads, 0, on.stream>>>((int)d, eps, x, weight, bias, y, ldy, to);
  else if (wide)
    forward_long<8><<<grid, threads, 0, on.stream>>>(d, eps, x, weight, bias, y, ldy, to);
  else
    forward_long<1><<<grid, threads, 0, on.stream>>>(d, eps, x, weight, bias, y, ldy, to);
  return cudaGetLastError();
}

cudaError_t layernorm_backward(const Launch& on, int64_t T, int64_t d, const bf16* x, const float* weight, const float* bias,
                               const float* stats, const bf16* dy, int64_t lddy, bf16* dx, int64_t lddx, bf16* y, int64_t ldy) {
  if (T == 0 || d == 0 || (!dx && !y)) return cudaSuccess;
  const bool wide = d % 8 == 0 && aligned16(x) && aligned16(weight) && aligned16(bias) && (!dx || (aligned16(dy, lddy) && aligned16(dx, lddx))) &&
                    (!y || aligned16(y, ldy));
  const int K = wide ? accesses(d / 8) : 0;
  const unsigned grid = (unsigned)T;
  const int threads = K ? round_to_warps(ceil_div(d / 8, K)) : MOST_THREADS;
  const float2* from = (const float2*)stats;
  if (K == 1)
    backward<8, 1><<<grid, threads, 0, on.stream>>>((int)d, x, weight, bias, from, dy, lddy, dx, lddx, y, ldy);
  else if (K == 2)
    backward<8, 2><<<grid, threads, 0, on.stream>>>((int)d, x, weight, bias, from, dy, lddy, dx, lddx, y, ldy);
  else if (K == 4)
    backward<8, 4><<<grid, threads, 0, on.stream>>>((int)d, x, weight, bias, from, dy, lddy, dx, lddx, y, ldy);
  else if (wide)
    backward_long<8><<<grid, threads, 0, on.stream>>>(d, x, weight, bias, from, dy, lddy, dx, lddx, y, ldy);
  else
    backward_long<1><<<grid, threads, 0, on.stream>>>(d, x, weight, bias, from, dy, lddy, dx, lddx, y, ldy);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace metalora
