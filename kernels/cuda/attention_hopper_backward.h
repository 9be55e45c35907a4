// attention_hopper_backward.h: the backward on Hopper, as two kernels that each compute the scores and dout v^T again: dk and dv by
// tiles of keys, dq by tiles of queries. Both keep probabilities and their gradients in registers: as accumulators they already stand
// where the left operand of the next product must stand.
#pragma once
#include "attention_hopper.h"

namespace metalora {
namespace cuda {

constexpr int BACKWARD_WGS = 2, BACKWARD_TILE = 64 * BACKWARD_WGS;

// ---- dk, dv ----------------------------------------------------------------------------------------------------------

// Shared memory: K, V [BACKWARD_TILE, D], then stages of Q and dout [QUERIES, D] with lse (in powers of two) and delta [QUERIES].
template <int D, int QUERIES, int STAGES>
struct KeyShared {
  uint8_t k[tile_bytes(BACKWARD_TILE, D)];
  uint8_t v[tile_bytes(BACKWARD_TILE, D)];
  uint8_t q[STAGES][tile_bytes(QUERIES, D)];
  uint8_t g[STAGES][tile_bytes(QUERIES, D)];
  float lse[STAGES][QUERIES];
  float delta[STAGES][QUERIES];
  Ring<STAGES, BACKWARD_WGS, true> queries;  // lse and delta are stored by a warp
  uint64_t keys;
};

// A block owns a tile of keys of one key/value head and walks over the query heads that read it and their tiles of queries.
template <int D, int QUERIES, int STAGES>
__global__ void __launch_bounds__(128 + BACKWARD_WGS * 128, 1)
    hopper_dkv_kernel(const __grid_constant__ CUtensorMap map_q, const __grid_constant__ CUtensorMap map_k,
                      const __grid_constant__ CUtensorMap map_v, const __grid_constant__ CUtensorMap map_g,
                      const __grid_constant__ Attention a, const int tiles, const int together) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  static_assert(STAGES > 2 || QUERIES >= BACKWARD_TILE, "a skipped tile and its two neighbours need a stage each");
  // With D = 64 the consumers need less, and the warp that brings lse and delta spills with 24.
  constexpr Registers share = D == 64 ? Registers{40, 232} : registers_of(BACKWARD_WGS);
  extern __shared__ __align__(1024) uint8_t memory[];
  auto& shared = *(KeyShared<D, QUERIES, STAGES>*)memory;
  const int warpgroup = warpgroup_index(), group = a.H / a.K;
  if (threadIdx.x == 0) {
    prefetch_map(&map_q);
    prefetch_map(&map_k);
    prefetch_map(&map_v);
    prefetch_map(&map_g);
    shared.queries.init(1 + 32);
    barrier_init(&shared.keys, 1);
    fence_async();
  }
  const Block block = block_of(a.S * a.K, a.K, tiles, together, false);
  const Segment segment = segment_of(a, block.segment);
  const int first = block.tile * BACKWARD_TILE, rows = min(BACKWARD_TILE, segment.length - first);
  if (rows <= 0) return;
  const int per_head = (segment.length - first + QUERIES - 1) / QUERIES;
  const int n = first < segment.keys ? per_head * group : 0;  // all rows are padding: dk and dv are zero
  __syncthreads();

  if (warpgroup == 0) {
    give_registers<share.give>();
    if (threadIdx.x == 0) {
      barrier_expect(&shared.keys, sizeof(shared.k) + sizeof(shared.v));
      copy_tile<D>(shared.k, &map_k, block.head * D, segment.start + first, BACKWARD_TILE, &shared.keys);
      copy_tile<D>(shared.v, &map_v, block.head * D, segment.start + first, BACKWARD_TILE, &shared.keys);
      int head = block.head * group, tile = 0;
      for (int i = 0; i < n; i++) {
        const int stage = i % STAGES;
        const int64_t row = segment.start + first + tile * QUERIES;
        uint64_t* full = &shared.queries.full[stage];
        shared.queries.wait_empty(i);
        barrier_expect(full, sizeof(shared.q[0]) + sizeof(shared.g[0]));
        copy_tile<D>(shared.q[stage], &map_q, head * D, row, QUERIES, full);
        copy_tile<D>(shared.g[stage], &map_g, head * D, row, QUERIES, full);
        if (++tile == per_head) tile = 0, head++;
      }
    } else if (threadIdx.x / 32 == 1) {  // brings lse and delta, which stand one head apart
      await_last_kernel();
      release_next_kernel();  // dq needs delta and nothing of this kernel: it fills the multiprocessors that run out of work here
      const int lane = threadIdx.x % 32;
      int head = block.head * group, tile = 0;
      for (int i = 0; i < n; i++) {
        float lse[QUERIES / 32], delta[QUERIES / 32];
#pragma unroll
        for (int j = 0; j < QUERIES / 32; j++) {
          const int query = first + tile * QUERIES + j * 32 + lane;
          const bool real = query < segment.length;
          const int64_t at = (segment.start + query) * a.H + head;
          lse[j] = real ? a.lse[at] * LOG2E : INFINITY;  // of no row: its probabilities become 2^-inf = 0
          delta[j] = real ? a.delta[at] : 0.0f;
        }
        shared.queries.wait_empty(i);
#pragma unroll
        for (int j = 0; j < QUERIES / 32; j++) {
          shared.lse[i % STAGES][j * 32 + lane] = lse[j];
          shared.delta[i % STAGES][j * 32 + lane] = delta[j];
        }
        barrier_arrive(&shared.queries.full[i % STAGES]);
        if (++tile == per_head) tile = 0, head++;
      }
    }
  } else {
    take_registers<share.take>();
    const int consumer = warpgroup - 1, lane = threadIdx.x % 32;
    const int top = first + consumer * 64, row = top + threadIdx.x / 32 % 4 * 16 + lane / 4;  // the key; and row + 8
    const float scale = a.scale * LOG2E;
    const uint64_t k = describe_rows(shared.k + consumer * 64 * 128), v = describe_rows(shared.v + consumer * 64 * 128);
    constexpr bool HOLD_KV = D == 64;  // D = 128 leaves no registers for it. 32 layers of 4 x 2048: 18.6 -> 18.0 ms (one H200)
    uint32_t held_k[D / 16][4], held_v[D / 16][4];
    float dk[D / 2] = {}, dv[D / 2] = {};
    barrier_wait(&shared.keys, 0);
    if constexpr (HOLD_KV) {
      load_operand<D>(held_k, shared.k, consumer * 64, BACKWARD_TILE);
      load_operand<D>(held_v, shared.v, consumer * 64, BACKWARD_TILE);
    }
    const auto start_s = [&](float(&s)[QUERIES / 2], int stage) {
      if constexpr (HOLD_KV)
        start_scores<D, QUERIES>(s, held_k, describe_rows(shared.q[stage]), QUERIES);
      else
        start_scores<D, QUERIES>(s, k, BACKWARD_TILE, describe_rows(shared.q[stage]), QUERIES);
    };
    const auto start_dp = [&](float(&dp)[QUERIES / 2], int stage) {
      if constexpr (HOLD_KV)
        start_scores<D, QUERIES>(dp, held_v, describe_rows(shared.g[stage]), QUERIES);
      else
        start_scores<D, QUERIES>(dp, v, BACKWARD_TILE, describe_rows(shared.g[stage]), QUERIES);
    };

    // Waits for the first tile from `i` on that some key of this warpgroup sees; q0 becomes its first query.
    int tile = 0, q0 = 0;
    const auto reach = [&](int i) {
      for (; i < n; i++) {
        q0 = first + tile * QUERIES;
        if (++tile == per_head) tile = 0;
        shared.queries.wait_full(i);
        if (q0 + QUERIES > segment.length) {
          zero_tail<D, BACKWARD_WGS>(shared.q[i % STAGES], segment.length - q0, QUERIES);
          zero_tail<D, BACKWARD_WGS>(shared.g[i % STAGES], segment.length - q0, QUERIES);
          fence_async();
          named_sync(1, BACKWARD_WGS * 128);
        }
        if (q0 + QUERIES > top) break;
        shared.queries.release(i);
      }
      return i;
    };
    // Scores of the next tile are multiplied behind dk of this one, so that no wait finds the tensor cores without work; nothing is in
    // flight where the loop turns, which the compiler would answer by making every product synchronous.
    int i = reach(0);
    if (i < n) {
      float s[QUERIES / 2];
      wgmma_fence();
      start_s(s, i % STAGES);
      wgmma_wait<0>();
      hold(s);
      while (i < n) {
        const int stage = i % STAGES;
        float dp[QUERIES / 2];
        wgmma_fence();
        start_dp(dp, stage);
        if (q0 < top + 63) {  // on the diagonal: hide keys behind their query
#pragma unroll
          for (int e = 0; e < QUERIES / 2; e++)
            if (row + e / 2 % 2 * 8 > q0 + e / 4 * 8 + lane % 4 * 2 + e % 2) s[e] = -INFINITY;
        }
#pragma unroll
        for (int j = 0; j < QUERIES / 8; j++) {
          const float2 lse = *(const float2*)&shared.lse[stage][j * 8 + lane % 4 * 2];
#pragma unroll
          for (int e = 0; e < 4; e++) s[4 * j + e] = power_of_two(fmaf(s[4 * j + e], scale, e % 2 ? -lse.y : -lse.x));
        }
        uint32_t p[QUERIES / 16][4], ds[QUERIES / 16][4];
        to_operand<QUERIES>(p, s);
        wgmma_wait<0>();
        hold(dp);
        hold(dv);
        hold(p);
        wgmma_fence();
        start_sum<D, QUERIES>(dv, p, describe_columns(shared.g[stage], QUERIES));
#pragma unroll
        for (int j = 0; j < QUERIES / 8; j++) {
          const float2 delta = *(const float2*)&shared.delta[stage][j * 8 + lane % 4 * 2];
#pragma unroll
          for (int e = 0; e < 4; e++) dp[4 * j + e] = s[4 * j + e] * (dp[4 * j + e] - (e % 2 ? delta.y : delta.x));
        }
        to_operand<QUERIES>(ds, dp);
        const int next = reach(i + 1), next_stage = next < n ? next % STAGES : stage;  // the last scores are computed in vain
        hold(dk);
        hold(ds);
        wgmma_fence();
        start_sum<D, QUERIES>(dk, ds, describe_columns(shared.q[stage], QUERIES));
        start_s(s, next_stage);
        wgmma_wait<0>();
        hold(dk);
        hold(dv);
        hold(p);
        hold(ds);
        hold(s);
        shared.queries.release(i);
        i = next;
      }
    }
#pragma unroll
    for (int r = 0; r < 2; r++)
      if (row + r * 8 >= segment.keys)  // padding: its rows of K and V may hold anything
#pragma unroll
        for (int j = 0; j < D / 8; j++) dk[4 * j + 2 * r] = dk[4 * j + 2 * r + 1] = dv[4 * j + 2 * r] = dv[4 * j + 2 * r + 1] = 0.0f;
    int position[2] = {};
    if (a.cos) {
#pragma unroll
      for (int r = 0; r < 2; r++)
        if (row + r * 8 < segment.length) position[r] = a.positions[segment.start + row + r * 8];
    }
    named_sync(8 + consumer, 128);  // all warps of this warpgroup have read K and V
    const int64_t at = (segment.start + top) * a.lddqkv + (int64_t)block.head * D;
    store_tile<D, BACKWARD_WGS>(shared.v, consumer * 64, dv, 1.0f, 1.0f, a.dv + at, a.lddqkv, segment.length - top);
    if (a.cos) rotate_back<D>(dk, a, position);
    store_tile<D, BACKWARD_WGS>(shared.k, consumer * 64, dk, a.scale, a.scale, a.dk + at, a.lddqkv, segment.length - top);
  }
#else
  __trap();  // built without sm_90a
#endif
}

// ---- dq --------------------------------------------------------------------------------------------------------------

// Shared memory: Q, dout [BACKWARD_TILE, D], then stages of K and V [KEYS, D].
template <int D, int KEYS, int STAGES>
struct QueryShared {
  uint8_t q[tile_bytes(BACKWARD_TILE, D)];
  uint8_t g[tile_bytes(BACKWARD_TILE, D)];
  uint8_t k[STAGES][tile_bytes(KEYS, D)];
  uint8_t v[STAGES][tile_bytes(KEYS, D)];
  Ring<STAGES, BACKWARD_WGS> keys;
  uint64_t queries;
};

// A block owns a tile of queries of one head and walks over the keys that it sees.
template <int D, int KEYS, int STAGES>
__global__ void __launch_bounds__(128 + BACKWARD_WGS * 128, 1)
    hopper_dq_kernel(const __grid_constant__ CUtensorMap map_q, const __grid_constant__ CUtensorMap map_k,
                     const __grid_constant__ CUtensorMap map_v, const __grid_constant__ CUtensorMap map_g,
                     const __grid_constant__ Attention a, const int tiles, const int together) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  static_assert(KEYS >= 64, "a warpgroup may skip the last tile alone");
  extern __shared__ __align__(1024) uint8_t memory[];
  auto& shared = *(QueryShared<D, KEYS, STAGES>*)memory;
  const int warpgroup = warpgroup_index();
  if (threadIdx.x == 0) {
    prefetch_map(&map_q);
    prefetch_map(&map_k);
    prefetch_map(&map_v);
    prefetch_map(&map_g);
    shared.keys.init(1);
    barrier_init(&shared.queries, 1);
    fence_async();
  }
  const Block block = block_of(a.S * a.H, a.H, tiles, together, true);
  const Segment segment = segment_of(a, block.segment);
  const int first = block.tile * BACKWARD_TILE, rows = min(BACKWARD_TILE, segment.length - first);
  const bool last = blockIdx.x == gridDim.x - 1 && threadIdx.x == 0;
  if (rows <= 0) {
    if (last) await_last_kernel();
    return;
  }
  const int keys = min(segment.keys, first + rows), n = (keys + KEYS - 1) / KEYS;
  __syncthreads();

  if (warpgroup == 0) {
    give_registers<registers_of(BACKWARD_WGS).give>();
    if (threadIdx.x != 0) return;
    const int column = block.head * D, kv_column = block.head / (a.H / a.K) * D;
    barrier_expect(&shared.queries, sizeof(shared.q) + sizeof(shared.g));
    copy_tile<D>(shared.q, &map_q, column, segment.start + first, BACKWARD_TILE, &shared.queries);
    copy_tile<D>(shared.g, &map_g, column, segment.start + first, BACKWARD_TILE, &shared.queries);
    for (int i = 0; i < n; i++) {
      const int stage = i % STAGES;
      uint64_t* full = &shared.keys.full[stage];
      shared.keys.wait_empty(i);
      barrier_expect(full, sizeof(shared.k[0]) + sizeof(shared.v[0]));
      copy_tile<D>(shared.k[stage], &map_k, kv_column, segment.start + i * KEYS, KEYS, full);
      copy_tile<D>(shared.v[stage], &map_v, kv_column, segment.start + i * KEYS, KEYS, full);
    }
    if (last) await_last_kernel();  // who waits for this kernel waits for dk and dv too
  } else {
    take_registers<registers_of(BACKWARD_WGS).take>();
    const int consumer = warpgroup - 1, lane = threadIdx.x % 32;
    const int top = first + consumer * 64, row = top + threadIdx.x / 32 % 4 * 16 + lane / 4;  // and row + 8
    const float scale = a.scale * LOG2E;
    const uint64_t q = describe_rows(shared.q + consumer * 64 * 128), g = describe_rows(shared.g + consumer * 64 * 128);
    float lse[2], delta[2];
    int position[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const bool real = row + r * 8 < segment.length;
      const int64_t t = segment.start + row + r * 8, at = t * a.H + block.head;
      lse[r] = real ? a.lse[at] * LOG2E : 0.0f;
      delta[r] = real ? a.delta[at] : 0.0f;
      position[r] = real && a.cos ? a.positions[t] : 0;
    }
    float dq[D / 2] = {};
    barrier_wait(&shared.queries, 0);

    // Waits for tile i, and zeros what it holds behind the last key.
    const auto reach = [&](int i) {
      shared.keys.wait_full(i);
      if (i * KEYS + KEYS > keys) {
        zero_tail<D, BACKWARD_WGS>(shared.k[i % STAGES], keys - i * KEYS, KEYS);
        zero_tail<D, BACKWARD_WGS>(shared.v[i % STAGES], keys - i * KEYS, KEYS);
        fence_async();
        named_sync(1, BACKWARD_WGS * 128);
      }
    };
    // Scores become probabilities.
    const auto normalize = [&](float(&s)[KEYS / 2], int k0) {
      if (k0 + KEYS > min(keys, top + 1)) mask_scores<KEYS>(s, row, k0, keys);
#pragma unroll
      for (int e = 0; e < KEYS / 2; e++) s[e] = power_of_two(fmaf(s[e], scale, -lse[e / 2 % 2]));
    };
    // In order: dp of this tile, scores of the next, dq of this one; the gradients of the scores are computed while the second
    // runs and the probabilities of the next tile while the third runs.
    const int seen = min(n, (top + 63) / KEYS + 1);  // tiles that some row of this warpgroup sees
    if (n > 0) {
      float p[KEYS / 2];
      reach(0);
      wgmma_fence();
      start_scores<D, KEYS>(p, q, BACKWARD_TILE, describe_rows(shared.k[0]), KEYS);
      wgmma_wait<0>();
      hold(p);
      normalize(p, 0);
      for (int i = 0; i < seen; i++) {
        const int stage = i % STAGES;
        float dp[KEYS / 2], s[KEYS / 2];
        uint32_t ds[KEYS / 16][4];
        wgmma_fence();
        start_scores<D, KEYS>(dp, g, BACKWARD_TILE, describe_rows(shared.v[stage]), KEYS);
        if (i + 1 < n) reach(i + 1);
        wgmma_fence();
        const int next_stage = i + 1 < n ? (i + 1) % STAGES : stage;  // the last scores are computed in vain
        start_scores<D, KEYS>(s, q, BACKWARD_TILE, describe_rows(shared.k[next_stage]), KEYS);
        wgmma_wait<1>();
        hold(dp);
#pragma unroll
        for (int e = 0; e < KEYS / 2; e++) dp[e] = p[e] * (dp[e] - delta[e / 2 % 2]);
        to_operand<KEYS>(ds, dp);
        hold(dq);
        hold(ds);
        wgmma_fence();
        start_sum<D, KEYS>(dq, ds, describe_columns(shared.k[stage], KEYS));
        wgmma_wait<1>();
        hold(s);
        normalize(s, (i + 1) * KEYS);
        wgmma_wait<0>();
        hold(dq);
        hold(ds);
        shared.keys.release(i);
#pragma unroll
        for (int e = 0; e < KEYS / 2; e++) p[e] = s[e];
      }
    }
    if (a.cos) rotate_back<D>(dq, a, position);
    named_sync(8 + consumer, 128);  // all warps of this warpgroup have read Q
    store_tile<D, BACKWARD_WGS>(shared.q, consumer * 64, dq, a.scale, a.scale,
                  a.dq + (segment.start + top) * a.lddqkv + (int64_t)block.head * D, a.lddqkv, segment.length - top);
  }
#else
  __trap();  // built without sm_90a
#endif
}

}  // namespace cuda
}  // namespace metalora
