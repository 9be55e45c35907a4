// vector.cu: inner products and weighted sums of flat parameter vectors. Both are bound by memory: one pass over x.
#include "math.cuh"

namespace metalora {
namespace cuda {

static const int THREADS = 256;

// A block multiplies CHUNK elements of up to ROWS rows; fixed, so that the order of the sums is a property of n and P alone.
static const int64_t CHUNK = 8192;
static const int ROWS = 8;
static const int EACH = (int)(CHUNK / THREADS);  // elements a thread

// Where b comes from: rows of its own, one row for all (kept in registers), or a itself.
enum class Second { rows, shared, same };

template <int W>
static __device__ __forceinline__ void load_chunk(const float* from, int64_t left, float (&x)[EACH]) {
#pragma unroll
  for (int i = 0; i < EACH; i += W) {
    const int at = i * THREADS + threadIdx.x * W;
    float piece[W];
    if (at + W <= left) {
      load<W>(from + at, piece);
#pragma unroll
      for (int k = 0; k < W; k++) x[i + k] = piece[k];
    } else {
#pragma unroll
      for (int k = 0; k < W; k++) x[i + k] = at + k < left ? from[at + k] : 0.0f;
    }
  }
}

// parts [n, chunks] = dot products of the chunks.
template <int W, Second SECOND>
static __global__ void __launch_bounds__(THREADS) chunk_dots(int64_t n, int64_t P, int64_t chunks, const float* a, int64_t lda,
                                                             const float* b, int64_t ldb, double* parts) {
  __shared__ double sums[ROWS][THREADS / WARP];
  const int64_t chunk = blockIdx.x % chunks, first = blockIdx.x / chunks * ROWS, j = chunk * CHUNK;
  const int64_t left = P - j < CHUNK ? P - j : CHUNK;
  const int rows = (int)(n - first < ROWS ? n - first : ROWS);
  float y[EACH];
  if (SECOND == Second::shared) load_chunk<W>(b + j, left, y);
  for (int i = 0; i < rows; i++) {
    float x[EACH];
    load_chunk<W>(a + (first + i) * lda + j, left, x);
    if (SECOND == Second::rows) load_chunk<W>(b + (first + i) * ldb + j, left, y);
    double sum[2] = {};
#pragma unroll
    for (int k = 0; k < EACH; k++) sum[k % 2] = fma((double)x[k], (double)(SECOND == Second::same ? x[k] : y[k]), sum[k % 2]);
    const double total = warp_sum(sum[0] + sum[1]);
    if (threadIdx.x % WARP == 0) sums[i][threadIdx.x / WARP] = total;
  }
  __syncthreads();
  if ((int)threadIdx.x < rows) {
    double total = 0;
    for (int w = 0; w < THREADS / WARP; w++) total += sums[threadIdx.x][w];
    parts[(first + threadIdx.x) * chunks + chunk] = total;
  }
}

// out [n] = sums over the rows of parts [n, chunks].
static __global__ void __launch_bounds__(1024) sum_parts(int64_t chunks, const double* parts, double* out) {
  const double* row = parts + blockIdx.x * chunks;
  double sum = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < chunks; i += blockDim.x) sum += row[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

int64_t row_dots_parts(int64_t n, int64_t P) { return n * ceil_div(P, CHUNK); }

template <int W>
static void launch_dots(const Launch& on, int64_t n, int64_t P, const float* a, int64_t lda, const float* b, int64_t ldb, double* parts) {
  const int64_t chunks = ceil_div(P, CHUNK);
  const unsigned grid = (unsigned)(chunks * ceil_div(n, ROWS));
  if (a == b && (lda == ldb || n == 1))
    chunk_dots<W, Second::same><<<grid, THREADS, 0, on.stream>>>(n, P, chunks, a, lda, b, ldb, parts);
  else if (ldb == 0)
    chunk_dots<W, Second::shared><<<grid, THREADS, 0, on.stream>>>(n, P, chunks, a, lda, b, ldb, parts);
  else
    chunk_dots<W, Second::rows><<<grid, THREADS, 0, on.stream>>>(n, P, chunks, a, lda, b, ldb, parts);
}

cudaError_t row_dots(const Launch& on, int64_t n, int64_t P, const float* a, int64_t lda, const float* b, int64_t ldb, double* out,
                     double* parts) {
  if (n == 0) return cudaSuccess;
  const int64_t chunks = ceil_div(P, CHUNK);
  if (P > 0) {
    const bool wide = aligned16(a, n > 1 ? lda : 0, 4) && aligned16(b, n > 1 ? ldb : 0, 4);
    if (wide)
      launch_dots<4>(on, n, P, a, lda, b, ldb, parts);
    else
      launch_dots<1>(on, n, P, a, lda, b, ldb, parts);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
  }
  const int threads = chunks >= 1024 ? 1024 : chunks <= WARP ? WARP : round_to_warps(chunks);
  sum_parts<<<(unsigned)n, threads, 0, on.stream>>>(chunks, parts, out);
  return cudaGetLastError();
}

// y = beta y + w_0 x_0 + w_1 x_1 + ..., fused multiply-adds in this order, as on the CPU. beta 0: y is not read, it may hold NaN.
template <int W>
static __global__ void __launch_bounds__(THREADS) combine_rows(int64_t n, int64_t P, const float* weights, const float* x, int64_t ldx,
                                                               float beta, float* y) {
  const int64_t j = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * W;
  if (j >= P) return;
  float sum[W] = {};
  if (beta != 0) {
    load<W>(y + j, sum);
#pragma unroll
    for (int k = 0; k < W; k++) sum[k] = __fmul_rn(sum[k], beta);
  }
  const int UNROLL = 8;
  int64_t i = 0;
  for (; i + UNROLL <= n; i += UNROLL) {
    float row[UNROLL][W];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) load<W>(x + (i + u) * ldx + j, row[u]);
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const float w = weights[i + u];
#pragma unroll
      for (int k = 0; k < W; k++) sum[k] = fmaf(w, row[u][k], sum[k]);
    }
  }
#pragma unroll 4
  for (; i < n; i++) {
    float row[W];
    load<W>(x + i * ldx + j, row);
    const float w = weights[i];
#pragma unroll
    for (int k = 0; k < W; k++) sum[k] = fmaf(w, row[k], sum[k]);
  }
  store<W>(y + j, sum);
}

cudaError_t combine(const Launch& on, int64_t n, int64_t P, const float* weights, const float* x, int64_t ldx, float beta, float* y) {
  if (P == 0) return cudaSuccess;
  const bool wide = P % 4 == 0 && aligned16(x, n > 1 ? ldx : 0, 4) && aligned16(y);
  const unsigned grid = (unsigned)ceil_div(P, (wide ? 4 : 1) * THREADS);
  if (wide)
    combine_rows<4><<<grid, THREADS, 0, on.stream>>>(n, P, weights, x, ldx, beta, y);
  else
    combine_rows<1><<<grid, THREADS, 0, on.stream>>>(n, P, weights, x, ldx, beta, y);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace metalora
