// cluster.cuh: sums that the blocks of a cluster have in shared memory, each its own at the same place, added in the order of the blocks'
// ranks: the same bits in every run.
#pragma once
#include <cooperative_groups.h>

#include "math.cuh"

namespace metalora {
namespace cuda {

constexpr int MOST_SPLIT = 8;  // blocks of a cluster

// Four numbers from `at` on, of `split` blocks.
static __device__ __forceinline__ void add_shares(float* at, int split, float (&sum)[4]) {
#if __CUDA_ARCH__ >= 900
  if (split > 1) {
    float parts[MOST_SPLIT][4];  // all on their way before the first is added
#pragma unroll
    for (int k = 0; k < MOST_SPLIT; k++)
      if (k < split) load<4>(cooperative_groups::this_cluster().map_shared_rank(at, k), parts[k]);
#pragma unroll
    for (int k = 0; k < MOST_SPLIT; k++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        if (k < split) sum[i] = k == 0 ? parts[0][i] : sum[i] + parts[k][i];
    return;
  }
#endif
  load<4>(at, sum);
}

// Between the sums of a cluster's blocks and their use, and behind it: others read this block's sums. Nothing is published behind it,
// so nobody waits for stores to global memory (as cluster.sync() would).
static __device__ __forceinline__ void sums_are_there(int split) {
#if __CUDA_ARCH__ >= 900
  if (split > 1) cooperative_groups::this_cluster().sync();
#endif
}
static __device__ __forceinline__ void sums_were_read(int split) {
#if __CUDA_ARCH__ >= 900
  if (split > 1) asm volatile("barrier.cluster.arrive.relaxed;\n\tbarrier.cluster.wait;" ::: "memory");
#endif
}

}  // namespace cuda
}  // namespace metalora
