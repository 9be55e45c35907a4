// segment.cu: products, means and sums over the rows of each segment (sample) of the packed stream.
//
// segment_outers forms out_i [p, q] = beta out_i + alpha a_i^T b_i: per-sample adapter gradients. One side is narrow (a rank), the
// other wide (a model dimension), and reading the wide side once is the limit. A block owns NR columns of the narrow side by WT
// of the wide one; the rows are what is summed over: shared out over the warps of the block, and taken in order within a warp. The
// products of a list (the adapters of one layer) share a launch. Neither side is transposed in memory: ldmatrix turns both as it hands
// them to the tensor cores. The partial sums meet in shared memory, in a fixed order. Hopper has kernels of its own for what lies on
// the 16-byte grid (outer_hopper.cu).
#include "outer.cuh"

namespace metalora {
namespace cuda {

static const int WARPS = OUTER_WARPS, THREADS = OUTER_THREADS;

static const int KIB = 99;  // of shared memory a block at most: all that devices 8.6 and 8.9 have

// Sizes of a block's tile: NR columns of the narrow side by WT of the wide side.
template <int NR, int WT>
struct Tile {
  static const int ACROSS = WT / 32;                // warps beside each other, 32 wide columns each
  static const int DEEP = WARPS / ACROSS;           // warps behind each other: they take turns at the rows
  static const int ROWS = 64;                       // rows of one stage of the pipeline
  static const int STEPS = ROWS / 16 / DEEP;        // turns of 16 rows that a warp takes in one stage
  static const int NARROW_PITCH = NR * 2 + 16;      // bytes from row to row: 16 more than the data keep ldmatrix free of
  static const int WIDE_PITCH = WT * 2 + 16;        // bank conflicts
  static const int FACTORS = ROWS * (NARROW_PITCH + WIDE_PITCH);  // where a stage's row_scale begins
  static const int STAGE = FACTORS + ROWS * 4;
  static const int FIT = KIB * 1024 / STAGE, STAGES = FIT < 8 ? FIT : 8;
  // The sums lie in shared memory as in `out`: NR lines of WT floats, or WT lines of NR. Both pitches let a warp store its
  // fragments without bank conflicts, and lines be read 16 bytes at a time.
  static const int STRAIGHT_PITCH = WT + 8, TURNED_PITCH = NR + 4;
  static const int SUMS = 4 * (NR * STRAIGHT_PITCH > WT * TURNED_PITCH ? NR * STRAIGHT_PITCH : WT * TURNED_PITCH);
  static const int SHARED = STAGES * STAGE > SUMS ? STAGES * STAGE : SUMS;
  static_assert(DEEP <= 4 && STAGES >= 2 && SHARED <= KIB * 1024, "");
};

struct Outers {
  const int32_t* cu;
  float beta;
  int64_t out_stride;
  int count;
  unsigned tiles;  // of one segment
  Outer items[MOST_OUTERS];
};

template <int NR, int WT, bool ALIGNED>
static __global__ void __launch_bounds__(THREADS, NR <= 64 ? 2 : 1) outer_kernel(const Outers all) {
  using S = Tile<NR, WT>;
  const bool SCALE_WIDE = NR > 32;  // the side of which a warp holds less takes the factors of rows
  extern __shared__ __align__(16) char memory[];
  const int64_t segment = blockIdx.x / all.tiles;
  unsigned tile = blockIdx.x % all.tiles;
  const Outer& o = all.items[item_of(all.items, all.count, tile)];
  tile -= o.before;
  // Blocks that read the same wide columns run side by side: they find them in the cache.
  const int64_t narrow_at = (int64_t)(tile % o.narrow_tiles) * NR, wide_at = (int64_t)(tile / o.narrow_tiles) * WT;

  const int begin = all.cu[segment], rows = all.cu[segment + 1] - begin, stages = (rows + S::ROWS - 1) / S::ROWS;
  const bf16* narrow = o.narrow + begin * o.ld_narrow + narrow_at;
  const bf16* wide = o.wide + begin * o.ld_wide + wide_at;
  const int narrow_left = (int)min(o.narrow_count - narrow_at, (int64_t)NR), wide_left = (int)min(o.wide_count - wide_at, (int64_t)WT);
  const auto load_stage = [&](int stage) {
    char* to = memory + stage % S::STAGES * S::STAGE;
    const int row = stage * S::ROWS;
    load_tile<WT, S::ROWS, S::WIDE_PITCH, ALIGNED>(to, wide + row * o.ld_wide, o.ld_wide, rows - row, wide_left);
    load_tile<NR, S::ROWS, S::NARROW_PITCH, ALIGNED>(to + S::ROWS * S::WIDE_PITCH, narrow + row * o.ld_narrow, o.ld_narrow, rows - row,
                                                     narrow_left);
    if (o.row_scale && threadIdx.x < S::ROWS) {
      const int valid = row + (int)threadIdx.x < rows ? 4 : 0;
      const uint32_t address = (uint32_t)__cvta_generic_to_shared(to + S::FACTORS + threadIdx.x * 4);
      asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(o.row_scale + begin + row + threadIdx.x), "r"(valid)
                   : "memory");
    }
  };

  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, across = warp % S::ACROSS, deep = warp / S::ACROSS;
  // Where this lane's row of the four matrices starts: rows (K) by columns, [K 0-7, 8 columns], ... in the order of the fragments.
  const int narrow_lane = (lane / 16 * 8 + lane % 8) * S::NARROW_PITCH + lane / 8 % 2 * 16;
  const int wide_lane = (lane / 8 % 2 * 8 + lane % 8) * S::WIDE_PITCH + lane / 16 * 16 + across * 64;
  float c[NR / 16][4][4] = {};

  for (int i = 0; i < S::STAGES - 1; i++) {
    if (i < stages) load_stage(i);
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  for (int stage = 0; stage < stages; stage++) {
    asm volatile("cp.async.wait_group %0;" ::"n"(S::STAGES - 2) : "memory");
    __syncthreads();  // this stage has arrived, and everybody has left the one that is loaded next
    if (stage + S::STAGES - 1 < stages) load_stage(stage + S::STAGES - 1);
    asm volatile("cp.async.commit_group;" ::: "memory");
    const char* here = memory + stage % S::STAGES * S::STAGE;
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(here);
#pragma unroll
    for (int step = 0; step < S::STEPS; step++) {
      const int row = (step * S::DEEP + deep) * 16;
      const uint32_t wide_row = at + row * S::WIDE_PITCH + wide_lane;
      const uint32_t narrow_row = at + S::ROWS * S::WIDE_PITCH + row * S::NARROW_PITCH + narrow_lane;
      // Factors of the four rows that a lane's pairs of a step belong to.
      const float2* factors = reinterpret_cast<const float2*>(here + S::FACTORS + (row + lane % 4 * 2) * 4);
      const float2 low = o.row_scale ? factors[0] : float2{}, high = o.row_scale ? factors[4] : float2{};
      uint32_t b[2][4];
      load_matrices(b[0], wide_row);
      load_matrices(b[1], wide_row + 32);
      if (o.row_scale && SCALE_WIDE) {
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
          for (int k = 0; k < 4; k++) b[j][k] = scale2(b[j][k], k % 2 ? high : low);
      }
#pragma unroll
      for (int i = 0; i < NR / 16; i++) {
        uint32_t a[4];
        load_matrices(a, narrow_row + i * 32);
        if (o.row_scale && !SCALE_WIDE) {
#pragma unroll
          for (int k = 0; k < 4; k++) a[k] = scale2(a[k], k / 2 ? high : low);
        }
#pragma unroll
        for (int j = 0; j < 4; j++) multiply(c[i][j], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  __syncthreads();

  // The block's sums, one layer of warps after the other.
  float* sums = reinterpret_cast<float*>(memory);
  for (int layer = 0; layer < S::DEEP; layer++) {
    if (deep == layer) {
#pragma unroll
      for (int i = 0; i < NR / 16; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
          for (int k = 0; k < 4; k += 2) {
            const int row = i * 16 + lane / 4 + k / 2 * 8, column = across * 32 + j * 8 + lane % 4 * 2;
            if (o.turned) {
              float *one = sums + column * S::TURNED_PITCH + row, *two = one + S::TURNED_PITCH;
              *one = layer == 0 ? c[i][j][k] : *one + c[i][j][k];
              *two = layer == 0 ? c[i][j][k + 1] : *two + c[i][j][k + 1];
            } else {
              float2* both = reinterpret_cast<float2*>(sums + row * S::STRAIGHT_PITCH + column);
              const float2 old = layer == 0 ? make_float2(0, 0) : *both;
              *both = make_float2(old.x + c[i][j][k], old.y + c[i][j][k + 1]);
            }
          }
    }
    __syncthreads();
  }

  float* out = o.out + segment * all.out_stride;
  TileEnd end = {o.alpha, all.beta, o.column_scale, o.vectors, 1};
  if (end.column_scale) end.column_scale += o.turned ? narrow_at : wide_at;
  if (o.turned)
    write_tile<WT, NR, S::TURNED_PITCH>(end, sums, 0, wide_left, narrow_left, out + wide_at * o.narrow_count + narrow_at, o.narrow_count);
  else
    write_tile<NR, WT, S::STRAIGHT_PITCH>(end, sums, 0, narrow_left, wide_left, out + narrow_at * o.wide_count + wide_at, o.wide_count);
}

static int64_t tiles_of(int64_t S, const Outers& all, int NR, int WT) {
  int64_t tiles = 0;
  for (int i = 0; i < all.count; i++) tiles += S * ceil_div(all.items[i].narrow_count, NR) * ceil_div(all.items[i].wide_count, WT);
  return tiles;
}

template <int NR, int WT, bool ALIGNED = true>
static cudaError_t launch_outers(const Launch& on, int64_t S, Outers all) {
  all.tiles = 0;
  for (int i = 0; i < all.count; i++) {
    Outer& o = all.items[i];
    o.narrow_tiles = (unsigned)ceil_div(o.narrow_count, NR);
    o.before = all.tiles;
    all.tiles += o.narrow_tiles * (unsigned)ceil_div(o.wide_count, WT);
  }
  return launch_clusters(on, outer_kernel<NR, WT, ALIGNED>, S * all.tiles, THREADS, Tile<NR, WT>::SHARED, 1, false, all);
}

// The columns a block takes of the wide side: 128, unless 64 make more blocks of a device that has room for them.
template <int NR>
static cudaError_t choose_width(const Launch& on, int64_t S, const Outers& all) {
  const int64_t narrow = tiles_of(S, all, NR, 64), wide = tiles_of(S, all, NR, 128), enough = on.units * 15 / 16;
  if (wide < enough || narrow == wide) return launch_outers<NR, 64>(on, S, all);
  return launch_outers<NR, 128>(on, S, all);
}

cudaError_t segment_outers(const Launch& on, int64_t S, const int32_t* cu, const OuterProduct* products, int count, float beta,
                           int64_t out_stride) {
  if (count > MOST_OUTERS) return cudaErrorInvalidValue;
  Outer fitting[MOST_OUTERS];
  int fits = 0;
  Outers all = {};
  all.cu = cu, all.beta = beta, all.out_stride = out_stride;
  int64_t least = INT64_MAX;  // the narrowest side: the rank, where one of the list is several adapters beside each other
  bool aligned = true;
  for (int i = 0; i < count; i++) {
    const OuterProduct& product = products[i];
    if (product.p == 0 || product.q == 0) continue;
    const bf16 *a = (const bf16*)product.a, *b = (const bf16*)product.b;
    Outer o = {};
    o.turned = product.p > product.q;  // the wide side is a
    o.narrow = o.turned ? b : a, o.wide = o.turned ? a : b;
    o.ld_narrow = o.turned ? product.ldb : product.lda, o.ld_wide = o.turned ? product.lda : product.ldb;
    o.narrow_count = o.turned ? product.q : product.p, o.wide_count = o.turned ? product.p : product.q;
    o.row_scale = (const float*)product.scales.rows, o.column_scale = (const float*)product.scales.columns;
    o.alpha = product.alpha, o.out = (float*)product.out;
    o.vectors = aligned16(o.out, out_stride, 4) && product.q % 4 == 0;
    if (hopper_outer_fits(on, o)) {
      fitting[fits++] = o;
      continue;
    }
    all.items[all.count++] = o;
    aligned = aligned && aligned16(a, product.lda) && aligned16(b, product.ldb);
    if (o.narrow_count < least) least = o.narrow_count;
  }
  if (S == 0) return cudaSuccess;
  if (fits > 0) {
    const cudaError_t error = hopper_outers(on, S, cu, fitting, fits, beta, out_stride);
    if (error != cudaSuccess) return error;
  }
  if (all.count == 0) return cudaSuccess;
  if (!aligned) return launch_outers<32, 64, false>(on, S, all);
  if (least <= 16) return choose_width<16>(on, S, all);
  if (least <= 32) return choose_width<32>(on, S, all);
  if (least <= 64 || ceil_div(least, 64) * 64 < ceil_div(least, 96) * 96) return choose_width<64>(on, S, all);
  return choose_width<96>(on, S, all);
}

// ---- means and sums -------------------------------------------------------------------------------------------------

static const int MEAN_THREADS = 256, MEAN_ALONG = 4, MEAN_ROWS = MEAN_THREADS / MEAN_ALONG;

// A block takes MEAN_ALONG accesses of W columns; MEAN_ROWS threads share out the rows of a segment, then add in order.
template <int W>
static __global__ void __launch_bounds__(MEAN_THREADS) mean_kernel(unsigned pieces, const int32_t* cu, int64_t q, const bf16* a,
                                                                   int64_t lda, float* out, int64_t ld_out) {
  __shared__ double sums[MEAN_ROWS][MEAN_ALONG * W + 1];
  const int along = threadIdx.x % MEAN_ALONG, lane = threadIdx.x / MEAN_ALONG;
  const int64_t segment = blockIdx.x / pieces, begin = (int64_t)(blockIdx.x % pieces) * (MEAN_ALONG * W), j = begin + along * W;
  const int64_t first = cu[segment], rows = cu[segment + 1] - first;
  double sum[W] = {};
  if (j < q) {
#pragma unroll 4
    for (int64_t t = lane; t < rows; t += MEAN_ROWS) {
      float x[W];
      load<W>(a + (first + t) * lda + j, x);
#pragma unroll
      for (int i = 0; i < W; i++) sum[i] += (double)x[i];
    }
  }
#pragma unroll
  for (int i = 0; i < W; i++) sums[lane][along * W + i] = sum[i];
  __syncthreads();
  const int column = threadIdx.x;
  if (column >= MEAN_ALONG * W || begin + column >= q) return;
  double total = 0;
  for (int i = 0; i < MEAN_ROWS; i++) total += sums[i][column];
  out[segment * ld_out + begin + column] = rows > 0 ? (float)(total / (double)rows) : 0.0f;  // an empty segment has mean 0
}

cudaError_t segment_mean(const Launch& on, int64_t S, const int32_t* cu, int64_t q, const bf16* a, int64_t lda, float* out,
                         int64_t ld_out) {
  if (S == 0 || q == 0) return cudaSuccess;
  const bool wide = q % 8 == 0 && aligned16(a, lda);
  const unsigned pieces = (unsigned)ceil_div(q, MEAN_ALONG * (wide ? 8 : 1));
  if (wide)
    mean_kernel<8><<<(unsigned)(S * pieces), MEAN_THREADS, 0, on.stream>>>(pieces, cu, q, a, lda, out, ld_out);
  else
    mean_kernel<1><<<(unsigned)(S * pieces), MEAN_THREADS, 0, on.stream>>>(pieces, cu, q, a, lda, out, ld_out);
  return cudaGetLastError();
}

static __global__ void __launch_bounds__(MEAN_THREADS) sum_kernel(const int32_t* offsets, const float* values, double* out) {
  double sum = 0;
  for (int64_t r = offsets[blockIdx.x] + (int64_t)threadIdx.x; r < offsets[blockIdx.x + 1]; r += MEAN_THREADS) sum += (double)values[r];
  sum = block_sum(sum);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

cudaError_t segment_sum(const Launch& on, int64_t S, const int32_t* row_offsets, const float* values, double* out) {
  if (S == 0) return cudaSuccess;
  sum_kernel<<<(unsigned)S, MEAN_THREADS, 0, on.stream>>>(row_offsets, values, out);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace metalora
