// narrow_wgmma.h: Hopper's matrix instruction for products with a narrow side, both of whose operands lie in shared memory in stages of
// DEPTH along what is summed over: rows of DEPTH columns, or DEPTH rows in panels. For skinny.cu and outer_hopper.cu.
#pragma once
#include "attention_wgmma.h"

namespace metalora {
namespace cuda {

constexpr int DEPTH = 64;

// wgmma_add: d [64, N] += a b. a [64, 16], or [16, 64]^T when COLUMNS_ARE_M; b [N, 16]^T, or [16, N] when ROWS_ARE_K.
#define P8(a, b, c, d, e, f, g, h) "%" #a ", %" #b ", %" #c ", %" #d ", %" #e ", %" #f ", %" #g ", %" #h
#define P16 P8(0, 1, 2, 3, 4, 5, 6, 7) ", " P8(8, 9, 10, 11, 12, 13, 14, 15)
#define P32 P16 ", " P8(16, 17, 18, 19, 20, 21, 22, 23) ", " P8(24, 25, 26, 27, 28, 29, 30, 31)
#define P48 P32 ", " P8(32, 33, 34, 35, 36, 37, 38, 39) ", " P8(40, 41, 42, 43, 44, 45, 46, 47)
#define P64 P48 ", " P8(48, 49, 50, 51, 52, 53, 54, 55) ", " P8(56, 57, 58, 59, 60, 61, 62, 63)
#define P80 P64 ", " P8(64, 65, 66, 67, 68, 69, 70, 71) ", " P8(72, 73, 74, 75, 76, 77, 78, 79)
#define P96 P80 ", " P8(80, 81, 82, 83, 84, 85, 86, 87) ", " P8(88, 89, 90, 91, 92, 93, 94, 95)
#define P112 P96 ", " P8(96, 97, 98, 99, 100, 101, 102, 103) ", " P8(104, 105, 106, 107, 108, 109, 110, 111)
#define P128 P112 ", " P8(112, 113, 114, 115, 116, 117, 118, 119) ", " P8(120, 121, 122, 123, 124, 125, 126, 127)
#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D16(i) D4(i), D4(i + 4), D4(i + 8), D4(i + 12)
#define D32(i) D16(i), D16(i + 16)
#define WGMMA(N, HALF, PLACES, A, B, A_TURNED, B_TURNED, ...)                                                                 \
  template <int ROWS_ARE_K, int COLUMNS_ARE_M = 0>                                                                           \
  __device__ __forceinline__ void wgmma_add(float(&d)[HALF], uint64_t a, uint64_t b) {                                       \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" PLACES "}, %" #A ", %" #B                      \
                 ", 1, 1, 1, %" #A_TURNED ", %" #B_TURNED ";"                                                                \
                 : __VA_ARGS__                                                                                               \
                 : "l"(a), "l"(b), "n"(COLUMNS_ARE_M), "n"(ROWS_ARE_K));                                                     \
  }
WGMMA(32, 16, P16, 16, 17, 18, 19, D16(0))
WGMMA(64, 32, P32, 32, 33, 34, 35, D32(0))
WGMMA(96, 48, P48, 48, 49, 50, 51, D32(0), D16(32))
WGMMA(128, 64, P64, 64, 65, 66, 67, D32(0), D32(32))
WGMMA(192, 96, P96, 96, 97, 98, 99, D32(0), D32(32), D32(64))
WGMMA(256, 128, P128, 128, 129, 130, 131, D32(0), D32(32), D32(64), D32(96))
#undef P8
#undef P16
#undef P32
#undef P48
#undef P64
#undef P80
#undef P96
#undef P112
#undef P128
#undef D4
#undef D16
#undef D32
#undef WGMMA

// Where a tile starts, as descriptors have it. In a cluster the address of shared memory also tells whose it is, above these bits.
__device__ __forceinline__ uint64_t place(const void* tile) { return (shared_at(tile) & 0x3ffff) >> 4; }
// Descriptor of a tile [rows, DEPTH] whose columns are summed over: 1024 bytes from 8 rows to the next 8; 16 columns on is 2 on in it.
[[maybe_unused]] __device__ __forceinline__ uint64_t describe_across(const void* tile) {  // in the code for sm_90a
  return place(tile) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
// Descriptor of a tile [DEPTH, columns] whose rows are summed over, in panels of PANEL columns; 16 rows on is PANEL * 2 on in it.
template <int PANEL>
__device__ __forceinline__ uint64_t describe_down(const void* tile) {
  const uint64_t swizzle = PANEL == 64 ? 1 : 2;  // of 128 or 64 bytes
  return place(tile) | (uint64_t)(DEPTH * PANEL / 8) << 16 | (uint64_t)PANEL << 32 | swizzle << 62;
}

}  // namespace cuda
}  // namespace metalora
