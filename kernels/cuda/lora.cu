// lora.cu: the adapters of linear layers from their f32 masters into what the products read: A cast to bf16, s B behind the rows of W.
// A model has hundreds of layers, each of them little work: many share a launch.
#include "math.cuh"

namespace metalora {
namespace cuda {

static constexpr int THREADS = 256, EIGHT = 8, A_PER_BLOCK = THREADS * EIGHT * 2;

struct Groups {
  int count;
  int32_t d_out[MOST_GROUPS], r[MOST_GROUPS];
  float scale[MOST_GROUPS];
};

// One layer of a launch. Its first blocks cast A [Q, d_in], the others write columns d_in .. d_in+Q-1 of W, `rows` rows each.
struct Layer {
  Groups groups;
  const float* theta;
  bf16 *W, *a_cast;
  int d_in, Q, N, ldw, lda, rows;
  unsigned a_blocks, before;  // before: blocks of the layers before it
  bool eights;                // rows, ranks and addresses are on the grid of eight numbers
};

constexpr int AT_ONCE = 128;
struct Listed {
  int count;
  Layer layers[AT_ONCE];
};
static_assert(sizeof(Listed) <= 32764, "a kernel takes no more arguments");

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

static __global__ void __launch_bounds__(THREADS) refresh(const __grid_constant__ Listed list) {
  const Layer& o = list.layers[item_of(list.layers, list.count, blockIdx.x)];
  const unsigned block = blockIdx.x - o.before;
  const int64_t Q = o.Q, d_in = o.d_in;
  if (block < o.a_blocks) {
    const int64_t first = (int64_t)block * A_PER_BLOCK, end = min(first + A_PER_BLOCK, Q * d_in);
    for (int64_t j = first + threadIdx.x * EIGHT; j < end; j += THREADS * EIGHT) {
      if (o.eights)  // a row is a multiple of eight
        cast_eight(o.theta + j, 1.0f, o.a_cast + j / d_in * o.lda + j % d_in);
      else
        for (int64_t i = j; i < min(j + EIGHT, end); i++) o.a_cast[i / d_in * o.lda + i % d_in] = __float2bfloat16(o.theta[i]);
    }
    return;
  }
  const int64_t first = (int64_t)(block - o.a_blocks) * o.rows;
  const int width = o.eights ? EIGHT : 1, per_row = o.Q / width;  // eight columns belong to one matrix
  for (int i = threadIdx.x; i < o.rows * per_row; i += THREADS) {
    const int64_t n = first + i / per_row;
    if (n >= o.N) break;
    const int column = i % per_row * width;
    const Place place = place_of(o.groups, n, Q * d_in);
    bf16* to = o.W + n * o.ldw + d_in + column;
    const int j = column - place.begin;
    const bool own = j >= 0 && j < place.r;
    if (!o.eights)
      *to = __float2bfloat16(own ? place.scale * o.theta[place.B + j] : 0.0f);
    else if (own)
      cast_eight(o.theta + place.B + j, place.scale, to);
    else
      *reinterpret_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
  }
}

// What a launch is told of a layer with adapters; its blocks.
static Layer describe(const LoraLayer& layer, unsigned before, unsigned* blocks) {
  Layer o = {};
  o.theta = layer.theta, o.W = (bf16*)layer.W, o.a_cast = (bf16*)layer.a_cast;
  o.d_in = (int)layer.d_in, o.ldw = (int)layer.ldw, o.lda = (int)layer.lda, o.before = before;
  o.groups.count = layer.G;
  o.eights = o.d_in % EIGHT == 0 && o.ldw % EIGHT == 0 && o.lda % EIGHT == 0 && ((uintptr_t)o.W | (uintptr_t)o.theta | (uintptr_t)o.a_cast) % 16 == 0;
  for (int g = 0; g < layer.G; g++) {
    const Group& group = layer.groups[g];
    o.groups.d_out[g] = group.d_out, o.groups.r[g] = group.r, o.groups.scale[g] = layer.scales[g];
    o.eights = o.eights && group.r % EIGHT == 0;
    o.N += group.d_out, o.Q += group.r;
  }
  if (o.Q == 0) return o;
  o.rows = A_PER_BLOCK / o.Q < 1 ? 1 : A_PER_BLOCK / o.Q;
  o.a_blocks = o.a_cast ? (unsigned)(((int64_t)o.Q * o.d_in + A_PER_BLOCK - 1) / A_PER_BLOCK) : 0;
  *blocks = o.a_blocks + (unsigned)((o.N + o.rows - 1) / o.rows);
  return o;
}

cudaError_t lora_refresh(const Launch& on, const LoraLayer* layers, int count) {
  for (int at = 0; at < count;) {
    Listed list = {};
    unsigned all = 0;
    for (; at < count && list.count < AT_ONCE; at++) {
      unsigned blocks = 0;
      const Layer layer = describe(layers[at], all, &blocks);
      if (blocks == 0) continue;
      list.layers[list.count++] = layer;
      all += blocks;
    }
    if (all == 0) continue;
    refresh<<<all, THREADS, 0, on.stream>>>(list);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace cuda
}  // namespace metalora
