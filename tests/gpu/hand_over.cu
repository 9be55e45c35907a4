// hand_over.cu: which orders compute-sanitizer's racecheck counts where warps hand shared memory over through mbarriers.
//
//   make build/gpu-hand_over
//   compute-sanitizer --tool racecheck build/gpu-hand_over one       one lane arrives for its warp, behind __syncwarp()
//   compute-sanitizer --tool racecheck build/gpu-hand_over every     every lane arrives
//   compute-sanitizer --tool racecheck build/gpu-hand_over mixed     a named barrier of some warps, then __syncthreads()
//   compute-sanitizer --tool racecheck build/gpu-hand_over named     named barriers alone
//
// `one` and `mixed` are reported, `every` and `named` are not (CUDA 13.0, H200); all give the right sum.
#include <cstdio>
#include <string>
#include <vector>

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

constexpr int MULTIPLYING = 32 * CONSUMERS, THREADS = MULTIPLYING + 32, BLOCKS = 512;

// One lane of the last warp hands stages over to the others, who then read what their neighbours wrote: behind named barriers alone, or,
// with the last warp, behind a barrier of all threads that follows a named one.
template <bool NAMED>
__global__ void meet(float* sums) {
  __shared__ uint64_t full[STAGES], empty[STAGES];
  __shared__ float data[MULTIPLYING];
  if (threadIdx.x == 0)
    for (int i = 0; i < STAGES; i++) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], MULTIPLYING);
    }
  __syncthreads();
  if (threadIdx.x >= MULTIPLYING) {
    if (threadIdx.x == MULTIPLYING)
      for (int i = 0; i < ROUNDS; i++) {
        barrier_wait(&empty[i % STAGES], (i / STAGES & 1) ^ 1);
        barrier_arrive(&full[i % STAGES]);
      }
    __syncwarp();
    if (NAMED) return;
  } else {
    for (int i = 0; i < ROUNDS; i++) {
      barrier_wait(&full[i % STAGES], i / STAGES & 1);
      barrier_arrive(&empty[i % STAGES]);
    }
    named_sync(1, MULTIPLYING);
    data[threadIdx.x] = (float)threadIdx.x;
  }
  if (NAMED)
    named_sync(1, MULTIPLYING);
  else
    __syncthreads();
  sums[blockIdx.x * THREADS + threadIdx.x] = data[(threadIdx.x + 32) % MULTIPLYING];
}

int main(int count, char** arguments) {
  const std::string what = count > 1 ? arguments[1] : "";
  if (what != "one" && what != "every" && what != "mixed" && what != "named") return printf("Which: one, every, mixed or named?\n"), 2;
  std::vector<float> host(BLOCKS * THREADS);
  float* sums;
  cudaMalloc(&sums, host.size() * sizeof(float));
  cudaMemset(sums, 0, host.size() * sizeof(float));
  double expected = CONSUMERS * (ROUNDS * 32.0) * (ROUNDS * 32 - 1) / 2;
  if (what == "one") hand_over<false><<<1, THREADS>>>(sums);
  if (what == "every") hand_over<true><<<1, THREADS>>>(sums);
  if (what == "mixed" || what == "named") {
    const bool named = what == "named";
    named ? meet<true><<<BLOCKS, THREADS>>>(sums) : meet<false><<<BLOCKS, THREADS>>>(sums);
    expected = BLOCKS * (MULTIPLYING * (MULTIPLYING - 1) / 2.0 + (named ? 0 : 32 * 32 + 31 * 32 / 2));  // 32 .. 63 twice
  }
  const cudaError_t status = cudaMemcpy(host.data(), sums, host.size() * sizeof(float), cudaMemcpyDeviceToHost);
  double sum = 0;
  for (float each : host) sum += each;
  printf("%s: %g, expected %g\n", cudaGetErrorString(status), sum, expected);
  return status != cudaSuccess || sum != expected;
}
