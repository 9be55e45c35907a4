// cross_entropy.cu: losses and gradients of a chunk of logits, in place.
//
//   loss_r = log sum_v exp(z_v) - z_label          dL/dz_v = seed_r (softmax(z)_v - [v = label])
//
// The largest logit and the sum of exp(z - largest) are formed together in one pass (Milakov and Gimelshein 2018,
// arXiv:1805.02867). A NaN or an infinity among the logits makes the loss NaN. A label outside 0 .. V-1 makes it NaN too; the
// gradient of such a row is seed softmax(z).
//
// A row of logits is f32, its gradient bf16 in the first half of the same memory. With clusters of blocks (9.0) the row is
// spread over their shared memory, and is read from and written to device memory once; elsewhere it is read twice.
#include <cooperative_groups.h>
#include <math_constants.h>

#include "math.cuh"

namespace metalora {
namespace cuda {

namespace cg = cooperative_groups;

static const float LOG2E = 1.4426950408889634f;
static const uint32_t NOWHERE = 0xffffffffu;

// What is known of a part of a row: its largest element and the first place of it, and sum = sum exp(z - largest), which
// is NaN when an element is NaN or infinite.
struct Part {
  float largest, sum;
  uint32_t at;
};

// exp(x - largest) for x <= largest; 1 where they are equal, so that two empty parts (-inf) stay empty.
static __device__ __forceinline__ float relative(float x, float largest) { return x == largest ? 1.0f : exp2f((x - largest) * LOG2E); }

static __device__ __forceinline__ Part merge(Part a, Part b) {
  const float largest = fmaxf(a.largest, b.largest);
  const bool first = a.largest > b.largest || (a.largest == b.largest && a.at < b.at);
  return {largest, a.sum * relative(a.largest, largest) + b.sum * relative(b.largest, largest), first ? a.at : b.at};
}

// Adds W elements, the `index`-th access of the row. part.at counts accesses, not elements, until `resolve`.
template <int W>
static __device__ __forceinline__ void add(Part& part, const float (&z)[W], uint32_t index) {
  float largest = z[0];
#pragma unroll
  for (int i = 1; i < W; i++) largest = fmaxf(largest, z[i]);
  if (largest > part.largest || (part.at == NOWHERE && largest == part.largest)) {
    part.sum *= relative(part.largest, largest);
    part.largest = largest;
    part.at = index;
  }
#pragma unroll
  for (int i = 0; i < W; i++) part.sum += fmaf(z[i], 0.0f, exp2f((z[i] - part.largest) * LOG2E));  // z 0 is NaN unless z is finite
}

// part.at becomes the element's place in z.
template <int W>
static __device__ __forceinline__ void resolve(Part& part, const float* z) {
  if (part.at == NOWHERE) return;
  float x[W];
  load<W>(z + (int64_t)part.at * W, x);
  uint32_t at = part.at * W;
#pragma unroll
  for (int i = W - 1; i >= 0; i--)
    if (x[i] == part.largest) at = part.at * W + i;
  part.at = at;
}

// The whole block's part, the same in every thread.
static __device__ __forceinline__ Part block_merge(Part part) {
  __shared__ Part parts[WARP];
#pragma unroll
  for (int step = WARP / 2; step > 0; step /= 2) {
    const Part other = {__shfl_xor_sync(ALL_LANES, part.largest, step), __shfl_xor_sync(ALL_LANES, part.sum, step),
                        __shfl_xor_sync(ALL_LANES, part.at, step)};
    part = merge(part, other);
  }
  if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = part;
  __syncthreads();
  part = parts[0];
  for (int i = 1; i < (int)blockDim.x / WARP; i++) part = merge(part, parts[i]);
  return part;
}

// What the row's results and its gradient need.
struct Row {
  float largest, scale, seed;  // dL/dz_v = scale exp(z_v - largest) - seed [v = label]
};

// z_label was read before anything of the row was overwritten; NaN when the label is none.
static __device__ __forceinline__ float logit_of(const float* z, int32_t label, int64_t V) {
  return label >= 0 && label < V ? z[label] : CUDART_NAN_F;
}

static __device__ __forceinline__ Row finish(Part part, float z_label, const float* seeds, float* losses, int32_t* argmax, int64_t r,
                                             bool writes, bool backward) {
  if (writes) {
    losses[r] = (float)(log((double)part.sum) + ((double)part.largest - (double)z_label));
    if (argmax) argmax[r] = part.at == NOWHERE ? 0 : (int32_t)part.at;
  }
  const float seed = backward ? seeds[r] : 0.0f;
  return {part.largest, seed / part.sum, seed};
}

template <int W>
static __device__ __forceinline__ void gradient(const Row& row, const float (&z)[W], int64_t v, int32_t label, bf16* out) {
  float g[W];
#pragma unroll
  for (int i = 0; i < W; i++) {
    g[i] = exp2f((z[i] - row.largest) * LOG2E) * row.scale;
    if (v + i == label) g[i] -= row.seed;
  }
  if constexpr (W == 4)
    *reinterpret_cast<uint2*>(out + v) = make_uint2(pack2(g[0], g[1]), pack2(g[2], g[3]));
  else
    for (int i = 0; i < W; i++) out[v + i] = __float2bfloat16_rn(g[i]);
}

// ---- a row in the shared memory of a cluster of blocks --------------------------------------------------------------

static const int CLUSTER_THREADS = 512;

// `share` elements of the row a block (a multiple of W); the last block has what is left, perhaps nothing.
template <int W>
static __global__ void __launch_bounds__(CLUSTER_THREADS) shared_row(int64_t V, int share, int cluster, float* logits, const int32_t* labels,
                                                                     const float* seeds, float* losses, int32_t* argmax, bool backward) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) float mine[];
  __shared__ Part known;
  cg::cluster_group group = cg::this_cluster();
  const int rank = (int)(blockIdx.x % cluster), stride = blockDim.x, UNROLL = 4;
  const int64_t r = blockIdx.x / cluster, begin = (int64_t)rank * share;
  const int accesses = (int)((begin >= V ? 0 : begin + share < V ? share : V - begin) / W);
  float* z = logits + r * V;
  const int32_t label = labels[r];
  const float z_label = logit_of(z, label, V);

  Part part = {-CUDART_INF_F, 0.0f, NOWHERE};
  for (int first = threadIdx.x; first < accesses; first += UNROLL * stride) {
    float x[UNROLL][W];
#pragma unroll
    for (int u = 0; u < UNROLL; u++)
      if (first + u * stride < accesses) load<W>(z + begin + (int64_t)(first + u * stride) * W, x[u]);
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const int index = first + u * stride;
      if (index >= accesses) continue;
      store<W>(mine + index * W, x[u]);
      add<W>(part, x[u], index);
    }
  }
  resolve<W>(part, mine);  // a thread reads what it wrote itself
  if (part.at != NOWHERE) part.at += (uint32_t)begin;
  part = block_merge(part);
  if (threadIdx.x == 0) known = part;
  group.sync();  // from here on every block holds its share, and device memory may be overwritten
  part = *group.map_shared_rank(&known, 0);
  for (int i = 1; i < cluster; i++) part = merge(part, *group.map_shared_rank(&known, i));
  cg::cluster_group::arrival_token read = group.barrier_arrive();
  const Row row = finish(part, z_label, seeds, losses, argmax, r, rank == 0 && threadIdx.x == 0, backward);
  if (backward) {
    bf16* out = reinterpret_cast<bf16*>(z);
    for (int index = threadIdx.x; index < accesses; index += stride) {
      float x[W];
      load<W>(mine + index * W, x);
      gradient<W>(row, x, begin + (int64_t)index * W, label, out);
    }
  }
  group.barrier_wait(static_cast<cg::cluster_group::arrival_token&&>(read));  // `known` is read by others
#endif
}

// ---- a row of any length, read twice --------------------------------------------------------------------------------

static const int LONG_THREADS = 1024;

template <int W>
static __global__ void __launch_bounds__(LONG_THREADS) long_row(int64_t V, float* logits, const int32_t* labels, const float* seeds,
                                                                float* losses, int32_t* argmax, bool backward) {
  const int64_t r = blockIdx.x, accesses = V / W;
  const int UNROLL = 16 / W < 4 ? 4 : 16 / W;
  float* z = logits + r * V;
  const int32_t label = labels[r];
  const float z_label = logit_of(z, label, V);

  Part part = {-CUDART_INF_F, 0.0f, NOWHERE};
#pragma unroll UNROLL
  for (int64_t index = threadIdx.x; index < accesses; index += LONG_THREADS) {
    float x[W];
    load<W>(z + index * W, x);
    add<W>(part, x, (uint32_t)index);
  }
  resolve<W>(part, z);
  part = block_merge(part);  // its barrier: z_label and the elements of `resolve` are read
  const Row row = finish(part, z_label, seeds, losses, argmax, r, threadIdx.x == 0, backward);
  if (!backward) return;

  // Piece c of C elements lies at bytes 4 C c .. 4 C (c + 1), its gradient at 2 C c .. 2 C (c + 1): over pieces that are not
  // needed any more, or over itself (c = 0). So everybody reads piece c, and then it is written.
  bf16* out = reinterpret_cast<bf16*>(z);
  float x[W], next[W];
  int64_t index = threadIdx.x;
  if (index < accesses) load<W>(z + index * W, x);
  for (int64_t first = 0; first < accesses; first += LONG_THREADS, index += LONG_THREADS) {
    if (index + LONG_THREADS < accesses) load<W>(z + (index + LONG_THREADS) * W, next);
    __syncthreads();
    if (index < accesses) gradient<W>(row, x, index * W, label, out);
#pragma unroll
    for (int i = 0; i < W; i++) x[i] = next[i];
  }
}

cudaError_t cross_entropy(const Launch& on, int64_t R, int64_t V, float* logits, const int32_t* labels, const float* seeds, float* losses,
                          int32_t* argmax, bool backward) {
  if (R == 0 || V == 0) return cudaSuccess;
  const bool wide = V % 4 == 0 && aligned16(logits);
  if (has_clusters(on)) {
    // Three blocks on a multiprocessor hide each other's waiting: one reads while another computes and a third writes.
    const int64_t comfortable = 72 * 1024 / 4, most = 224 * 1024 / 4;
    int cluster = 1;
    while (cluster < 8 && cluster * comfortable < V) cluster *= 2;
    const int64_t share = ceil_div(ceil_div(V, cluster), 4) * 4;
    if (share <= most)
      return launch_clusters(on, wide ? shared_row<4> : shared_row<1>, R * cluster, CLUSTER_THREADS, (size_t)share * 4, cluster, V,
                             (int)share, cluster, logits, labels, seeds, losses, argmax, backward);
  }
  if (wide)
    long_row<4><<<(unsigned)R, LONG_THREADS, 0, on.stream>>>(V, logits, labels, seeds, losses, argmax, backward);
  else
    long_row<1><<<(unsigned)R, LONG_THREADS, 0, on.stream>>>(V, logits, labels, seeds, losses, argmax, backward);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace metalora
