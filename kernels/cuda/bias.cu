// bias.cu: a bias laid into the rows of a result before the product is added to it.
#include "math.cuh"

namespace metalora {
namespace cuda {

// One block takes a piece of many rows, a thread W columns of them.
static const int THREADS = 256, ROWS = 32;

template <int W>
static __global__ void __launch_bounds__(THREADS) broadcast(int64_t T, int64_t N, const float* row, bf16* out, int64_t ldo) {
  const int64_t n = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * W;
  if (n >= N) return;
  float x[W];
  load<W>(row + n, x);
  const Bits<W> bits = pack(x);
  const int64_t first = (int64_t)blockIdx.y * ROWS, end = first + ROWS < T ? first + ROWS : T;
  for (int64_t t = first; t < end; t++) store_bits<W>(out + t * ldo + n, bits);
}

cudaError_t broadcast_row(const Launch& on, int64_t T, int64_t N, const float* row, bf16* out, int64_t ldo) {
  const bool wide = N % 8 == 0 && aligned16(row) && aligned16(out, ldo);
  const int64_t vectors = wide ? N / 8 : N;
  const int threads = vectors < THREADS ? round_to_warps(vectors) : THREADS;
  const dim3 grid((unsigned)ceil_div(vectors, threads), (unsigned)ceil_div(T, ROWS));
  if (wide)
    broadcast<8><<<grid, threads, 0, on.stream>>>(T, N, row, out, ldo);
  else
    broadcast<1><<<grid, threads, 0, on.stream>>>(T, N, row, out, ldo);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace metalora
