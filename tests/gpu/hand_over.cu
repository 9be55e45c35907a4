// hand_over.cu: which orders compute-sanitizer's racecheck counts where warps hand shared memory over through mbarriers.
//
//   nvcc -std=c++17 -O2 -Ikernels/cuda -gencode arch=compute_90a,code=sm_90a -o hand_over tests/gpu/hand_over.cu
//   compute-sanitizer --tool racecheck ./hand_over one        one lane arrives for its warp, behind __syncwarp()
//   compute-sanitizer --tool racecheck ./hand_over every      every lane arrives
//
// Of a first version of this program the former was reported and the latter was not (CUDA 13.0, H100); both give the right sum.
#include <cstdio>
#include <cstring>

#include "attention_wgmma.h"

using namespace metalora::cuda;

constexpr int STAGES = 2, CONSUMERS = 8, ROUNDS = 16;

// Warp 0 writes 32 numbers a round, the others add up all of them.
template <bool EVERY>
__global__ void hand_over(float* sums) {
  __shared__ uint64_t full[STAGES], empty[STAGES];
  __shared__ float data[STAGES][32];
  if (threadIdx.x == 0)
    for (int i = 0; i < STAGES; i++) {
      barrier_init(&full[i], 32);
      barrier_init(&empty[i], EVERY ? 32 * CONSUMERS : CONSUMERS);
    }
  __syncthreads();
  const int lane = threadIdx.x % 32;
  float sum = 0;
  for (int i = 0; i < ROUNDS; i++) {
    const int stage = i % STAGES, round = i / STAGES & 1;
    if (threadIdx.x < 32) {
      barrier_wait(&empty[stage], round ^ 1);
      data[stage][lane] = (float)(i * 32 + lane);
      barrier_arrive(&full[stage]);
    } else {
      barrier_wait(&full[stage], round);
      sum += data[stage][(lane + 1) % 32];
      if (!EVERY) __syncwarp();
      if (EVERY || lane == 0) barrier_arrive(&empty[stage]);
    }
  }
  if (threadIdx.x >= 32) sums[threadIdx.x - 32] = sum;
}

int main(int count, char** arguments) {
  const bool every = count > 1 && strcmp(arguments[1], "every") == 0;
  float* sums;
  float host[32 * CONSUMERS];
  cudaMalloc(&sums, sizeof host);
  every ? hand_over<true><<<1, 32 + 32 * CONSUMERS>>>(sums) : hand_over<false><<<1, 32 + 32 * CONSUMERS>>>(sums);
  const cudaError_t status = cudaMemcpy(host, sums, sizeof host, cudaMemcpyDeviceToHost);
  double sum = 0;
  for (float each : host) sum += each;
  const int n = ROUNDS * 32;
  printf("%s: %g, expected %g\n", cudaGetErrorString(status), sum, CONSUMERS * n * (n - 1) / 2.0);
  return status != cudaSuccess || sum != CONSUMERS * n * (n - 1) / 2.0;
}
