// kernels.cu: checks the CUDA kernels other than attention and the products against references in double, then times them.
//
//   make gpu-harness
//   build/gpu-kernels [check [part parts] | time [part of a name]]
#include "kernels_check.cuh"
#include "kernels_reduce_check.cuh"
#include "kernels_time.cuh"

int main(int count, char** arguments) {
  cudaDeviceProp device;
  CUDA_OK(cudaGetDeviceProperties(&device, 0));
  metalora::cuda::Launch on = {};
  CUDA_OK(cudaStreamCreate(&on.stream));
  on.arch = device.major * 10 + device.minor;
  on.units = device.multiProcessorCount;
  printf("%s, compute capability %d.%d, %d multiprocessors\n", device.name, device.major, device.minor, on.units);
  const std::string what = count > 1 ? arguments[1] : "";
  if (what != "time") {
    harness::read_part(count, arguments);
    check_rows(on);
    check_reductions(on);
    printf("%d checks, %d failed\n", harness::checks, harness::failures);
  }
  if (what != "check") time_kernels(on, count > 2 ? arguments[2] : "");
  return harness::failures > 0;
}
