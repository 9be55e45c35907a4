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

// One access a thread: rows may be far shorter than a block.
template <typename Access>
static __global__ void __launch_bounds__(THREADS) copy(int64_t count, uint32_t per_row, const char* src, int64_t pitch_src, char* dst,
                                                       int64_t pitch_dst) {
  const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
  if (i >= count) return;
  const int64_t row = i / per_row, at = i % per_row * (int64_t)sizeof(Access);
  *reinterpret_cast<Access*>(dst + row * pitch_dst + at) = *reinterpret_cast<const Access*>(src + row * pitch_src + at);
}

cudaError_t copy_2d(const Launch& on, int64_t rows, int64_t bytes, const void* src, int64_t pitch_src, void* dst, int64_t pitch_dst) {
  const auto launch = [&](auto access) {
    const int64_t count = rows * (bytes / (int64_t)sizeof access);
    copy<decltype(access)><<<(unsigned)ceil_div(count, THREADS), THREADS, 0, on.stream>>>(
        count, (uint32_t)(bytes / (int64_t)sizeof access), (const char*)src, pitch_src, (char*)dst, pitch_dst);
  };
  if (rows == 0 || bytes == 0) return cudaSuccess;
  const uint64_t all = (uint64_t)(uintptr_t)src | (uintptr_t)dst | (uint64_t)bytes | (uint64_t)pitch_src | (uint64_t)pitch_dst;
  if (all % 16 == 0)
    launch(uint4{});
  else if (all % 4 == 0)
    launch(uint32_t{});
  else
    launch(uint16_t{});
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace metalora
