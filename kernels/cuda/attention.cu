// attention.cu: causal attention within segments, with grouped query heads, in tiles (FlashAttention-2: Dao 2023, arXiv:2307.08691)
// on the matrix instructions that every chip since sm_80 has. attention_hopper.cu does the same faster for D = 64 and 128 on sm_90a;
// the launchers at the end of this file choose.
//
//   s_ij = scale q_i . k_j  (j <= i, j < kv_len)     p_ij = exp(s_ij - lse_i)     out_i = sum_j p_ij v_j
//   delta_i = dout_i . out_i                         ds_ij = p_ij (dout_i . v_j - delta_i)
//   dq_i = scale sum_j ds_ij k_j        dk_j = scale sum_i ds_ij q_i        dv_j = sum_i p_ij dout_i
//
// q and k may be rotated by their positions (rope.cu). Then dq and dk are rotated back before they are rounded and written, which spares
// the model a pass over both.
//
// A block of 4 warps owns 64 rows (16 a warp) of the result and streams the other side through two stages of shared memory. dq and
// (dk, dv) are two kernels that compute s and dout v^T each on their own: 7 products instead of 5, but every element of the result
// is summed by one thread in one order, with no atomics.
#include "attention_args.h"
#include "attention_mma.h"

namespace metalora {
namespace cuda {
namespace {

constexpr int ROWS = 64;  // of the result, a block

// Elements that alignment allows to move at once.
struct Units {
  int in;       // 8, 2 or 1: q, k, v, dout
  bool pairs;   // of out, dq, dk, dv
  bool angles;  // two neighbouring pairs of a rotation, of cos and sin as of dq and dk
};

// Streams tiles of ROWS_IN rows of two matrices through two stages: tile i of `first` and `second` begins at row starts(i).row, and
// starts(i).real of its rows exist. body(i, first, second) runs once the tile is there.
template <int ROWS_IN, int DP, typename Where, typename Body>
__device__ __forceinline__ void stream_tiles(int tiles, int D, int unit, bf16* stages, Where where, Body body) {
  constexpr int TILE = ROWS_IN * pitch(DP);
  const auto start = [&](int i) {
    const auto at = where(i);
    bf16* stage = stages + (i & 1) * 2 * TILE;
    load_tile<ROWS_IN, DP>(stage, at.first, at.ld_first, at.real, D, unit);
    load_tile<ROWS_IN, DP>(stage + TILE, at.second, at.ld_second, at.real, D, unit);
  };
  if (tiles > 0) start(0);
  copy_commit();
  for (int i = 0; i < tiles; i++) {
    if (i + 1 < tiles) start(i + 1);
    copy_commit();
    copy_wait<1>();
    __syncthreads();
    const bf16* stage = stages + (i & 1) * 2 * TILE;
    body(i, stage, stage + TILE);
    __syncthreads();
  }
}

// Where a tile of two streamed matrices lies.
struct Source {
  const bf16* first;
  int64_t ld_first;
  const bf16* second;
  int64_t ld_second;
  int real;
};

// ---- forward ---------------------------------------------------------------------------------------------------------

// Block (segment * H + head, tile of 64 rows, longest first).
template <int DP, int KEYS>
__global__ void __launch_bounds__(128) forward_kernel(const Attention a, const Units units) {
  extern __shared__ __align__(16) bf16 shared[];
  const int64_t block = blockIdx.y * (int64_t)gridDim.x + blockIdx.x;
  zero_forward_behind(a, block, (int64_t)gridDim.x * gridDim.y, threadIdx.x, 128);
  if (a.S == 0) return;
  const int h = blockIdx.x % a.H, kv = h / (a.H / a.K);
  const Segment segment = segment_of(a, blockIdx.x / a.H);
  const int first = (gridDim.y - 1 - blockIdx.y) * ROWS, rows = min(ROWS, segment.length - first);
  if (rows <= 0) return;
  const int64_t t0 = segment.start + first;
  const int all_keys = min(segment.keys, first + rows);

  bf16* q = shared;                    // [ROWS, DP]
  bf16* stages = q + ROWS * pitch(DP);  // 2 of [2 KEYS, DP]
  load_tile<ROWS, DP>(q, a.q + t0 * a.ldqkv + (int64_t)h * a.D, a.ldqkv, rows, a.D, units.in);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = first + warp * 16 + lane / 4;  // and row + 8
  const float scale = a.scale * LOG2E;
  float o[DP / 8][4] = {};
  float max[2] = {-INFINITY, -INFINITY}, sum[2] = {};

  const auto where = [&](int i) -> Source {
    const int64_t at = (segment.start + i * KEYS) * a.ldqkv + (int64_t)kv * a.D;
    return {a.k + at, a.ldqkv, a.v + at, a.ldqkv, min(KEYS, all_keys - i * KEYS)};
  };
  stream_tiles<KEYS, DP>((all_keys + KEYS - 1) / KEYS, a.D, units.in, stages, where, [&](int i, const bf16* k, const bf16* v) {
    const int k0 = i * KEYS;
    if (k0 > first + warp * 16 + 15) return;  // nothing here that this warp's rows see
    float s[KEYS / 8][4] = {};
    product_nt<DP, KEYS>(s, q + warp * 16 * pitch(DP), k);
    float now[2] = {max[0], max[1]};
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int key = k0 + n * 8 + lane % 4 * 2 + (e & 1);
        s[n][e] = key <= row + (e >> 1) * 8 && key < segment.keys ? s[n][e] * scale : -INFINITY;
        now[e >> 1] = fmaxf(now[e >> 1], s[n][e]);
      }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      now[r] = fmaxf(now[r], __shfl_xor_sync(~0u, now[r], 1));
      now[r] = fmaxf(now[r], __shfl_xor_sync(~0u, now[r], 2));
      const float shift = now[r] == -INFINITY ? 0.0f : now[r];
      const float shrink = power_of_two(max[r] - shift);
      max[r] = now[r];
      now[r] = shift;
      sum[r] *= shrink;
#pragma unroll
      for (int n = 0; n < DP / 8; n++) {
        o[n][2 * r] *= shrink;
        o[n][2 * r + 1] *= shrink;
      }
    }
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        s[n][e] = power_of_two(s[n][e] - now[e >> 1]);
        sum[e >> 1] += s[n][e];
      }
    uint32_t p[KEYS / 16][4];
    to_operand<KEYS>(p, s);
    product_nn<DP, KEYS, DP>(o, p, v);
  });

  float share[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
    sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
    share[r] = sum[r] == 0.0f ? 0.0f : 1.0f / sum[r];  // 0 only when no key exists: kv_len = 0
    if (lane % 4 == 0 && row + r * 8 < segment.length)
      a.lse[(segment.start + row + r * 8) * a.H + h] = (max[r] + log2f(sum[r])) * LN2;
  }
  store_rows<DP>(a.out + (t0 + warp * 16) * a.ldo + (int64_t)h * a.D, a.ldo, rows - warp * 16, a.D, o, share[0], share[1], units.pairs);
}

// ---- backward --------------------------------------------------------------------------------------------------------

// delta [T, H] = sum_d dout * out, 8 lanes a head; the same lanes zero dq, dk and dv behind cu[S].
__global__ void __launch_bounds__(256) delta_kernel(const Attention a, const int unit) {
  release_next_kernel();  // hopper_dkv_kernel starts early and waits by itself
  const int64_t index = (blockIdx.x * (int64_t)blockDim.x + threadIdx.x) / 8;
  if (index >= a.T * a.H) return;
  const int64_t t = index / a.H;
  const int h = (int)(index - t * a.H), lane = threadIdx.x % 8;
  if (t >= a.cu[a.S]) {
    zero_row(a.dq + (int64_t)h * a.D, t, a.lddqkv, a.D, lane, 8);
    if (h < a.K) {
      zero_row(a.dk + (int64_t)h * a.D, t, a.lddqkv, a.D, lane, 8);
      zero_row(a.dv + (int64_t)h * a.D, t, a.lddqkv, a.D, lane, 8);
    }
    return;
  }
  const bf16* x = a.dout + t * a.lddout + (int64_t)h * a.D;
  const bf16* y = a.out + t * a.ldo + (int64_t)h * a.D;
  float sum = 0;
  if (unit == 8) {
#pragma unroll 4
    for (int d = lane * 8; d < a.D; d += 64) {
      const uint4 xs = *(const uint4*)(x + d), ys = *(const uint4*)(y + d);
      const __nv_bfloat162 *x2 = (const __nv_bfloat162*)&xs, *y2 = (const __nv_bfloat162*)&ys;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float2 u = __bfloat1622float2(x2[i]), w = __bfloat1622float2(y2[i]);
        sum = fmaf(u.x, w.x, fmaf(u.y, w.y, sum));
      }
    }
  } else {
    for (int d = lane; d < a.D; d += 8) sum = fmaf(__bfloat162float(x[d]), __bfloat162float(y[d]), sum);
  }
  const unsigned mask = 0xffu << (threadIdx.x % 32 / 8 * 8);  // a warp may straddle cu[S]
  for (int step = 4; step; step /= 2) sum += __shfl_xor_sync(mask, sum, step);
  if (lane == 0) a.delta[t * a.H + h] = sum;
}

// dst [16 rows of this warp, D], of dq or dk, = scale * sum, rotated back where that is wanted. dst is row t of the stream. All threads
// of the block; `kept` is its two tiles [ROWS, pitch(DP)], that nobody needs any more: f32 has room there for one.
template <int DP>
__device__ __forceinline__ void store_gradient(const Attention& a, const Units& units, bf16* dst, int64_t t, int real,
                                               const float (&sum)[DP / 8][4], bf16* kept) {
  if (!a.cos) return store_rows<DP>(dst, a.lddqkv, real, a.D, sum, a.scale, a.scale, units.pairs);
  copy_wait<0>();  // without a single tile to stream, the copies of the kept ones are still under way
  __syncthreads();
  float* room = (float*)kept + threadIdx.x / 32 * 16 * pitch(DP);
  if (units.angles)
    store_rotated_back<DP, 2>(dst, a.lddqkv, real, a.D, sum, a.scale, room, a.cos, a.sin, a.positions + t);
  else
    store_rotated_back<DP, 1>(dst, a.lddqkv, real, a.D, sum, a.scale, room, a.cos, a.sin, a.positions + t);
}

// Block (segment * H + head, tile of 64 rows, longest first). The launch bounds here and below ask for no more blocks a multiprocessor than
// registers allow without spilling on any chip; 0 leaves them to the compiler.
template <int DP, int KEYS>
__global__ void __launch_bounds__(128, DP <= 64 ? 4 : DP <= 128 ? 3 : 2) dq_kernel(const Attention a, const Units units) {
  extern __shared__ __align__(16) bf16 shared[];
  const int h = blockIdx.x % a.H, kv = h / (a.H / a.K);
  const Segment segment = segment_of(a, blockIdx.x / a.H);
  const int first = (gridDim.y - 1 - blockIdx.y) * ROWS, rows = min(ROWS, segment.length - first);
  if (rows <= 0) return;
  const int64_t t0 = segment.start + first;
  const int all_keys = min(segment.keys, first + rows);

  bf16* q = shared;                       // [ROWS, DP]
  bf16* g = q + ROWS * pitch(DP);         // [ROWS, DP] of dout
  bf16* stages = g + ROWS * pitch(DP);    // 2 of [2 KEYS, DP]
  load_tile<ROWS, DP>(q, a.q + t0 * a.ldqkv + (int64_t)h * a.D, a.ldqkv, rows, a.D, units.in);
  load_tile<ROWS, DP>(g, a.dout + t0 * a.lddout + (int64_t)h * a.D, a.lddout, rows, a.D, units.in);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = first + warp * 16 + lane / 4;  // and row + 8
  const float scale = a.scale * LOG2E;
  float lse[2], delta[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const bool real = row + r * 8 < segment.length;
    const int64_t at = (segment.start + row + r * 8) * a.H + h;
    lse[r] = real ? a.lse[at] * LOG2E : 0.0f;
    delta[r] = real ? a.delta[at] : 0.0f;
  }
  float sum[DP / 8][4] = {};

  const auto where = [&](int i) -> Source {
    const int64_t at = (segment.start + i * KEYS) * a.ldqkv + (int64_t)kv * a.D;
    return {a.k + at, a.ldqkv, a.v + at, a.ldqkv, min(KEYS, all_keys - i * KEYS)};
  };
  stream_tiles<KEYS, DP>((all_keys + KEYS - 1) / KEYS, a.D, units.in, stages, where, [&](int i, const bf16* k, const bf16* v) {
    const int k0 = i * KEYS;
    if (k0 > first + warp * 16 + 15) return;
    float s[KEYS / 8][4] = {}, dp[KEYS / 8][4] = {};
    product_nt<DP, KEYS>(s, q + warp * 16 * pitch(DP), k);
    product_nt<DP, KEYS>(dp, g + warp * 16 * pitch(DP), v);
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int key = k0 + n * 8 + lane % 4 * 2 + (e & 1), r = e >> 1;
        const bool visible = key <= row + r * 8 && key < segment.keys;
        s[n][e] = visible ? power_of_two(s[n][e] * scale - lse[r]) * (dp[n][e] - delta[r]) : 0.0f;
      }
    uint32_t ds[KEYS / 16][4];
    to_operand<KEYS>(ds, s);
    product_nn<DP, KEYS, DP>(sum, ds, k);
  });
  const int64_t t = t0 + warp * 16;
  store_gradient<DP>(a, units, a.dq + t * a.lddqkv + (int64_t)h * a.D, t, rows - warp * 16, sum, shared);
}

// Block (segment * K + head, tile of 64 keys). Streams q and dout of all query heads of the group; scores stand transposed, keys along
// the warp's rows. DK, DV: which of the two it computes; both, unless their sums are more than a thread has registers.
template <int DP, int QUERIES, bool DK, bool DV>
__global__ void __launch_bounds__(128, DP <= 16 ? 4 : DP <= 32 ? 3 : 0) dkv_kernel(const Attention a, const Units units) {
  extern __shared__ __align__(16) bf16 shared[];
  const int kv = blockIdx.x % a.K, group = a.H / a.K;
  const Segment segment = segment_of(a, blockIdx.x / a.K);
  const int first = blockIdx.y * ROWS, rows = min(ROWS, segment.length - first);
  if (rows <= 0) return;
  const int64_t t0 = segment.start + first;
  const int keys = min(rows, segment.keys - first);  // <= 0: every row is padding, dk and dv are zero

  bf16* k = shared;                     // [ROWS, DP]
  bf16* v = k + ROWS * pitch(DP);       // [ROWS, DP]
  bf16* stages = v + ROWS * pitch(DP);  // 2 of [2 QUERIES, DP]
  const int64_t at_kv = t0 * a.ldqkv + (int64_t)kv * a.D;
  load_tile<ROWS, DP>(k, a.k + at_kv, a.ldqkv, keys, a.D, units.in);
  if constexpr (DK) load_tile<ROWS, DP>(v, a.v + at_kv, a.ldqkv, keys, a.D, units.in);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = first + warp * 16 + lane / 4;  // the key; and row + 8
  const float scale = a.scale * LOG2E;
  const int start = first / QUERIES * QUERIES, per_head = (segment.length - start + QUERIES - 1) / QUERIES;
  float dk[DK ? DP / 8 : 1][4] = {}, dv[DV ? DP / 8 : 1][4] = {};

  const auto where = [&](int i) -> Source {
    const int h = kv * group + i / per_head, q0 = start + i % per_head * QUERIES;
    const int64_t t = segment.start + q0;
    return {a.q + t * a.ldqkv + (int64_t)h * a.D, a.ldqkv, a.dout + t * a.lddout + (int64_t)h * a.D, a.lddout,
            min(QUERIES, segment.length - q0)};
  };
  stream_tiles<QUERIES, DP>(keys > 0 ? per_head * group : 0, a.D, units.in, stages, where, [&](int i, const bf16* q, const bf16* g) {
    const int h = kv * group + i / per_head, q0 = start + i % per_head * QUERIES;
    if (q0 + QUERIES - 1 < first + warp * 16) return;
    float s[QUERIES / 8][4] = {}, dp[QUERIES / 8][4] = {}, lse[QUERIES / 4], delta[QUERIES / 4];
#pragma unroll
    for (int c = 0; c < QUERIES / 4; c++) {  // asked for before the products, so that these hide the wait
      const int query = min(q0 + c / 2 * 8 + lane % 4 * 2 + c % 2, segment.length - 1);
      const int64_t at = (segment.start + query) * a.H + h;
      lse[c] = a.lse[at];
      delta[c] = a.delta[at];
    }
    product_nt<DP, QUERIES>(s, k + warp * 16 * pitch(DP), q);
    if constexpr (DK) product_nt<DP, QUERIES>(dp, v + warp * 16 * pitch(DP), g);
#pragma unroll
    for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int query = q0 + n * 8 + lane % 4 * 2 + e % 2, key = row + e / 2 * 8, c = 2 * n + e % 2;
        const bool visible = query < segment.length && key <= query && key < segment.keys;
        s[n][e] = visible ? power_of_two(s[n][e] * scale - lse[c] * LOG2E) : 0.0f;
        dp[n][e] = s[n][e] * (dp[n][e] - delta[c]);
      }
    uint32_t operand[QUERIES / 16][4];
    if constexpr (DV) {
      to_operand<QUERIES>(operand, s);
      product_nn<DP, QUERIES, DP>(dv, operand, g);
    }
    if constexpr (DK) {
      to_operand<QUERIES>(operand, dp);
      product_nn<DP, QUERIES, DP>(dk, operand, q);
    }
  });
  const int64_t t = t0 + warp * 16, at = t * a.lddqkv + (int64_t)kv * a.D;
  if constexpr (DV) store_rows<DP>(a.dv + at, a.lddqkv, rows - warp * 16, a.D, dv, 1.0f, 1.0f, units.pairs);
  if constexpr (DK) store_gradient<DP>(a, units, a.dk + at, t, rows - warp * 16, dk, shared);
}

// ---- launch ----------------------------------------------------------------------------------------------------------

// Tiles of the streamed side. All fit twice into 99 KB, what a block may have on sm_86 and sm_89.
constexpr int forward_keys(int DP) { return DP > 128 ? 32 : 64; }
constexpr int backward_rows(int DP) { return DP > 128 ? 16 : 32; }
constexpr int shared_bytes(int DP, int fixed_rows, int streamed) { return (fixed_rows + 4 * streamed) * pitch(DP) * 2; }

template <typename Kernel>
cudaError_t launch(const Launch& on, Kernel* kernel, dim3 grid, int bytes, const Attention& a, Units units) {
  const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (status != cudaSuccess) return status;
  kernel<<<grid, 128, bytes, on.stream>>>(a, units);
  return cudaGetLastError();
}

template <int DP>
cudaError_t forward(const Launch& on, const Attention& a, Units units) {
  const dim3 grid(max(1, a.S * a.H), max(1, (a.max_length + ROWS - 1) / ROWS));
  return launch(on, forward_kernel<DP, forward_keys(DP)>, grid, shared_bytes(DP, ROWS, forward_keys(DP)), a, units);
}

template <int DP>
cudaError_t backward(const Launch& on, const Attention& a, Units units) {
  constexpr int streamed = backward_rows(DP), bytes = shared_bytes(DP, 2 * ROWS, streamed);
  const int tiles = (a.max_length + ROWS - 1) / ROWS;
  if (a.S == 0 || tiles == 0) return cudaSuccess;
  const dim3 grid(a.S * a.K, tiles);
  cudaError_t status;
  if constexpr (DP <= 128) {
    status = launch(on, dkv_kernel<DP, streamed, true, true>, grid, bytes, a, units);
  } else {
    status = launch(on, dkv_kernel<DP, streamed, false, true>, grid, bytes, a, units);
    if (status == cudaSuccess) status = launch(on, dkv_kernel<DP, streamed, true, false>, grid, bytes, a, units);
  }
  if (status != cudaSuccess) return status;
  return launch(on, dq_kernel<DP, streamed>, dim3(a.S * a.H, tiles), bytes, a, units);
}

// Calls f with the smallest compiled head dimension that holds D as a template argument.
template <typename F>
cudaError_t with_head_dimension(int D, F f) {
  if (D <= 16) return f(std::integral_constant<int, 16>());
  if (D <= 32) return f(std::integral_constant<int, 32>());
  if (D <= 64) return f(std::integral_constant<int, 64>());
  if (D <= 96) return f(std::integral_constant<int, 96>());
  if (D <= 128) return f(std::integral_constant<int, 128>());
  return f(std::integral_constant<int, 256>());
}

// Whether all addresses and leading dimensions (elements) are multiples of `elements`.
template <typename... P>
bool aligned(int elements, int64_t ld_one, int64_t ld_two, P... pointers) {
  const bool lds = ld_one % elements == 0 && ld_two % elements == 0;
  return lds && ((uintptr_t(pointers) % (elements * sizeof(bf16)) == 0) && ...);
}

Units units_of(const Attention& a) {
  const auto fits = [&](int elements) {
    return a.D % elements == 0 && aligned(elements, a.ldqkv, a.lddout, a.q, a.k, a.v, a.dout);
  };
  const bool pairs = a.dout ? aligned(2, a.lddqkv, 0, a.dq, a.dk, a.dv) : aligned(2, a.ldo, 0, a.out);
  return {fits(8) ? 8 : fits(2) ? 2 : 1, pairs, pairs && a.D % 4 == 0 && aligned(4, 0, 0, a.cos, a.sin)};
}

// Shapes that no kernel here takes.
bool refused(const Attention& a) {
  return a.D < 2 || a.D > 256 || a.D % 2 || a.H < 1 || a.K < 1 || a.H % a.K || a.S < 0 || a.max_length < 0;
}

}  // namespace

// Errors: cudaErrorInvalidValue for an odd D, D > 256, or H that K does not divide.
cudaError_t attention_forward(const Launch& on, int64_t T, int64_t S, int64_t max_length, const int32_t* cu, const int32_t* kv_lens,
                              int64_t H, int64_t K, int64_t D, float scale, const bf16* q, const bf16* k, const bf16* v, int64_t ldqkv,
                              bf16* out, int64_t ldo, float* lse) {
  Attention a = {T, (int)S, (int)max_length, cu, kv_lens, (int)H, (int)K, (int)D, scale, q, k, v, ldqkv, out, ldo, lse};
  if (refused(a)) return cudaErrorInvalidValue;
  if (T <= 0) return cudaSuccess;
  if (hopper_attention_fits(on, a)) return hopper_attention_forward(on, a);
  return with_head_dimension(a.D, [&](auto DP) { return forward<DP()>(on, a, units_of(a)); });
}

// Errors as attention_forward. work [T, H] holds delta afterwards.
cudaError_t attention_backward(const Launch& on, int64_t T, int64_t S, int64_t max_length, const int32_t* cu, const int32_t* kv_lens,
                               int64_t H, int64_t K, int64_t D, float scale, const bf16* q, const bf16* k, const bf16* v, int64_t ldqkv,
                               const bf16* out, int64_t ldo, const float* lse, const bf16* dout, int64_t lddout, bf16* dq, bf16* dk,
                               bf16* dv, int64_t lddqkv, float* work, const float* cos, const float* sin, const int32_t* positions) {
  Attention a = {T, (int)S, (int)max_length, cu, kv_lens, (int)H, (int)K, (int)D, scale, q, k, v, ldqkv, (bf16*)out, ldo, (float*)lse};
  a.dout = dout;
  a.lddout = lddout;
  a.dq = dq;
  a.dk = dk;
  a.dv = dv;
  a.lddqkv = lddqkv;
  a.delta = work;
  a.cos = cos;
  a.sin = sin;
  a.positions = positions;
  if (refused(a)) return cudaErrorInvalidValue;
  if (T <= 0) return cudaSuccess;
  const bool wide = a.D % 8 == 0 && aligned(8, ldo, lddout, out, dout);
  delta_kernel<<<(unsigned)((T * H * 8 + 255) / 256), 256, 0, on.stream>>>(a, wide ? 8 : 1);
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) return status;
  if (hopper_attention_fits(on, a)) return hopper_attention_backward(on, a);
  return with_head_dimension(a.D, [&](auto DP) { return backward<DP()>(on, a, units_of(a)); });
}

}  // namespace cuda
}  // namespace metalora
