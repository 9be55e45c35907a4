// cuda_device.h: one GPU behind an ml_ctx.
#pragma once
#include <cuda_runtime.h>

#include "../../kernels/cuda/kernels.h"
#include "backend.h"
#include "cuda_library.h"

namespace metalora {
struct Products;  // cuda_products.cpp
}

struct ml_ctx : metalora::Context {
  int device = 0;
  cudaStream_t stream = nullptr;
  metalora::cuda::Launch on = {};
  const metalora::Cublas* cublas = nullptr;
  metalora::Cublas::Handle handle = nullptr;
  void* workspace = nullptr;     // of cuBLAS: a fixed one, so that results repeat and graphs can be captured
  char* scratch = nullptr;       // partial sums of reductions
  int32_t* fault = nullptr;      // device word that a kernel sets when an input is impossible, see synchronize()
  int32_t* fault_host = nullptr;  // pinned
  void* staging[2] = {};         // pinned, for uploads
  cudaEvent_t staged[2] = {};
  int next_staging = 0;
  void* landing = nullptr;       // device buffer of uploads that must be converted, as large as one staging buffer
  cudaEvent_t marks[ML_MARKS] = {};
  bool capturing = false;
  metalora::Products* products = nullptr;  // algorithms chosen so far
  bool tuning = true;                      // METALORA_TUNE=0: the library's own choice, for comparison
  bool slow = false;             // METALORA_SYNCHRONOUS: wait after every operator, so that a fault names it

  ml_ctx() : Context("on CUDA", ML_BF16, false, false) {}
};

namespace metalora {

constexpr size_t MIB = 1 << 20;
constexpr size_t WORKSPACE_BYTES = 32 * MIB;  // what NVIDIA recommends for Hopper
constexpr size_t SCRATCH_BYTES = 8 * MIB;
constexpr size_t STAGING_BYTES = 16 * MIB;

// Frees an allocation, on the GPU or in the host.
void free_anywhere(void* data);
// What is free on the current GPU, in MiB: "11 of 16384 MiB are free".
struct Left {
  unsigned long long free = 0, total = 0;
  Left();
};

// Tells a CUDA error to the call: "CUDA says 'an illegal memory access was encountered' (700)". True when there is none.
bool succeeded(Call& call, ml_ctx& ctx, cudaError_t error);
// After a launch: the error, if any; with METALORA_SYNCHRONOUS also what the operator itself ran into.
void launched(Call& call, ml_ctx& ctx, cudaError_t error);
// Makes this context's GPU the thread's; every entry into the backend starts with it.
bool enter(Call& call, ml_ctx& ctx);

}  // namespace metalora
