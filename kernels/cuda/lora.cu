// lora.cu: the adapters of a linear layer from their f32 masters into what the products read: A cast to bf16, s B behind the rows of
// W. One launch a layer: a model has hundreds of them, and each is small.
#include "kernels.h"

namespace metalora {
namespace cuda {

static constexpr int THREADS = 256, EIGHT = 8, A_PER_BLOCK = THREADS * EIGHT * 2;

struct Groups {
  int count;
  int32_t d_out[MOST_GROUPS], r[MOST_GROUPS];
  float scale[MOST_GROUPS];
};

// The adapter of row n of W: where its row of B starts in theta, and its columns behind d_in.
struct Place {
  int64_t B;
  int begin, r;
  float scale;
};

static __device__ __forceinline__ Place place_of(const Groups& groups, int64_t n, int64_t B) {
  int64_t row = 0;
  int begin = 0, g = 0;
  for (; g < groups.count - 1 && n >= row + groups.d_out[g]; g++) {
    row += groups.d_out[g];
    begin += groups.r[g];
    B += (int64_t)groups.d_out[g] * groups.r[g];
  }
  return {B + (n - row) * groups.r[g], begin, groups.r[g], groups.scale[g]};
}

static __device__ __forceinline__ void cast_eight(const float* from, float scale, bf16* to) {
  const float4 low = *reinterpret_cast<const float4*>(from), high = *reinterpret_cast<const float4*>(from + 4);
  __nv_bfloat162 pairs[4] = {__floats2bfloat162_rn(scale * low.x, scale * low.y), __floats2bfloat162_rn(scale * low.z, scale * low.w),
                             __floats2bfloat162_rn(scale * high.x, scale * high.y), __floats2bfloat162_rn(scale * high.z, scale * high.w)};
  *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(pairs);
}

// Blocks 0 .. a_blocks-1 cast A [Q, d_in]; the others write columns d_in .. d_in+Q-1 of W, `rows` rows each.
template <bool EIGHTS>
static __global__ void __launch_bounds__(THREADS)
    refresh(int64_t d_in, int64_t Q, int64_t N, Groups groups, const float* __restrict__ theta, bf16* __restrict__ W, int64_t ldw,
            bf16* __restrict__ a_cast, int64_t lda, int64_t a_blocks, int rows) {
  if (blockIdx.x < a_blocks) {
    const int64_t first = (int64_t)blockIdx.x * A_PER_BLOCK, end = min(first + A_PER_BLOCK, Q * d_in);
    for (int64_t j = first + threadIdx.x * EIGHT; j < end; j += THREADS * EIGHT) {
      if (EIGHTS)  // a row is a multiple of eight
        cast_eight(theta + j, 1.0f, a_cast + j / d_in * lda + j % d_in);
      else
        for (int64_t i = j; i < min(j + EIGHT, end); i++) a_cast[i / d_in * lda + i % d_in] = __float2bfloat16(theta[i]);
    }
    return;
  }
  if (EIGHTS) {  // every rank is a multiple of eight: eight columns belong to one matrix
    const int per_row = (int)(Q / EIGHT);
    const int64_t first = (int64_t)(blockIdx.x - a_blocks) * rows;
    for (int i = threadIdx.x; i < rows * per_row; i += THREADS) {
      const int64_t n = first + i / per_row;
      if (n >= N) break;
      const int column = i % per_row * EIGHT;
      const Place place = place_of(groups, n, Q * d_in);
      bf16* to = W + n * ldw + d_in + column;
      const int j = column - place.begin;
      if (j >= 0 && j < place.r)
        cast_eight(theta + place.B + j, place.scale, to);
      else
        *reinterpret_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
    }
    return;
  }
  const int64_t first = (int64_t)(blockIdx.x - a_blocks) * rows;
  for (int64_t i = threadIdx.x; i < (int64_t)rows * Q; i += THREADS) {
    const int64_t n = first + i / Q;
    const int column = (int)(i % Q);
    if (n >= N) break;
    const Place place = place_of(groups, n, Q * d_in);
    const int j = column - place.begin;
    const bool own = j >= 0 && j < place.r;
    W[n * ldw + d_in + column] = __float2bfloat16(own ? place.scale * theta[place.B + j] : 0.0f);
  }
}

cudaError_t lora_refresh(const Launch& on, int64_t d_in, int G, const Group* table, const float* scales, const float* theta, bf16* W,
                         int64_t ldw, bf16* a_cast, int64_t lda) {
  Groups groups = {};
  groups.count = G;
  int64_t N = 0, Q = 0;
  bool eights = d_in % EIGHT == 0 && ldw % EIGHT == 0 && lda % EIGHT == 0 && (uintptr_t)W % 16 == 0 && (uintptr_t)theta % 16 == 0 && (uintptr_t)a_cast % 16 == 0;
  for (int g = 0; g < G; g++) {
    eights = eights && table[g].r % EIGHT == 0;
    groups.d_out[g] = table[g].d_out;
    groups.r[g] = table[g].r;
    groups.scale[g] = scales[g];
    N += table[g].d_out;
    Q += table[g].r;
  }
  if (Q == 0) return cudaSuccess;
  const int64_t most = A_PER_BLOCK / Q;
  const int rows = most < 1 ? 1 : (int)most;  // of W, a block
  const int64_t a_blocks = a_cast ? (Q * d_in + A_PER_BLOCK - 1) / A_PER_BLOCK : 0;
  const unsigned grid = (unsigned)(a_blocks + (N + rows - 1) / rows);
  const auto kernel = eights ? refresh<true> : refresh<false>;
  kernel<<<grid, THREADS, 0, on.stream>>>(d_in, Q, N, groups, theta, W, ldw, a_cast, lda, a_blocks, rows);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace metalora
