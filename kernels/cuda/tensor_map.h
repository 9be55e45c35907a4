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

}  // namespace cuda
}  // namespace metalora
