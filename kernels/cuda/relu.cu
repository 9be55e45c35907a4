// relu.cu: y = max(x, 0) (Nair and Hinton 2010), in place, and its slope from the sign of y.
#include "math.cuh"

namespace metalora {
namespace cuda {

// A block takes a piece of a row, of ROWS rows, whose loads are in flight together.
static const int THREADS = 256, ROWS = 4;

template <int W>
static __global__ void __launch_bounds__(THREADS) forward(int64_t T, int64_t f, int pieces, bf16* y, int64_t ldy) {
  const int64_t first = (int64_t)(blockIdx.x / pieces) * ROWS, j = ((int64_t)(blockIdx.x % pieces) * blockDim.x + threadIdx.x) * W;
  if (j >= f) return;
  Bits<W> rows[ROWS];
#pragma unroll
  for (int i = 0; i < ROWS; i++)
    if (first + i < T) rows[i] = load_bits<W>(y + (first + i) * ldy + j);
#pragma unroll
  for (int i = 0; i < ROWS; i++) {
    if (first + i >= T) continue;
    float x[W];
    unpack(rows[i], x);
#pragma unroll
    for (int k = 0; k < W; k++) x[k] = x[k] < 0 ? 0 : x[k];
    store<W>(y + (first + i) * ldy + j, x);
  }
}

template <int W>
static __global__ void __launch_bounds__(THREADS) backward(int64_t T, int64_t f, int pieces, bf16* y, int64_t ldy, const bf16* dy, int64_t lddy) {
  const int64_t first = (int64_t)(blockIdx.x / pieces) * ROWS, j = ((int64_t)(blockIdx.x % pieces) * blockDim.x + threadIdx.x) * W;
  if (j >= f) return;
  Bits<W> rows[ROWS], slopes[ROWS];
#pragma unroll
  for (int i = 0; i < ROWS; i++) {
    if (first + i >= T) continue;
    rows[i] = load_bits<W>(y + (first + i) * ldy + j);
    slopes[i] = load_bits<W>(dy + (first + i) * lddy + j);
  }
#pragma unroll
  for (int i = 0; i < ROWS; i++) {
    if (first + i >= T) continue;
    float x[W], g[W];
    unpack(rows[i], x);
    unpack(slopes[i], g);
#pragma unroll
    for (int k = 0; k < W; k++) g[k] = x[k] <= 0 ? 0 : g[k];
    store<W>(y + (first + i) * ldy + j, g);
  }
}

// Threads of a block and blocks of a row, such that the last block of a row is nearly as full as the others.
struct Blocks {
  int threads, count;
};
static Blocks divide(int64_t vectors) {
  const int64_t count = ceil_div(vectors, THREADS);
  return {round_to_warps(ceil_div(vectors, count)), (int)count};
}

cudaError_t relu_forward(const Launch& on, int64_t T, int64_t f, bf16* y, int64_t ldy) {
  if (T == 0 || f == 0) return cudaSuccess;
  const bool wide = f % 8 == 0 && aligned16(y, ldy);
  const Blocks pieces = divide(wide ? f / 8 : f);
  const unsigned grid = (unsigned)(ceil_div(T, ROWS) * pieces.count);
  if (wide)
    forward<8><<<grid, pieces.threads, 0, on.stream>>>(T, f, pieces.count, y, ldy);
  else
    forward<1><<<grid, pieces.threads, 0, on.stream>>>(T, f, pieces.count, y, ldy);
  return cudaGetLastError();
}

cudaError_t relu_backward(const Launch& on, int64_t T, int64_t f, bf16* y, int64_t ldy, const bf16* dy, int64_t lddy) {
  if (T == 0 || f == 0) return cudaSuccess;
  const bool wide = f % 8 == 0 && aligned16(y, ldy) && aligned16(dy, lddy);
  const Blocks pieces = divide(wide ? f / 8 : f);
  const unsigned grid = (unsigned)(ceil_div(T, ROWS) * pieces.count);
  if (wide)
    backward<8><<<grid, pieces.threads, 0, on.stream>>>(T, f, pieces.count, y, ldy, dy, lddy);
  else
    backward<1><<<grid, pieces.threads, 0, on.stream>>>(T, f, pieces.count, y, ldy, dy, lddy);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace metalora
