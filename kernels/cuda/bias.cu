// bias.cu: a bias laid into the rows of a result before the product is added to it.
#include "kernels.h"

namespace metalora {
namespace cuda {

// One block takes COLUMNS columns of many rows.
static constexpr int COLUMNS = 256, ROWS = 32;

static __global__ void broadcast_row_kernel(int64_t T, int64_t N, const float* __restrict__ row, bf16* __restrict__ out, int64_t ldo) {
  const int64_t n = (int64_t)blockIdx.x * COLUMNS + threadIdx.x;
  if (n >= N) return;
  const bf16 value = __float2bfloat16(row[n]);
  const int64_t first = (int64_t)blockIdx.y * ROWS, end = first + ROWS < T ? first + ROWS : T;
  for (int64_t t = first; t < end; t++) out[t * ldo + n] = value;
}

cudaError_t broadcast_row(const Launch& on, int64_t T, int64_t N, const float* row, bf16* out, int64_t ldo) {
  const dim3 grid((unsigned)((N + COLUMNS - 1) / COLUMNS), (unsigned)((T + ROWS - 1) / ROWS));
  broadcast_row_kernel<<<grid, COLUMNS, 0, on.stream>>>(T, N, row, out, ldo);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace metalora
