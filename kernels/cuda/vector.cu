// vector.cu: inner products and weighted sums of flat parameter vectors. Both are bound by memory: one pass over x.
#include "pieces.cuh"

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

// parts [n, chunks] = dot products of the chunks of columns; a list's first is number `before` of all.
template <int W, Second SECOND>
static __global__ void __launch_bounds__(THREADS) chunk_dots(int64_t n, const Listed list, int units, int64_t before, int64_t chunks,
                                                             const float* b, int64_t ldb, double* parts) {
  __shared__ double sums[ROWS][THREADS / WARP];
  const int unit = (int)(blockIdx.x % units);
  const int64_t first = blockIdx.x / units * ROWS, chunk = before + unit;
  const auto& piece = list.items[item_of(list.items, list.count, unit)];
  const int64_t j = (unit - piece.before) * CHUNK, P = piece.length, lda = piece.ld;
  const float* a = piece.x;
  if (SECOND != Second::same) b += piece.first;
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

static int64_t chunks_of(const Piece* pieces, int count) {
  int64_t chunks = 0;
  for (int i = 0; i < count; i++) chunks += ceil_div(pieces[i].length, CHUNK);
  return chunks;
}

int64_t row_dots_parts(int64_t n, const Piece* pieces, int count) { return n * chunks_of(pieces, count); }

template <int W>
static cudaError_t launch_dots(const Launch& on, int64_t n, const Piece* pieces, int count, const float* b, int64_t ldb, double* parts) {
  const int64_t chunks = chunks_of(pieces, count);
  return each_list(pieces, count, CHUNK, [&](const Listed& list, int64_t units, int64_t before) {
    const unsigned grid = (unsigned)(units * ceil_div(n, ROWS));
    if (!b)
      chunk_dots<W, Second::same><<<grid, THREADS, 0, on.stream>>>(n, list, (int)units, before, chunks, b, ldb, parts);
    else if (ldb == 0)
      chunk_dots<W, Second::shared><<<grid, THREADS, 0, on.stream>>>(n, list, (int)units, before, chunks, b, ldb, parts);
    else
      chunk_dots<W, Second::rows><<<grid, THREADS, 0, on.stream>>>(n, list, (int)units, before, chunks, b, ldb, parts);
  });
}

cudaError_t row_dots(const Launch& on, int64_t n, const Piece* pieces, int count, const float* b, int64_t ldb, double* out, double* parts) {
  if (n == 0) return cudaSuccess;
  const auto launch = aligned(n, pieces, count, b, ldb) ? launch_dots<4> : launch_dots<1>;
  const cudaError_t error = launch(on, n, pieces, count, b, ldb, parts);
  if (error != cudaSuccess) return error;
  const int64_t chunks = chunks_of(pieces, count);
  const int threads = chunks >= 1024 ? 1024 : chunks <= WARP ? WARP : round_to_warps(chunks);
  sum_parts<<<(unsigned)n, threads, 0, on.stream>>>(chunks, parts, out);
  return cudaGetLastError();
}

// y = beta y + w_0 x_0 + w_1 x_1 + ..., fused multiply-adds in this order, as on the CPU. beta 0: y is not read, it may hold NaN. No y:
// x_0 takes its place.
template <int W>
static __global__ void __launch_bounds__(THREADS) combine_rows(int64_t n, const Listed list, const float* weights, float beta, float* y) {
  const auto& piece = list.items[item_of(list.items, list.count, blockIdx.x)];
  const int j = ((int)(blockIdx.x - piece.before) * THREADS + (int)threadIdx.x) * W;
  if (j >= piece.length) return;
  const float* x = piece.x;
  const int64_t ldx = piece.ld;
  y = y ? y + piece.first : (float*)x;
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

cudaError_t combine(const Launch& on, int64_t n, const Piece* pieces, int count, const float* weights, float beta, float* y) {
  const bool wide = aligned(n, pieces, count, y, 0) && fours(pieces, count);
  return each_list(pieces, count, (wide ? 4 : 1) * THREADS, [&](const Listed& list, int64_t units, int64_t) {
    if (wide)
      combine_rows<4><<<(unsigned)units, THREADS, 0, on.stream>>>(n, list, weights, beta, y);
    else
      combine_rows<1><<<(unsigned)units, THREADS, 0, on.stream>>>(n, list, weights, beta, y);
  });
}

}  // namespace cuda
}  // namespace metalora
