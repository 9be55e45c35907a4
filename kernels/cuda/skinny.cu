// skinny.cu: products with a narrow result, c [M, N] = a [M, K] times b with N up to 256: what LoRA's factors are multiplied by.
//
// Reading `a` once is the limit, so the work is shared out for memory: a block owns `rows` rows of c and all its columns; the blocks
// of a cluster share out K; within a block one warp copies stages of 64 columns of a (and of b) with the bulk tensor copy engine, and
// a warpgroup for each 64 rows multiplies them (wgmma). The partial sums of a cluster meet in shared memory and are added in the order
// of the blocks' ranks: the same bits in every run. Copies fill with zeros what lies outside a and b, so any M, N and K will do.
//
// Hopper alone (sm_90a): skinny_fits says no elsewhere.
#include "cluster.cuh"
#include "narrow_wgmma.h"
#include "tensor_map.h"

namespace metalora {
namespace cuda {
namespace {

constexpr int64_t SHORTEST = 2048;  // least K that is taken
// Bytes of dynamic shared memory with which one block or two fit on a multiprocessor (228 KiB, of which every block takes 1 KiB more).
constexpr int SHARED_ALONE = 227 * 1024, SHARED_BESIDE = 113 * 1024;

// Sizes for a block of 64 WGS rows of c and NT columns.
template <int WGS, int NT, bool ROWS_ARE_K>
struct Tile {
  static constexpr int ROWS = 64 * WGS, MULTIPLYING = 128 * WGS, THREADS = MULTIPLYING + WARP;
  // b [K, N] lies in shared memory as panels of this many columns, in the swizzle of its width (64 or 128 bytes).
  static constexpr int PANEL = NT % 64 ? 32 : 64;
  static constexpr int A = ROWS * DEPTH * 2, B = NT * DEPTH * 2, STAGE = A + B;  // bytes
  // Partial sums [ROWS, NT] f32, rows PITCH floats apart: a warp stores its fragments without bank conflicts.
  static constexpr int PITCH = NT + 8, SUMS = ROWS * PITCH * 4;
  static constexpr int MOST_STAGES = 16, BARRIERS = MOST_STAGES * 16;
  static constexpr bool BESIDE = NT <= 128;  // registers let two blocks share a multiprocessor
};

struct Skinny {
  int M, N, steps;  // steps: stages of K
  bf16* c;
  int64_t ldc;
  int split, stages, ring;  // blocks of a cluster; stages of the ring; its bytes
};

// How a product is shared out: rows of a block (64 or 128), blocks of a cluster (1 .. 8), and whether a block takes the shared memory of
// a multiprocessor alone (more stages) or leaves room for a second one.
struct Plan {
  int rows, split;
  bool alone;
};

// ---- the kernel ----------------------------------------------------------------------------------------------------------------

template <int WGS, int NT, bool ROWS_ARE_K>
__global__ void __launch_bounds__(Tile<WGS, NT, ROWS_ARE_K>::THREADS, Tile<WGS, NT, ROWS_ARE_K>::BESIDE ? 2 : 1)
    skinny_kernel(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b, const __grid_constant__ Skinny s) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using T = Tile<WGS, NT, ROWS_ARE_K>;
  extern __shared__ __align__(1024) uint8_t memory[];
  uint64_t *full = (uint64_t*)(memory + s.ring), *empty = full + s.stages;
  const int warp = __shfl_sync(ALL_LANES, (int)threadIdx.x / WARP, 0), lane = threadIdx.x % WARP;
  const int rank = blockIdx.x % s.split, top = blockIdx.x / s.split * T::ROWS;
  const int first = (int)((int64_t)s.steps * rank / s.split), count = (int)((int64_t)s.steps * (rank + 1) / s.split) - first;
  if (threadIdx.x == 0) {
    prefetch_map(&map_a);
    prefetch_map(&map_b);
    for (int i = 0; i < s.stages; i++) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], WGS * 4);
    }
    fence_async();
  }
  __syncthreads();
  await_last_kernel();

  float* sums = (float*)memory;
  int stage = 0, parity = 0;  // parity flips with every round of the ring
  const auto advance = [&] {
    if (++stage == s.stages) stage = 0, parity ^= 1;
  };
  if (warp == WGS * 4) {
    if (lane == 0)
      for (int i = 0; i < count; i++) {
        uint8_t *a = memory + stage * T::STAGE, *b = a + T::A;
        const int k = (first + i) * DEPTH;
        barrier_wait(&empty[stage], parity ^ 1);
        barrier_expect(&full[stage], T::STAGE);
        copy_box(a, &map_a, k, top, &full[stage]);
        if constexpr (ROWS_ARE_K) {
#pragma unroll
          for (int n = 0; n < NT; n += T::PANEL) copy_box(b + n * DEPTH * 2, &map_b, n, k, &full[stage]);
        } else {
          copy_box(b, &map_b, k, 0, &full[stage]);
        }
        advance();
      }
    return;  // barriers among blocks do not wait for threads that have ended
  }
  float d[NT / 2] = {};
  hold(d);
  int before = 0;  // the stage whose products may still be under way
  for (int i = 0; i < count; i++) {
    const uint8_t *a = memory + stage * T::STAGE, *b = a + T::A;
    barrier_wait(&full[stage], parity);
    wgmma_fence();
    const uint64_t left = describe_across(a + warp / 4 * 64 * DEPTH * 2);
    const uint64_t right = ROWS_ARE_K ? describe_down<T::PANEL>(b) : describe_across(b);
#pragma unroll
    for (int k = 0; k < DEPTH / 16; k++) wgmma_add<ROWS_ARE_K>(d, left + k * 2, right + k * (ROWS_ARE_K ? T::PANEL * 2 : 2));
    wgmma_commit();
    wgmma_wait<1>();
    if (i > 0 && lane == 0) barrier_arrive(&empty[before]);
    before = stage;
    advance();
  }
  wgmma_wait<0>();
  hold(d);
  // Nobody reads the ring any more: sums take its place. From here on named barriers alone: racecheck loses a __syncthreads() behind
  // one (tests/gpu/hand_over.cu).
  named_sync(1, T::MULTIPLYING);
  float* mine = sums + (warp * 16 + lane / 4) * T::PITCH + lane % 4 * 2;
#pragma unroll
  for (int j = 0; j < NT / 8; j++) {
    *(float2*)(mine + j * 8) = make_float2(d[4 * j], d[4 * j + 1]);
    *(float2*)(mine + 8 * T::PITCH + j * 8) = make_float2(d[4 * j + 2], d[4 * j + 3]);
  }
  if (s.split > 1)
    sums_are_there(s.split);
  else
    named_sync(1, T::MULTIPLYING);

  // This block's share of the tile, 4 columns at a time.
  constexpr int ACROSS = NT / 4, ITEMS = T::ROWS * ACROSS;
  const int end = ITEMS * (rank + 1) / s.split;
  for (int e = ITEMS * rank / s.split + threadIdx.x; e < end; e += T::MULTIPLYING) {
    const int row = e / ACROSS, column = e % ACROSS * 4;
    if (top + row >= s.M || column >= s.N) continue;
    float sum[4];
    add_shares(sums + row * T::PITCH + column, s.split, sum);
    *(uint2*)(s.c + (top + row) * s.ldc + column) = make_uint2(pack2(sum[0], sum[1]), pack2(sum[2], sum[3]));
  }
  sums_were_read(s.split);
#else
  __trap();  // built without sm_90a
#endif
}

// ---- launchers -----------------------------------------------------------------------------------------------------------------

struct Operands {
  int64_t M, N, K;
  const bf16* a;
  int64_t lda;
  const bf16* b;
  int64_t ldb;
  bf16* c;
  int64_t ldc;
};

template <int WGS, int NT, bool ROWS_ARE_K>
cudaError_t launch(const Launch& on, const Operands& o, const Plan& plan) {
  using T = Tile<WGS, NT, ROWS_ARE_K>;
  CUtensorMap a, b;
  cudaError_t status = describe_boxes(&a, o.a, o.M, o.K, o.lda, T::ROWS, DEPTH);
  if (status == cudaSuccess)
    status = ROWS_ARE_K ? describe_boxes(&b, o.b, o.K, o.N, o.ldb, DEPTH, T::PANEL) : describe_boxes(&b, o.b, o.N, o.K, o.ldb, NT, DEPTH);
  if (status != cudaSuccess) return status;

  Skinny s = {(int)o.M, (int)o.N, (int)ceil_div(o.K, DEPTH), o.c, o.ldc, plan.split};
  s.stages = ((T::BESIDE && !plan.alone ? SHARED_BESIDE : SHARED_ALONE) - T::BARRIERS) / T::STAGE;
  if (s.stages > T::MOST_STAGES) s.stages = T::MOST_STAGES;
  s.ring = s.stages * T::STAGE > T::SUMS ? s.stages * T::STAGE : T::SUMS;
  return launch_clusters(on, skinny_kernel<WGS, NT, ROWS_ARE_K>, ceil_div(o.M, T::ROWS) * s.split, T::THREADS, s.ring + T::BARRIERS,
                         s.split, true, a, b, s);
}

template <int NT, bool ROWS_ARE_K>
cudaError_t choose_rows(const Launch& on, const Operands& o, const Plan& plan) {
  return plan.rows == 64 ? launch<1, NT, ROWS_ARE_K>(on, o, plan) : launch<2, NT, ROWS_ARE_K>(on, o, plan);
}

template <bool ROWS_ARE_K>
cudaError_t choose_columns(const Launch& on, const Operands& o, const Plan& plan) {
  if (o.N <= 32) return choose_rows<32, ROWS_ARE_K>(on, o, plan);
  if (o.N <= 64) return choose_rows<64, ROWS_ARE_K>(on, o, plan);
  if (o.N <= 96) return choose_rows<96, ROWS_ARE_K>(on, o, plan);
  if (o.N <= 128) return choose_rows<128, ROWS_ARE_K>(on, o, plan);
  if (o.N <= 192) return choose_rows<192, ROWS_ARE_K>(on, o, plan);
  return choose_rows<256, ROWS_ARE_K>(on, o, plan);
}

// Microseconds of tests/gpu/skinny.cu sweep on one H200 (132 multiprocessors), with operands that are not in L2:
//
// Rows: every block reads all of b, but with 64 rows fewer blocks share K: (1600, 96, 4096) took 8.0 with 64 rows and 4 blocks a cluster,
// 9.1 with 128 and 8; (8192, 96, 4096) 20.9 and 22.0. Where b is large, 128 rows are better: (8192, 96, 12288) 65 and 55.
// Split: clusters of 3 and more do not fill the device: (4096, 96, 576) took 5.6 with 64 clusters of 2 and 8.1 with 32 of 4.
// Alone: (8192, 96, 4096) took 20.9 alone and 23.7 beside, (1600, 32, 11008) 13.1 and 12.5.
Plan plan_of(const Launch& on, int64_t M, int64_t N, int64_t K) {
  Plan plan = {64, 1, false};
  if (N > 96 || (N > 64 && K > 6144) || ceil_div(M, 64) > 2 * on.units) plan.rows = 128;
  const int64_t tiles = ceil_div(M, plan.rows), steps = ceil_div(K, DEPTH);
  int64_t split = on.units * (plan.rows == 64 ? 8 : 6) / 10 / tiles;
  if (split < 2) split = tiles * 4 <= on.units * 3 ? 2 : 1;
  if (split > steps) split = steps;
  plan.split = (int)(split < MOST_SPLIT ? split : MOST_SPLIT);
  plan.alone = tiles * plan.split <= on.units && (plan.split == 1 || (N > 64 && steps > 8 * plan.split));
  return plan;
}

}  // namespace

// Whether skinny_product takes these arguments: chip, sizes, and the 16-byte grid (8-byte for c) that copies need. Sums that are short, or
// shorter than M, are left to cuBLAS, which is weak only where few rows make it split K. Microseconds there and here: (1600, 96, 4096) 9.0
// and 8.0, (1600, 32, 11008) 14.4 and 12.5, (8192, 64, 22016) 99 and 90; but (8192, 96, 4096) 20.2 and 20.9, (4096, 96, 1536) 6.2 and 7.6.
bool skinny_fits(const Launch& on, int64_t M, int64_t N, int64_t K, const bf16* a, int64_t lda, const bf16* b, int64_t ldb, bool rows_are_k,
                 const bf16* c, int64_t ldc) {
  if (on.arch != 90 || M < 1 || N < 8 || N > 256 || N % 8 != 0 || K < SHORTEST || K < M || K % 8 != 0) return false;
  if (M > INT32_MAX / 2 || K > INT32_MAX / 2 || ceil_div(M, 64) * MOST_SPLIT > INT32_MAX || !tensor_map_encoder()) return false;
  if (lda < K || ldb < (rows_are_k ? N : K) || ldc < N) return false;
  return aligned16(a, lda) && aligned16(b, ldb) && (uintptr_t)c % 8 == 0 && ldc % 4 == 0;
}

// c [M, N] = a [M, K] b with b [K, N] (rows_are_k) or [N, K]^T; sums in f32. Only where skinny_fits.
cudaError_t skinny_product(const Launch& on, int64_t M, int64_t N, int64_t K, const bf16* a, int64_t lda, const bf16* b, int64_t ldb,
                           bool rows_are_k, bf16* c, int64_t ldc) {
  const Operands o = {M, N, K, a, lda, b, ldb, c, ldc};
  const Plan plan = plan_of(on, M, N, K);
  return rows_are_k ? choose_columns<true>(on, o, plan) : choose_columns<false>(on, o, plan);
}

}  // namespace cuda
}  // namespace metalora
