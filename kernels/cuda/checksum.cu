// checksum.cu: one number from the bits of a matrix, to tell whether two computations gave the same. Integer sums have no order.
#include "kernels.h"

namespace metalora {
namespace cuda {

static __global__ void __launch_bounds__(256)
    checksum_kernel(int64_t rows, int64_t cols, const unsigned char* x, int64_t ld, int size, unsigned long long* sum) {
  unsigned long long own = 0;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    for (int64_t column = threadIdx.x; column < cols; column += blockDim.x) {
      const unsigned char* at = x + (row * ld + column) * size;
      const unsigned long long bits = size == 2 ? *reinterpret_cast<const uint16_t*>(at) : *reinterpret_cast<const uint32_t*>(at);
      // A multiplicative hash of place and bits: values that change places change the sum.
      own += (bits + 1) * (0x9E3779B97F4A7C15ull * (unsigned long long)(row * cols + column) | 1);
    }
  }
  for (int offset = 16; offset > 0; offset /= 2) own += __shfl_xor_sync(0xffffffff, own, offset);
  if (threadIdx.x % 32 == 0) atomicAdd(sum, own);
}

cudaError_t checksum(const Launch& on, int64_t rows, int64_t cols, const void* x, int64_t ld, int size, unsigned long long* sum) {
  const cudaError_t error = cudaMemsetAsync(sum, 0, sizeof *sum, on.stream);
  if (error != cudaSuccess) return error;
  const int64_t most = 16 * (int64_t)on.units;
  checksum_kernel<<<(unsigned)(rows < most ? rows : most), 256, 0, on.stream>>>(rows, cols, (const unsigned char*)x, ld, size, sum);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace metalora
