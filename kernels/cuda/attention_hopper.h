// attention_hopper.h: what the forward and the backward of attention_hopper.cu share.
//
// A block is one producer warpgroup, which copies tiles to shared memory with the bulk tensor copy engine, and WGS consumer
// warpgroups of 64 rows each, which multiply. Stages pass between them through two mbarriers each: `full` (the bytes are there) and
// `empty` (every consumer warp has finished with them).
//
// Copies know nothing of segments: a tile may hold rows of the next segment or rows that nobody wrote. Where such rows would enter a
// sum (0 * NaN is NaN), the consumers zero them in shared memory first; elsewhere they only reach results that are not stored.
#pragma once
#include "attention_wgmma.h"

namespace metalora {
namespace cuda {

// How a block of WGS consumer warpgroups divides its registers: `give` is what a producer thread keeps, `take` what a consumer thread
// gets. All threads start with the same share (168 of 384 threads, 128 of 512), and a take that finds too few given waits forever.
struct Registers {
  int give, take;
};
__host__ __device__ constexpr Registers registers_of(int WGS) { return WGS == 2 ? Registers{24, 240} : Registers{32, 160}; }

// Bytes of a [rows, D] tile in shared memory.
__host__ __device__ constexpr int tile_bytes(int rows, int D) { return rows * D * 2; }

// A block's part of the work: tile `tile` of segment `segment` and head `head`.
struct Block {
  int segment, head, tile;
};

// Blocks in the order in which the chip starts them: within a section of `together` (segment, head) pairs, whose keys and values
// fit in L2, the tiles with most work first.
__device__ __forceinline__ Block block_of(int pairs, int heads, int tiles, int together, bool last_first) {
  const int section = blockIdx.x / (together * tiles), within = blockIdx.x - section * together * tiles;
  const int here = min(together, pairs - section * together), rank = within / here;
  const int pair = section * together + within - rank * here;
  return {pair / heads, pair % heads, last_first ? tiles - 1 - rank : rank};
}

// Copies a tile of `rows` rows from row `row`, columns `column` .. column + D - 1. One thread; the barrier must expect the bytes.
template <int D>
__device__ __forceinline__ void copy_tile(uint8_t* tile, const CUtensorMap* map, int column, int64_t row, int rows, uint64_t* barrier) {
#pragma unroll
  for (int panel = 0; panel < D / 64; panel++) copy_box(tile + panel * rows * 128, map, column + panel * 64, (int)row, barrier);
}

// The block's warpgroup of this thread, as a number that the compiler knows to be the same for the whole warp: matrix descriptors made
// from it then live in uniform registers, where wgmma wants them.
__device__ __forceinline__ int warpgroup_index() { return __shfl_sync(~0u, (int)threadIdx.x / 128, 0); }

// Zeros rows first .. rows-1 of a tile. All consumers together; a named_sync among them must follow.
template <int D, int WGS>
__device__ __forceinline__ void zero_tail(uint8_t* tile, int first, int rows) {
  for (int at = first * 128 + (threadIdx.x - 128) * 16; at < rows * 128; at += WGS * 128 * 16)
#pragma unroll
    for (int panel = 0; panel < D / 64; panel++) *(uint4*)(tile + panel * rows * 128 + at) = uint4{};
}

// Hides keys behind the diagonal and behind `keys`; row is this thread's first, k0 the tile's first key.
template <int KEYS>
__device__ __forceinline__ void mask_scores(float (&s)[KEYS / 2], int row, int k0, int keys) {
#pragma unroll
  for (int i = 0; i < KEYS / 2; i++) {
    const int key = k0 + i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
    if (key > row + i / 2 % 2 * 8 || key >= keys) s[i] = -INFINITY;
  }
}

// Accumulators [64, D] of a warpgroup, of dq or dk, rotated back by the angles of the positions of this thread's first row and of the row
// 8 below (Attention). A pair, columns j and j + D/2, stands in one thread.
template <int D>
__device__ __forceinline__ void rotate_back(float (&d)[D / 2], const Attention& a, const int (&position)[2]) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int64_t at = (int64_t)position[r] * (D / 2) + threadIdx.x % 4 * 2;
#pragma unroll
    for (int j = 0; j < D / 16; j++) {
      const float2 cos = *(const float2*)(a.cos + at + j * 8), sin = *(const float2*)(a.sin + at + j * 8);
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int low = 4 * j + 2 * r + e, high = low + D / 4;
        const float c = e ? cos.y : cos.x, s = e ? sin.y : sin.x, x = d[low], y = d[high];
        d[low] = x * c + y * s;
        d[high] = y * c - x * s;
      }
    }
  }
}

// dst [row < real, 64 of this warpgroup] = factor[row] * d, columns 0 .. D-1, through the warpgroup's 64 rows of a tile that nobody
// reads any more. `first` is the warpgroup's first row in the tile.
template <int D, int WGS>
__device__ __forceinline__ void store_tile(uint8_t* tile, int first, const float (&d)[D / 2], float low, float high, bf16* dst, int64_t ld,
                                           int real) {
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16;  // the warp's first of the warpgroup's rows
  uint8_t* mine = tile + (first + row) * 128;
#pragma unroll
  for (int j = 0; j < D / 8; j++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float factor = half ? high : low;
      const __nv_bfloat162 pair = __floats2bfloat162_rn(d[4 * j + 2 * half] * factor, d[4 * j + 2 * half + 1] * factor);
      const int r = lane / 4 + half * 8, unit = (j % 8) ^ (r % 8);
      *(__nv_bfloat162*)(mine + j / 8 * WGS * 64 * 128 + r * 128 + unit * 16 + lane % 4 * 4) = pair;
    }
  __syncwarp();
  constexpr int UNITS = D / 8;  // a row
#pragma unroll
  for (int i = lane; i < 16 * UNITS; i += 32) {
    const int r = i / UNITS, j = i % UNITS;
    const uint4 eight = *(const uint4*)(mine + j / 8 * WGS * 64 * 128 + r * 128 + ((j % 8) ^ (r % 8)) * 16);
    if (row + r < real) *(uint4*)(dst + (row + r) * ld + j * 8) = eight;
  }
}

// Barriers of `stages` stages; one thread initialises, then the block synchronises. SINGLY: every consumer thread releases a stage
// itself, instead of one for its warp. That takes more arrivals, but where ordinary stores fill the stage compute-sanitizer's racecheck
// needs it: it does not know that __syncwarp() puts a thread's reads before another thread's arrival.
template <int STAGES, int WGS, bool SINGLY = false>
struct Ring {
  uint64_t full[STAGES], empty[STAGES];
  __device__ void init(int producers) {
    for (int i = 0; i < STAGES; i++) {
      barrier_init(&full[i], producers);
      barrier_init(&empty[i], SINGLY ? WGS * 128 : WGS * 4);
    }
  }
  // Producer: waits until stage i % STAGES is free for tile i.
  __device__ void wait_empty(int i) { barrier_wait(&empty[i % STAGES], (i / STAGES & 1) ^ 1); }
  // Consumer: waits until tile i is there; releases it when the thread, and unless SINGLY its whole warp, has read what it needs.
  __device__ void wait_full(int i) { barrier_wait(&full[i % STAGES], i / STAGES & 1); }
  __device__ void release(int i) {
    if (!SINGLY) __syncwarp();
    if (SINGLY || threadIdx.x % 32 == 0) barrier_arrive(&empty[i % STAGES]);
  }
};

}  // namespace cuda
}  // namespace metalora
