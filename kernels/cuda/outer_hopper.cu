// outer_hopper.cu: segment_outers (segment.cu) with Hopper's bulk copies and matrix instructions.
//
// Reading the wide sides once is the limit. A block owns 64 columns of a wide side for each of its multiplying warpgroups and up to 128 of
// the narrow one. Stages of DEPTH rows of both pass through a ring in shared memory, where one more warp copies them, and each warpgroup
// multiplies [64 wide] x [narrow], summing over rows: neither side is transposed, wgmma turns both as it reads them. Factors of rows are
// multiplied into the narrow side there, while the products of the stage before are under way. The products of a list share a launch, each
// with tiles as narrow as its own narrow side. The rows of a segment are shared out over the blocks of a cluster, whose sums meet in a
// fixed order.
//
// A stage is a whole box of the tensor map. The last one of a segment ends with the segment's last row, so that no copy reads behind it; its
// rows that belong to the stage before, or to the sample before, become zeros on the chip.
//
// For sm_90a alone: hopper_outer_fits says no elsewhere.
#include <type_traits>

#include "narrow_wgmma.h"
#include "outer.cuh"
#include "tensor_map.h"

namespace metalora {
namespace cuda {
namespace {

constexpr int MOST_COLUMNS = 128;  // of a narrow side, in one tile
constexpr int BARRIERS = 16;       // bytes of a stage's barriers
// Bytes of dynamic shared memory with which two blocks fit on a multiprocessor (228 KiB, of which every block takes 1 KiB more).
constexpr int SHARED = 113 * 1024;

template <int WGS>
struct Tile {
  static constexpr int WT = 64 * WGS, MULTIPLYING = 128 * WGS, THREADS = MULTIPLYING + WARP;
  static constexpr int PANEL = 64 * DEPTH * 2, WIDE = WGS * PANEL;  // bytes of a stage of 64 columns; of the wide side's
  static constexpr int FACTORS = 2 * MULTIPLYING * 4;               // bytes of factors of rows: two lots of one a thread
  static constexpr int LEAST_STAGES = 3;
  static_assert((SHARED - FACTORS) / (WIDE + MOST_COLUMNS * DEPTH * 2 + BARRIERS) >= LEAST_STAGES, "");
};

struct Product : Outer {
  int columns;  // of the narrow side that a tile has: 32, 64, 96 or 128
  CUtensorMap wide_map, narrow_map;
};

struct Products {
  Product items[MOST_OUTERS];
  const int32_t* cu;
  int64_t out_stride;
  float beta;
  int count, split;         // split: blocks of a cluster
  int stage, stages, ring;  // bytes of a stage; stages of the ring; its bytes. Behind it the stages' barriers, and factors of rows
  unsigned tiles;           // of one segment
};
static_assert(sizeof(Products) <= 32764, "");  // what a kernel may be given, by drivers of CUDA 12.1 and newer

// Columns of a panel of a narrow tile of NT columns, in the swizzle of its width.
__host__ __device__ constexpr int panel_of(int NT) { return NT % 64 ? 32 : 64; }

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// What one block does: stages `first` .. first + count of the rows begin .. end, with the columns from wide_at and narrow_at on.
struct Work {
  int rank, segment, begin, end, first, count, wide_at, narrow_at;
  // First row of a stage's box, and how many rows of it come before the stage.
  __device__ int row(int i) const { return min(begin + (first + i + 1) * DEPTH, end) - DEPTH; }
  __device__ int before(int i) const { return begin + (first + i) * DEPTH - row(i); }
};

// For the arrival and the release of each stage.
struct Barriers {
  uint64_t *full, *empty;
  __device__ Barriers(const Products& all, uint8_t* memory) : full((uint64_t*)(memory + all.ring)), empty(full + all.stages) {}
  __device__ float* end(const Products& all) const { return (float*)(empty + all.stages); }
};

template <int WGS, int NT>
__device__ __forceinline__ void copy_stages(const Products& all, const Product& o, const Work& work, uint8_t* memory) {
  using T = Tile<WGS>;
  constexpr int PANEL = panel_of(NT);
  const Barriers barriers(all, memory);
  int stage = 0, parity = 0;  // parity flips with every round of the ring
  for (int i = 0; i < work.count; i++) {
    uint8_t* to = memory + stage * all.stage;
    uint64_t* full = barriers.full + stage;
    const int row = work.row(i);
    barrier_wait(barriers.empty + stage, parity ^ 1);
    barrier_expect(full, T::WIDE + NT * DEPTH * 2);
#pragma unroll
    for (int g = 0; g < WGS; g++) copy_box(to + g * T::PANEL, &o.wide_map, work.wide_at + g * 64, row, full);
#pragma unroll
    for (int n = 0; n < NT; n += PANEL) copy_box(to + T::WIDE + n * DEPTH * 2, &o.narrow_map, work.narrow_at + n, row, full);
    if (++stage == all.stages) stage = 0, parity ^= 1;
  }
}

template <int WGS, int NT>
__device__ __forceinline__ void sum_tile(const Products& all, const Outer& o, const Work& work, uint8_t* memory) {
  using T = Tile<WGS>;
  constexpr int PANEL = panel_of(NT), UNITS = NT / 8 * DEPTH / T::MULTIPLYING;  // UNITS of 16 bytes of a narrow tile are a thread's
  const Barriers barriers(all, memory);
  const int thread = threadIdx.x, warp = __shfl_sync(ALL_LANES, thread / WARP, 0), lane = thread % WARP;
  const auto row_of = [&](int unit) { return (unit * T::MULTIPLYING + thread) / (PANEL / 8) % DEPTH; };

  // Factors of rows come through registers (a bulk copy would have to begin on the 16-byte grid, as segments need not): those of the next
  // MULTIPLYING rows, one a thread, are on their way while the rows before are multiplied.
  constexpr int LOT = T::MULTIPLYING / DEPTH;  // stages with as many rows
  float* factors = barriers.end(all);
  float next = 0;
  const auto load_factor = [&](int lot) {
    const int row = work.begin + work.first * DEPTH + lot * T::MULTIPLYING + thread;
    next = row < work.end ? o.row_scale[row] : 0;
  };
  if (o.row_scale) {
    load_factor(0);
    factors[thread] = next;
    load_factor(1);
    named_sync(1, T::MULTIPLYING);
  }

  float d[NT / 2] = {};
  hold(d);
  int stage = 0, parity = 0, last = 0;  // last: the stage whose products may still be under way
  for (int i = 0; i < work.count; i++) {
    uint8_t* wide = memory + stage * all.stage;
    uint4* narrow = (uint4*)(wide + T::WIDE) + thread;  // unit u of this thread is MULTIPLYING u further on
    const int before = work.before(i);
    barrier_wait(barriers.full + stage, parity);
    if (o.row_scale || before > 0) {
      if (o.row_scale) {
        if (i % LOT == 0) {
          const int lot = i / LOT + 1;
          factors[lot % 2 * T::MULTIPLYING + thread] = next;
          load_factor(lot + 1);
        }
        const float* here = factors + i * DEPTH % (2 * T::MULTIPLYING);
        uint4 x[UNITS];
        float factor[UNITS];
#pragma unroll
        for (int unit = 0; unit < UNITS; unit++) {
          x[unit] = narrow[unit * T::MULTIPLYING];
          factor[unit] = here[max(row_of(unit) - before, 0)];  // rows before the stage: any, they become zeros
        }
#pragma unroll
        for (int unit = 0; unit < UNITS; unit++) {
          const float2 f = make_float2(factor[unit], factor[unit]);
          narrow[unit * T::MULTIPLYING] =
              make_uint4(scale2(x[unit].x, f), scale2(x[unit].y, f), scale2(x[unit].z, f), scale2(x[unit].w, f));
        }
      }
      if (before > 0) {
        for (int unit = 0; unit < UNITS; unit++)
          if (row_of(unit) < before) narrow[unit * T::MULTIPLYING] = make_uint4(0, 0, 0, 0);
        uint4* panel = (uint4*)(wide + warp / 4 * T::PANEL);
        for (int unit = thread % 128; unit < before * 8; unit += 128) panel[unit] = make_uint4(0, 0, 0, 0);
      }
      fence_async();
      named_sync(1, T::MULTIPLYING);
    }
    wgmma_fence();
    const uint64_t left = describe_down<64>(wide + warp / 4 * T::PANEL), right = describe_down<PANEL>(wide + T::WIDE);
#pragma unroll
    for (int k = 0; k < DEPTH / 16; k++) wgmma_add<1, 1>(d, left + k * 128, right + k * PANEL * 2);
    wgmma_commit();
    wgmma_wait<1>();
    if (i > 0 && lane == 0) barrier_arrive(barriers.empty + last);
    last = stage;
    if (++stage == all.stages) stage = 0, parity ^= 1;
  }
  wgmma_wait<0>();
  hold(d);

  // Nobody reads the ring any more: sums take its place, in lines as they lie in `out`. From here on named barriers alone: racecheck loses
  // a __syncthreads() behind one (tests/gpu/hand_over.cu). Both pitches let a warp store its fragments without bank conflicts.
  constexpr int STRAIGHT_PITCH = T::WT + 4, TURNED_PITCH = NT + 8;
  static_assert(4 * T::WT * TURNED_PITCH <= T::LEAST_STAGES * (T::WIDE + NT * DEPTH * 2), "");
  static_assert(4 * NT * STRAIGHT_PITCH <= T::LEAST_STAGES * (T::WIDE + NT * DEPTH * 2), "");
  float* sums = (float*)memory;
  named_sync(1, T::MULTIPLYING);
  const int row = warp * 16 + lane / 4, column = lane % 4 * 2;  // of the wide side; of the narrow one
#pragma unroll
  for (int j = 0; j < NT / 8; j++)
#pragma unroll
    for (int k = 0; k < 2; k++) {
      const float x = d[4 * j + 2 * k], y = d[4 * j + 2 * k + 1];
      if (o.turned) {
        *(float2*)(sums + (row + 8 * k) * TURNED_PITCH + j * 8 + column) = make_float2(x, y);
      } else {
        float* to = sums + (j * 8 + column) * STRAIGHT_PITCH + row + 8 * k;
        to[0] = x, to[STRAIGHT_PITCH] = y;
      }
    }
  if (all.split > 1)
    sums_are_there(all.split);
  else
    named_sync(1, T::MULTIPLYING);

  TileEnd end = {o.alpha, all.beta, o.column_scale, o.vectors, all.split};
  if (end.column_scale) end.column_scale += o.turned ? work.narrow_at : work.wide_at;
  const int wide_left = (int)min(o.wide_count - work.wide_at, (int64_t)T::WT);
  const int narrow_left = (int)min(o.narrow_count - work.narrow_at, (int64_t)NT);
  float* out = o.out + (int64_t)work.segment * all.out_stride;
  if (o.turned)
    write_tile<T::WT, NT, TURNED_PITCH, T::MULTIPLYING>(end, sums, work.rank, wide_left, narrow_left,
                                                        out + work.wide_at * o.narrow_count + work.narrow_at, o.narrow_count);
  else
    write_tile<NT, T::WT, STRAIGHT_PITCH, T::MULTIPLYING>(end, sums, work.rank, narrow_left, wide_left,
                                                          out + work.narrow_at * o.wide_count + work.wide_at, o.wide_count);
  sums_were_read(all.split);
}
#endif

template <int WGS>
__global__ void __launch_bounds__(Tile<WGS>::THREADS, 2) outer_kernel(const __grid_constant__ Products all) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using T = Tile<WGS>;
  extern __shared__ __align__(1024) uint8_t memory[];
  unsigned block = blockIdx.x;
  Work work;
  work.rank = (int)(block % all.split);
  block /= all.split;
  work.segment = (int)(block / all.tiles);
  unsigned tile = block % all.tiles;
  const Product& o = all.items[item_of(all.items, all.count, tile)];
  tile -= o.before;
  // Blocks that read the same wide columns run side by side: they find them in the cache.
  work.narrow_at = (int)(tile % o.narrow_tiles) * o.columns;
  work.wide_at = (int)(tile / o.narrow_tiles) * T::WT;
  if (threadIdx.x == 0) {
    prefetch_map(&o.wide_map);
    prefetch_map(&o.narrow_map);
    const Barriers barriers(all, memory);
    for (int i = 0; i < all.stages; i++) {
      barrier_init(barriers.full + i, 1);
      barrier_init(barriers.empty + i, WGS * 4);
    }
    fence_async();
  }
  __syncthreads();
  await_last_kernel();
  work.begin = all.cu[work.segment], work.end = all.cu[work.segment + 1];
  const int64_t stages = (work.end - work.begin + DEPTH - 1) / DEPTH;
  work.first = (int)(stages * work.rank / all.split);
  work.count = (int)(stages * (work.rank + 1) / all.split) - work.first;

  const int warp = __shfl_sync(ALL_LANES, (int)threadIdx.x / WARP, 0), lane = threadIdx.x % WARP;
  const auto run = [&](auto columns) {
    constexpr int NT = decltype(columns)::value;
    if (warp < WGS * 4)
      sum_tile<WGS, NT>(all, o, work, memory);
    else if (lane == 0)
      copy_stages<WGS, NT>(all, o, work, memory);
  };
  switch (o.columns) {
    case 32: return run(std::integral_constant<int, 32>());
    case 64: return run(std::integral_constant<int, 64>());
    case 96: return run(std::integral_constant<int, 96>());
    default: return run(std::integral_constant<int, 128>());
  }
#else
  __trap();  // built without sm_90a
#endif
}

// How a list is shared out: warpgroups that multiply in a block (1 or 2), and blocks of a cluster (a power of two).
struct Plan {
  int groups, split;
};

int64_t tiles_of(const Products& all, int groups) {
  int64_t tiles = 0;
  for (int i = 0; i < all.count; i++) tiles += all.items[i].narrow_tiles * ceil_div(all.items[i].wide_count, 64 * groups);
  return tiles;
}

// Blocks for every multiprocessor, or nearly; two a multiprocessor where that comes without clusters of more than two: these must lie within
// a part of the device, and what is left over in each part stays idle. How many rows there are is not known here.
// Microseconds of `gpu-kernels time linear_gradients` on an H200 (132 multiprocessors), builds of cb862e7, whose factors of rows were copied
// with their stage, with a fixed plan, (groups, split):
//
//                                   (2, 1)  (1, 1)  (2, 2)  (1, 2)  (2, 4)  (1, 4)  (1, 8)
//   qkv of 4096, 8,192 rows           93.6    83.6    74.4    75.4    84.9    92.0   103.7
//   o of 4096, 8,192 rows             39.5    36.6    36.2    36.9    42.0    42.1    50.1
//   gate and up of 4096, 8,192 rows   54.2    44.0    32.0    26.2    27.0    33.8    35.5
//   qkv of 576, 4,096 rows            43.1    28.3    25.0    18.0    15.6    12.1    10.5
//
// Of several samples, whose rows are fewer, narrower tiles are better than more blocks a cluster (`time outer`): [64, 4096] of 1,600 rows and
// 4 samples took 8.5 in plan (1, 1), 9.6 in (2, 1) and 10.0 in (2, 2).
Plan plan_of(const Launch& on, int64_t S, const Products& all) {
  const int64_t wide = S * tiles_of(all, 2), narrow = S * tiles_of(all, 1), enough = on.units * 9 / 10;
  if (wide > on.units) return {2, 1};
  if (S > 1 && narrow >= enough) return {1, 1};
  if (2 * wide >= enough) return {2, 2};
  if (2 * narrow >= enough) return {1, 2};
  return {1, 4 * narrow >= enough ? 4 : 8};
}

template <int WGS>
cudaError_t launch(const Launch& on, int64_t S, Products& all, int split) {
  using T = Tile<WGS>;
  int most = 0;  // columns of a narrow tile
  all.tiles = 0;
  for (int i = 0; i < all.count; i++) {
    Product& o = all.items[i];
    o.before = all.tiles;
    all.tiles += o.narrow_tiles * (unsigned)ceil_div(o.wide_count, T::WT);
    if (o.columns > most) most = o.columns;
  }
  all.split = split;
  all.stage = T::WIDE + most * DEPTH * 2;
  all.stages = (SHARED - T::FACTORS) / (all.stage + BARRIERS);
  all.ring = all.stages * all.stage;
  return launch_clusters(on, outer_kernel<WGS>, S * all.tiles * split, T::THREADS, all.ring + all.stages * BARRIERS + T::FACTORS,
                         split, true, all);
}

}  // namespace

bool hopper_outer_fits(const Launch& on, const Outer& o) {
  if (on.arch != 90 || o.wide_count > INT32_MAX / 2 || !tensor_map_encoder()) return false;
  return aligned16(o.wide, o.ld_wide) && aligned16(o.narrow, o.ld_narrow);
}

cudaError_t hopper_outers(const Launch& on, int64_t S, const int32_t* cu, const Outer* products, int count, float beta, int64_t out_stride) {
  Products all = {};
  all.cu = cu, all.beta = beta, all.out_stride = out_stride, all.count = count;
  for (int i = 0; i < count; i++) {
    Product& o = all.items[i];
    (Outer&)o = products[i];
    o.narrow_tiles = (unsigned)ceil_div(o.narrow_count, MOST_COLUMNS);
    o.columns = (int)ceil_div(ceil_div(o.narrow_count, o.narrow_tiles), 32) * 32;
    // No copy reads behind the last row of a segment: how many rows there are the maps need not know.
    cudaError_t status = describe_boxes(&o.wide_map, o.wide, INT32_MAX, o.wide_count, o.ld_wide, DEPTH, 64);
    if (status == cudaSuccess)
      status = describe_boxes(&o.narrow_map, o.narrow, INT32_MAX, o.narrow_count, o.ld_narrow, DEPTH, panel_of(o.columns));
    if (status != cudaSuccess) return status;
  }
  const Plan plan = plan_of(on, S, all);
  return plan.groups == 1 ? launch<1>(on, S, all, plan.split) : launch<2>(on, S, all, plan.split);
}

}  // namespace cuda
}  // namespace metalora
