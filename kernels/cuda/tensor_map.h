// tensor_map.h: the driver's encoder of tensor maps, which tell the bulk copy engine of Hopper how a matrix lies in memory.
#pragma once
#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime.h>

namespace metalora {
namespace cuda {

// NULL where the driver has none (before CUDA 12).
inline PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder() {
  static const PFN_cuTensorMapEncodeTiled_v12000 encoder = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
    if (status != cudaSuccess) cudaGetLastError();  // not an error of the caller's work
    return status == cudaSuccess && found == cudaDriverEntryPointSuccess ? (PFN_cuTensorMapEncodeTiled_v12000)entry : nullptr;
  }();
  return encoder;
}

// Map of a matrix x [rows, columns], rows `stride` bytes apart, in boxes of `high` rows by `wide` columns.
inline cudaError_t describe_matrix(CUtensorMap* map, CUtensorMapDataType type, const void* x, int64_t rows, int64_t columns, int64_t stride,
                                   int high, int wide, CUtensorMapSwizzle swizzle) {
  const cuuint64_t sizes[2] = {(cuuint64_t)columns, (cuuint64_t)rows}, strides[1] = {(cuuint64_t)stride};
  const cuuint32_t box[2] = {(cuuint32_t)wide, (cuuint32_t)high}, steps[2] = {1, 1};
  const CUresult status =
      tensor_map_encoder()(map, type, 2, const_cast<void*>(x), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return status == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}
// The same of bf16, rows ld apart, in boxes of 32 or 64 columns, which lie in shared memory in the swizzle of their width.
inline cudaError_t describe_boxes(CUtensorMap* map, const void* x, int64_t rows, int64_t columns, int64_t ld, int high, int wide) {
  return describe_matrix(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, x, rows, columns, ld * 2, high, wide,
                         wide == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B);
}
// `count` floats in a row, in boxes of `wide` of them.
inline cudaError_t describe_floats(CUtensorMap* map, const float* x, int64_t count, int wide) {
  return describe_matrix(map, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, x, 1, count, (count + 3) / 4 * 16, 1, wide, CU_TENSOR_MAP_SWIZZLE_NONE);
}

}  // namespace cuda
}  // namespace metalora
