// attention_hopper_forward.h: the forward on Hopper (FlashAttention-3: Shah et al. 2024, arXiv:2407.08608): the softmax of one tile of
// keys runs while the tensor cores multiply the next scores and the last values.
#pragma once
#include "attention_hopper.h"

namespace metalora {
namespace cuda {

// Shared memory: Q [64 WGS, D], then stages of K and of V [KEYS, D].
template <int D, int KEYS, int STAGES, int WGS>
struct ForwardShared {
  uint8_t q[tile_bytes(64 * WGS, D)];
  uint8_t k[STAGES][tile_bytes(KEYS, D)];
  uint8_t v[STAGES][tile_bytes(KEYS, D)];
  Ring<STAGES, WGS> keys, values;
  uint64_t queries;
};

// Running maximum (of the unscaled scores) and sum of a thread's two rows.
struct Softmax {
  float max[2], sum[2];

  // s becomes exp2(scale (s - max)); returns in shrink what earlier sums must be multiplied by. Lanes keep sums of their own columns.
  template <int N>
  __device__ __forceinline__ void step(float (&s)[N], float scale, float (&shrink)[2]) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float now = max[r];
#pragma unroll
      for (int i = 0; i < N; i += 4) now = fmaxf(now, fmaxf(s[i + 2 * r], s[i + 2 * r + 1]));
      now = fmaxf(now, __shfl_xor_sync(~0u, now, 1));
      now = fmaxf(now, __shfl_xor_sync(~0u, now, 2));
      const float shift = now == -INFINITY ? 0.0f : now * scale;
      shrink[r] = power_of_two(max[r] * scale - shift);
      max[r] = now;
      float total = 0;
#pragma unroll
      for (int i = 0; i < N; i += 4) {
        s[i + 2 * r] = power_of_two(fmaf(s[i + 2 * r], scale, -shift));
        s[i + 2 * r + 1] = power_of_two(fmaf(s[i + 2 * r + 1], scale, -shift));
        total += s[i + 2 * r] + s[i + 2 * r + 1];
      }
      sum[r] = sum[r] * shrink[r] + total;
    }
  }
};

template <int D, int KEYS, int STAGES, int WGS>
__global__ void __launch_bounds__(128 + WGS * 128, 1)
    hopper_forward_kernel(const __grid_constant__ CUtensorMap map_q, const __grid_constant__ CUtensorMap map_k,
                          const __grid_constant__ CUtensorMap map_v, const __grid_constant__ Attention a, const int tiles,
                          const int together) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr int TILE = 64 * WGS;
  extern __shared__ __align__(1024) uint8_t memory[];
  auto& shared = *(ForwardShared<D, KEYS, STAGES, WGS>*)memory;
  const int warpgroup = warpgroup_index();
  if (threadIdx.x == 0) {
    prefetch_map(&map_q);
    prefetch_map(&map_k);
    prefetch_map(&map_v);
    shared.keys.init(1);
    shared.values.init(1);
    barrier_init(&shared.queries, 1);
    fence_async();
  }
  if (warpgroup == 0 && threadIdx.x >= 32) zero_forward_behind(a, blockIdx.x, gridDim.x, threadIdx.x - 32, 96);
  if (a.S == 0) return;
  const Block block = block_of(a.S * a.H, a.H, tiles, together, true);
  const Segment segment = segment_of(a, block.segment);
  const int first = block.tile * TILE, rows = min(TILE, segment.length - first);
  if (rows <= 0) return;
  const int keys = min(segment.keys, first + rows), n = (keys + KEYS - 1) / KEYS;  // tiles of keys, visited from the last
  __syncthreads();

  if (warpgroup == 0) {
    give_registers<registers_of(WGS).give>();
    if (threadIdx.x != 0) return;
    const int column = block.head * D, kv_column = block.head / (a.H / a.K) * D;
    barrier_expect(&shared.queries, sizeof(shared.q));
    copy_tile<D>(shared.q, &map_q, column, segment.start + first, TILE, &shared.queries);
    for (int i = 0; i < n; i++) {
      const int stage = i % STAGES;
      const int64_t row = segment.start + (n - 1 - i) * KEYS;
      shared.keys.wait_empty(i);
      barrier_expect(&shared.keys.full[stage], sizeof(shared.k[0]));
      copy_tile<D>(shared.k[stage], &map_k, kv_column, row, KEYS, &shared.keys.full[stage]);
      shared.values.wait_empty(i);
      barrier_expect(&shared.values.full[stage], sizeof(shared.v[0]));
      copy_tile<D>(shared.v[stage], &map_v, kv_column, row, KEYS, &shared.values.full[stage]);
    }
  } else {
    take_registers<registers_of(WGS).take>();
    const int consumer = warpgroup - 1, lane = threadIdx.x % 32;
    const int top = first + consumer * 64, row = top + threadIdx.x / 32 % 4 * 16 + lane / 4;  // and row + 8
    const float scale = a.scale * LOG2E;
    const uint64_t q = describe_rows(shared.q + consumer * 64 * 128);
    Softmax softmax = {{-INFINITY, -INFINITY}, {}};
    float o[D / 2] = {};
    barrier_wait(&shared.queries, 0);

    // Scores of tile i, counted from the last one. A tile is masked when its last key lies behind some row or behind all keys.
    const auto start = [&](float(&s)[KEYS / 2], int i) {
      shared.keys.wait_full(i);
      wgmma_fence();
      start_scores<D, KEYS>(s, q, TILE, describe_rows(shared.k[i % STAGES]), KEYS);
    };
    const auto mask = [&](float(&s)[KEYS / 2], int i) {
      const int k0 = (n - 1 - i) * KEYS;
      if (k0 + KEYS > min(keys, top + 1)) mask_scores<KEYS>(s, row, k0, keys);
    };
    // The first tile visited is the last of the segment's: its values behind the last key are zeroed.
    const auto reach_values = [&](int i) {
      shared.values.wait_full(i);
      if (i == 0 && n * KEYS > keys) {
        zero_tail<D, WGS>(shared.v[0], keys - (n - 1) * KEYS, KEYS);
        fence_async();
        named_sync(1, WGS * 128);
      }
    };
    // Warpgroups take turns, in a ring of barriers, to start their products: so the softmax of one falls under the products of the others.
    // Each has one turn for every tile but the first.
    if (n > 1 && consumer == WGS - 1) named_arrive(4, 256);
    const auto take_turn = [&] { named_sync(4 + consumer, 256); };
    const auto pass_turn = [&](int i) {
      if (consumer < WGS - 1 || i < n - 1) named_arrive(4 + (consumer + 1) % WGS, 256);
    };
    int i0 = 0;
    for (; (n - 1 - i0) * KEYS > top + 63; i0++) {  // tiles that no row of this warpgroup sees; never the last
      shared.keys.wait_full(i0);
      shared.keys.release(i0);
      reach_values(i0);
      shared.values.release(i0);
      take_turn();
      pass_turn(i0 + 1);
    }
    if (n > 0) {
      float shrink[2];
      uint32_t p[KEYS / 16][4];
      {
        float s[KEYS / 2];
        start(s, i0);
        wgmma_wait<0>();
        hold(s);
        shared.keys.release(i0);
        mask(s, i0);
        softmax.step(s, scale, shrink);
        to_operand<KEYS>(p, s);
      }
      reach_values(i0);
      for (int i = i0 + 1; i < n; i++) {
        float s[KEYS / 2];
        take_turn();
        start(s, i);
        if (i > i0 + 1) shared.values.wait_full(i - 1);
        hold(o);
        hold(p);
        wgmma_fence();
        start_sum<D, KEYS>(o, p, describe_columns(shared.v[(i - 1) % STAGES], KEYS));
        pass_turn(i);
        wgmma_wait<1>();
        hold(s);
        shared.keys.release(i);
        mask(s, i);
        softmax.step(s, scale, shrink);
        wgmma_wait<0>();
        hold(o);
        hold(p);
        shared.values.release(i - 1);
#pragma unroll
        for (int j = 0; j < D / 2; j++) o[j] *= shrink[j / 2 % 2];
        to_operand<KEYS>(p, s);
      }
      if (n - 1 > i0) shared.values.wait_full(n - 1);
      hold(o);
      hold(p);
      wgmma_fence();
      start_sum<D, KEYS>(o, p, describe_columns(shared.v[(n - 1) % STAGES], KEYS));
      wgmma_wait<0>();
      hold(o);
      hold(p);
    }

    float share[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float sum = softmax.sum[r];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      share[r] = sum == 0.0f ? 0.0f : 1.0f / sum;  // 0 only when no key exists: kv_len = 0
      if (lane % 4 == 0 && row + r * 8 < segment.length)
        a.lse[(segment.start + row + r * 8) * a.H + block.head] = softmax.max[r] * a.scale + logf(sum);
    }
    named_sync(8 + consumer, 128);  // all warps of this warpgroup have read Q
    store_tile<D, WGS>(shared.q, consumer * 64, o, share[0], share[1],
                  a.out + (segment.start + top) * a.ldo + (int64_t)block.head * D, a.ldo, segment.length - top);
  }
#else
  __trap();  // built without sm_90a
#endif
}

}  // namespace cuda
}  // namespace metalora
