// outer.cuh: what kernels share that form outer products over the rows of a segment: tiles of bf16 rows in shared memory, the matrix
// instruction on them without transposing anything in memory (ldmatrix turns both sides), and sums that meet in a fixed order.
#pragma once
#include "cluster.cuh"

namespace metalora {
namespace cuda {

constexpr int OUTER_WARPS = 8, OUTER_THREADS = OUTER_WARPS * WARP;

// One outer product as kernels take it: a wide side (a model dimension) and a narrow one (a rank), and where its tiles stand in a list.
struct Outer {
  const bf16 *narrow, *wide;
  int64_t ld_narrow, ld_wide, narrow_count, wide_count;
  bool turned;   // out is [wide, narrow]
  bool vectors;  // lines of out may be accessed 16 bytes at a time
  const float *row_scale, *column_scale;  // of the stream's rows, of the columns of out; or NULL
  float alpha;
  float* out;
  unsigned narrow_tiles, before;  // before: tiles of the list before its own
};

// outer_hopper.cu: segment_outers on sm_90a, of products on the 16-byte grid.
bool hopper_outer_fits(const Launch& on, const Outer& product);
cudaError_t hopper_outers(const Launch& on, int64_t S, const int32_t* cu, const Outer* products, int count, float beta, int64_t out_stride);

// Copies ROWS rows of COLUMNS columns into shared memory, 16 bytes at a time; zeros take the place of what lies outside `rows`
// and `columns`.
template <int COLUMNS, int ROWS, int PITCH, bool ALIGNED>
static __device__ __forceinline__ void load_tile(char* to, const bf16* from, int64_t ld, int rows, int columns) {
  const int CHUNKS = COLUMNS / 8;
#pragma unroll
  for (int first = 0; first < ROWS * CHUNKS; first += OUTER_THREADS) {
    const int chunk = first + threadIdx.x;
    if (ROWS * CHUNKS % OUTER_THREADS != 0 && chunk >= ROWS * CHUNKS) break;
    const int row = chunk / CHUNKS, column = chunk % CHUNKS * 8;
    const int valid = row < rows ? max(0, min(8, columns - column)) : 0;
    const bf16* source = from + row * ld + column;
    char* place = to + row * PITCH + column * 2;
    if (ALIGNED) {
      const uint32_t address = (uint32_t)__cvta_generic_to_shared(place);
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(source), "r"(valid * 2) : "memory");
    } else {
      uint32_t word[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const uint32_t low = 2 * i < valid ? __bfloat16_as_ushort(source[2 * i]) : 0;
        const uint32_t high = 2 * i + 1 < valid ? __bfloat16_as_ushort(source[2 * i + 1]) : 0;
        word[i] = low | high << 16;
      }
      *reinterpret_cast<uint4*>(place) = make_uint4(word[0], word[1], word[2], word[3]);
    }
  }
}

// Four transposed 8 by 8 matrices.
static __device__ __forceinline__ void load_matrices(uint32_t (&x)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(address)
               : "memory");
}

// c [16, 8] += a [16, 16] b [16, 8]
static __device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// What becomes of the sums of a tile: out = alpha * column_scale * sum + beta * out. `vectors`: lines of out may be accessed 16 bytes at
// a time; `split` blocks of a cluster share the rows.
struct TileEnd {
  float alpha, beta;
  const float* column_scale;  // of the tile's first column, or NULL
  bool vectors;
  int split;
};

// Writes this block's share of a tile, LINES lines of LENGTH floats: the blocks' sums added in the order of their ranks. `columns` and
// `lines` of the tile exist in out, whose lines are ld apart.
template <int LINES, int LENGTH, int PITCH, int THREADS = OUTER_THREADS>
static __device__ __forceinline__ void write_tile(const TileEnd& end, float* sums, int rank, int lines, int columns, float* out, int64_t ld) {
  const int ACROSS = LENGTH / 4, ITEMS = LINES * ACROSS, last = ITEMS * (rank + 1) / end.split;
  for (int e = ITEMS * rank / end.split + threadIdx.x; e < last; e += THREADS) {
    const int line = e / ACROSS, column = e % ACROSS * 4;
    if (line >= lines || column >= columns) continue;
    float sum[4];
    add_shares(sums + line * PITCH + column, end.split, sum);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      sum[i] *= end.alpha;
      if (end.column_scale && column + i < columns) sum[i] *= end.column_scale[column + i];
    }
    float* to = out + line * ld + column;
    float old[4] = {};  // beta 0: out may hold NaN
    if (end.vectors) {
      if (end.beta != 0) load<4>(to, old);
#pragma unroll
      for (int i = 0; i < 4; i++) sum[i] += end.beta * old[i];
      store<4>(to, sum);
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if (column + i >= columns) continue;
        if (end.beta != 0) old[i] = to[i];
        to[i] = sum[i] + end.beta * old[i];
      }
    }
  }
}

// Two bf16, each times its factor.
static __device__ __forceinline__ uint32_t scale2(uint32_t x, float2 factors) {
  return pack2(__uint_as_float(x << 16) * factors.x, __uint_as_float(x & 0xffff0000u) * factors.y);
}

}  // namespace cuda
}  // namespace metalora
