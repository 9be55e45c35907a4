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

// Map of a bf16 matrix x [rows, columns], rows ld apart, in boxes of `high` rows by `wide` columns (32 or 64), which lie in shared memory in
// the swizzle of their width. Bytes that a copy begins with lie on the 16-byte grid: its first column is a multiple of 8.
inline cudaError_t describe_boxes(CUtensorMap* map, const void* x, int64_t rows, int64_t columns, int64_t ld, int high, int wide) {
  const cuuint64_t sizes[2] = {(cuuint64_t)columns, (cuuint64_t)rows}, strides[1] = {(cuuint64_t)ld * 2};
  const cuuint32_t box[2] = {(cuuint32_t)wide, (cuuint32_t)high}, steps[2] = {1, 1};
  const CUresult status = tensor_map_encoder()(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(x), sizes, strides, box, steps,
                                               CU_TENSOR_MAP_INTERLEAVE_NONE,
                                               wide == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
                                               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return status == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace cuda
}  // namespace metalora
