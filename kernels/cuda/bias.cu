// bias.cu: what a product is added to where the product itself cannot take it: a bias, a matrix, or both.
#include "kernels.h"

namespace metalora {
namespace cuda {

// One block takes COLUMNS columns of many rows.
static constexpr int COLUMNS = 256, ROWS = 32;

static __global__ void add_row_kernel(int64_t T, int64_t N, const bf16* x, int64_t ldx, const bf16* __restrict__ row, bf16* out, int64_t ldo) {
  const int64_t n = (int64_t)blockIdx.x * COLUMNS + threadIdx.x;
  if (n >= N) return;
  const float value = row ? __bfloat162float(row[n]) : 0;
  const int64_t first = (int64_t)blockIdx.y * ROWS, end = first + ROWS < T ? first + ROWS : T;
  for (int64_t t = first; t < end; t++) out[t * ldo + n] = __float2bfloat16(x ? __bfloat162float(x[t * ldx + n]) + value : value);
}

cudaError_t add_row(const Launch& on, int64_t T, int64_t N, const bf16* x, int64_t ldx, const bf16* row, bf16* out, int64_t ldo) {
  if (x == out && ldx == ldo && !row) return cudaSuccess;
  const dim3 grid((unsigned)((N + COLUMNS - 1) / COLUMNS), (unsigned)((T + ROWS - 1) / ROWS));
  add_row_kernel<<<grid, COLUMNS, 0, on.stream>>>(T, N, x, ldx, row, out, ldo);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace metalora
