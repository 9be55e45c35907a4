// attention_mma.h: the pieces of the attention kernels for sm_80 and later: tiles in shared memory filled by cp.async, and products of
// 16 rows a warp on mma.sync m16n8k16 (bf16 in, f32 sums).
//
// A tile is [rows][PITCH(DP)] bf16 with DP the head dimension rounded up; columns D .. DP-1 and rows outside the segment are zero,
// so neither changes a sum. The 8 elements behind each row make the pitch an odd number of 16-byte units: the eight rows that one
// ldmatrix phase reads then lie in different banks.
//
// Fragments of a 16 x 8 accumulator c[4]: lane holds rows lane/4 (c[0], c[1]) and lane/4 + 8 (c[2], c[3]), columns
// 2 (lane % 4) + {0, 1}.
#pragma once
#include "attention_args.h"

namespace metalora {
namespace cuda {

__host__ __device__ constexpr int pitch(int DP) { return DP + 8; }

__device__ __forceinline__ uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

template <int BYTES>
__device__ __forceinline__ void copy_async(uint32_t dst, const void* src, bool real) {
  const int bytes = real ? BYTES : 0;  // the rest is filled with zeros
  if constexpr (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(dst), "l"(src), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// Starts the copy of `real` rows of D columns into tile [ROWS][pitch(DP)], zeros elsewhere, with all 128 threads. `unit` is the number
// of elements that alignment allows to move at once: 8, 2 or 1 (the last is no asynchronous copy).
template <int ROWS, int DP>
__device__ __forceinline__ void load_tile(bf16* tile, const bf16* src, int64_t ld, int real, int D, int unit) {
  if (unit == 8) {
    for (int i = threadIdx.x; i < ROWS * (DP / 8); i += 128) {
      const int row = i / (DP / 8), col = i % (DP / 8) * 8;
      const bool have = row < real && col < D;
      copy_async<16>(shared_address(tile + row * pitch(DP) + col), have ? src + row * ld + col : src, have);
    }
  } else if (unit == 2) {
    for (int i = threadIdx.x; i < ROWS * (DP / 2); i += 128) {
      const int row = i / (DP / 2), col = i % (DP / 2) * 2;
      const bool have = row < real && col < D;
      copy_async<4>(shared_address(tile + row * pitch(DP) + col), have ? src + row * ld + col : src, have);
    }
  } else {
    for (int i = threadIdx.x; i < ROWS * DP; i += 128) {
      const int row = i / DP, col = i % DP;
      tile[row * pitch(DP) + col] = row < real && col < D ? src[row * ld + col] : __float2bfloat16(0.0f);
    }
  }
}

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const bf16* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p)));
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], const bf16* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p)));
}
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c [16, N] += a [16, DP] b [N, DP]^T, both tiles in shared memory; a points at the warp's first row.
template <int DP, int N>
__device__ __forceinline__ void product_nt(float (&c)[N / 8][4], const bf16* a, const bf16* b) {
  const int lane = threadIdx.x % 32, eight = lane & 7, upper = lane >> 4, odd = lane >> 3 & 1;
  const bf16* a_lane = a + (eight + odd * 8) * pitch(DP) + upper * 8;
  const bf16* b_lane = b + (eight + upper * 8) * pitch(DP) + odd * 8;
#pragma unroll
  for (int k = 0; k < DP; k += 16) {
    uint32_t af[4];
    load_matrices(af, a_lane + k);
#pragma unroll
    for (int n = 0; n < N; n += 16) {
      uint32_t bf[4];
      load_matrices(bf, b_lane + n * pitch(DP) + k);
      multiply(c[n / 8], af, bf[0], bf[1]);
      multiply(c[n / 8 + 1], af, bf[2], bf[3]);
    }
  }
}

// c [16, N] += a [16, KEYS] b [KEYS, N]: a in registers, b in shared memory with rows pitch(DP) apart.
template <int DP, int KEYS, int N>
__device__ __forceinline__ void product_nn(float (&c)[N / 8][4], const uint32_t (&a)[KEYS / 16][4], const bf16* b) {
  const int lane = threadIdx.x % 32, eight = lane & 7, upper = lane >> 4, odd = lane >> 3 & 1;
  const bf16* b_lane = b + (eight + odd * 8) * pitch(DP) + upper * 8;
#pragma unroll
  for (int k = 0; k < KEYS; k += 16)
#pragma unroll
    for (int n = 0; n < N; n += 16) {
      uint32_t bf[4];
      load_matrices_transposed(bf, b_lane + k * pitch(DP) + n);
      multiply(c[n / 8], a[k / 16], bf[0], bf[1]);
      multiply(c[n / 8 + 1], a[k / 16], bf[2], bf[3]);
    }
}

__device__ __forceinline__ uint32_t pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, 4);
  return bits;
}

// Accumulators [16, N] become the left operand of the next product: its fragments lie in the same lanes.
template <int N>
__device__ __forceinline__ void to_operand(uint32_t (&a)[N / 16][4], const float (&c)[N / 8][4]) {
#pragma unroll
  for (int n = 0; n < N / 16; n++) {
    a[n][0] = pack(c[2 * n][0], c[2 * n][1]);
    a[n][1] = pack(c[2 * n][2], c[2 * n][3]);
    a[n][2] = pack(c[2 * n + 1][0], c[2 * n + 1][1]);
    a[n][3] = pack(c[2 * n + 1][2], c[2 * n + 1][3]);
  }
}

// dst [16 rows of this warp, columns 0 .. cols-1] = factor[row] * c, for rows < real; row 0 is the warp's first.
template <int N>
__device__ __forceinline__ void store_rows(bf16* dst, int64_t ld, int real, int cols, const float (&c)[N / 8][4], float factor_low,
                                           float factor_high, bool pairs) {
  const int lane = threadIdx.x % 32, row = lane / 4;
#pragma unroll
  for (int n = 0; n < N / 8; n++) {
    const int col = n * 8 + lane % 4 * 2;
    if (col >= cols) continue;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      if (row + half * 8 >= real) continue;
      const float factor = half ? factor_high : factor_low;
      bf16* at = dst + (row + half * 8) * ld + col;
      const uint32_t two = pack(c[n][half * 2] * factor, c[n][half * 2 + 1] * factor);
      if (pairs) {
        *(uint32_t*)at = two;
      } else {
        at[0] = __ushort_as_bfloat16((unsigned short)(two & 0xffff));
        at[1] = __ushort_as_bfloat16((unsigned short)(two >> 16));
      }
    }
  }
}

// dst as above, of D columns, with the columns rotated back by the angles of each row's position (Attention). The two columns of a pair
// stand in one thread for some D only, so they meet in room [16 rows of this warp, pitch(DP)], which nobody else reads or writes. W
// pairs at once: 1, or 2 where D/2 is even, dst is aligned to 4 bytes and cos and sin to 8.
template <int DP, int W>
__device__ __forceinline__ void store_rotated_back(bf16* dst, int64_t ld, int real, int D, const float (&c)[DP / 8][4], float factor,
                                                   float* room, const float* cos, const float* sin, const int32_t* positions) {
  int lane;  // read anew: what the compiler would derive from threadIdx before the products costs registers during them
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
#pragma unroll
  for (int n = 0; n < DP / 8; n++)
#pragma unroll
    for (int r = 0; r < 2; r++)
      *(float2*)(room + (lane / 4 + r * 8) * pitch(DP) + n * 8 + lane % 4 * 2) = make_float2(c[n][2 * r] * factor, c[n][2 * r + 1] * factor);
  __syncwarp();
  const int half = D / 2, rows = min(real, 16), mine = lane < rows ? positions[lane] : 0;
  constexpr int UNITS = DP / 2 / W;  // of W pairs, in a row
#pragma unroll 4
  for (int i = lane; i < 16 * UNITS; i += 32) {
    const int row = i / UNITS, j = i % UNITS * W, position = __shfl_sync(~0u, mine, row);
    if (row >= rows || j >= half) continue;
    const int64_t angle = (int64_t)position * half + j;
    const float* low = room + row * pitch(DP) + j;
    bf16* at = dst + row * ld + j;
    if constexpr (W == 2) {
      const float2 u = __ldg((const float2*)(cos + angle)), w = __ldg((const float2*)(sin + angle));
      const float2 x = *(const float2*)low, y = *(const float2*)(low + half);
      *(uint32_t*)at = pack(x.x * u.x + y.x * w.x, x.y * u.y + y.y * w.y);
      *(uint32_t*)(at + half) = pack(y.x * u.x - x.x * w.x, y.y * u.y - x.y * w.y);
    } else {
      const float u = __ldg(cos + angle), w = __ldg(sin + angle), x = low[0], y = low[half];
      at[0] = __float2bfloat16(x * u + y * w);
      at[half] = __float2bfloat16(y * u - x * w);
    }
  }
}

}  // namespace cuda
}  // namespace metalora
