// convert.cu: element types.
#include <cuda_fp16.h>

#include <type_traits>

#include "../../ffi/metalora.h"
#include "math.cuh"

namespace metalora {
namespace cuda {

static const int THREADS = 256;

// W elements of any of the three types as floats; f16 and bf16 become f32 exactly.
template <int W, typename T>
static __device__ __forceinline__ void read(const T* p, float (&x)[W]) {
  if constexpr (sizeof(T) == 2 && !std::is_same<T, bf16>::value) {
    const Bits<W> bits = *reinterpret_cast<const Bits<W>*>(p);
    const __half* halves = reinterpret_cast<const __half*>(&bits);
#pragma unroll
    for (int i = 0; i < W; i++) x[i] = __half2float(halves[i]);
  } else {
    load<W>(p, x);
  }
}

// A block takes one of `pieces` parts of a row.
template <int W, typename From, typename To>
static __global__ void __launch_bounds__(THREADS) convert(int64_t cols, int64_t pieces, const From* src, int64_t ld_src, To* dst,
                                                          int64_t ld_dst) {
  const int64_t i = blockIdx.x / pieces, j = ((int64_t)(blockIdx.x % pieces) * THREADS + threadIdx.x) * W;
  if (j >= cols) return;
  const From* from = src + i * ld_src + j;
  To* to = dst + i * ld_dst + j;
  if constexpr (std::is_same<From, bf16>::value && std::is_same<To, bf16>::value) {
    store_bits<W>(to, load_bits<W>(from));  // a copy keeps the bits of a NaN
  } else {
    float x[W];
    read<W>(from, x);
    store<W>(to, x);
  }
}

template <typename From, typename To>
static cudaError_t convert_as(const Launch& on, int64_t rows, int64_t cols, const void* src, int64_t ld_src, void* dst, int64_t ld_dst) {
  if (ld_src == cols && ld_dst == cols) cols *= rows, rows = 1;
  if (rows == 1) ld_src = ld_dst = 0;
  const bool wide = cols % 8 == 0 && aligned16(src, ld_src, sizeof(From)) && aligned16(dst, ld_dst, sizeof(To));
  const int64_t pieces = ceil_div(cols, (wide ? 8 : 1) * THREADS);
  const unsigned grid = (unsigned)(rows * pieces);
  if (wide)
    convert<8><<<grid, THREADS, 0, on.stream>>>(cols, pieces, (const From*)src, ld_src, (To*)dst, ld_dst);
  else
    convert<1><<<grid, THREADS, 0, on.stream>>>(cols, pieces, (const From*)src, ld_src, (To*)dst, ld_dst);
  return cudaGetLastError();
}

cudaError_t convert_2d(const Launch& on, int64_t rows, int64_t cols, const void* src, int32_t src_dtype, int64_t ld_src, void* dst,
                       int32_t dst_dtype, int64_t ld_dst) {
  if (rows == 0 || cols == 0) return cudaSuccess;
  if (dst_dtype != ML_F32 && dst_dtype != ML_BF16) return cudaErrorInvalidValue;
  const bool f32 = dst_dtype == ML_F32;
  switch (src_dtype) {
    case ML_F32:
      return (f32 ? convert_as<float, float> : convert_as<float, bf16>)(on, rows, cols, src, ld_src, dst, ld_dst);
    case ML_BF16:
      return (f32 ? convert_as<bf16, float> : convert_as<bf16, bf16>)(on, rows, cols, src, ld_src, dst, ld_dst);
    case ML_F16:
      return (f32 ? convert_as<__half, float> : convert_as<__half, bf16>)(on, rows, cols, src, ld_src, dst, ld_dst);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace cuda
}  // namespace metalora
