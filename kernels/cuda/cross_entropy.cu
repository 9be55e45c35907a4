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

// What is known of a part of a row: its largest element, the first place of it, and sum = sum 2^(LOG2E z - power) with power =
// LOG2E largest rounded to float. That is the only rounding of the exponent before 2^x, and since the loss uses `power` and not
// `largest`, it cancels. A NaN or an infinity among the elements makes the sum NaN.
struct Part {
  float largest, power, sum;
  uint32_t at;
};
static __device__ __forceinline__ Part empty_part() { return {-CUDART_INF_F, -CUDART_INF_F, 0.0f, NOWHERE}; }

// 2^x in one instruction; 0 below the normal range.
static __device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// What a sum at `from` is worth at `to`; 1 where they are equal, so that two empty parts (-inf) stay empty.
static __device__ __forceinline__ float worth(float from, float to) { return from == to ? 1.0f : power_of_two(from - to); }

// The same bits in either order.
static __device__ __forceinline__ Part merge(Part a, Part b) {
  const bool first = a.largest > b.largest || (a.largest == b.largest && a.at < b.at);
  const float power = fmaxf(a.power, b.power);
  const float sum = __fadd_rn(__fmul_rn(a.sum, worth(a.power, power)), __fmul_rn(b.sum, worth(b.power, power)));
  return {first ? a.largest : b.largest, power, sum, first ? a.at : b.at};
}

// Adds W elements, the `index`-th access of the row. part.at counts accesses, not elements, until `resolve`.
template <int W>
static __device__ __forceinline__ void add(Part& part, const float (&z)[W], uint32_t index) {
  float largest = z[0];
#pragma unroll
  for (int i = 1; i < W; i++) largest = fmaxf(largest, z[i]);
  if (largest > part.largest || (part.at == NOWHERE && largest == part.largest)) {
    const float power = largest * LOG2E;
    part.sum *= worth(part.power, power);
    part.largest = largest;
    part.power = power;
    part.at = index;
  }
  float sum[2] = {}, fault = 0;  // fault is NaN unless every z is finite: -inf would go unseen in the sum
#pragma unroll
  for (int i = 0; i < W; i++) {
    sum[i % 2] += power_of_two(fmaf(z[i], LOG2E, -part.power));
    fault = fmaf(z[i], 0.0f, fault);
  }
  part.sum += sum[0] + sum[1] + fault;
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

// The part of all lanes of a warp, the same in each of them.
static __device__ __forceinline__ Part warp_merge(Part part) {
#pragma unroll
  for (int step = WARP / 2; step > 0; step /= 2)
    part = merge(part, {__shfl_xor_sync(ALL_LANES, part.largest, step), __shfl_xor_sync(ALL_LANES, part.power, step),
                        __shfl_xor_sync(ALL_LANES, part.sum, step), __shfl_xor_sync(ALL_LANES, part.at, step)});
  return part;
}

// The whole block's part, the same in every thread.
static __device__ __forceinline__ Part block_merge(Part part) {
  __shared__ Part parts[WARP];
  part = warp_merge(part);
  const int lane = threadIdx.x % WARP;
  if (lane == 0) parts[threadIdx.x / WARP] = part;
  __syncthreads();
  return warp_merge(lane < (int)blockDim.x / WARP ? parts[lane] : empty_part());
}

// z_label is read before anything of the row is overwritten; NaN when the label is none.
static __device__ __forceinline__ float logit_of(const float* z, int32_t label, int64_t V) {
  return label >= 0 && label < V ? z[label] : CUDART_NAN_F;
}

static __device__ __forceinline__ void write_results(const Part& part, float z_label, float* losses, int32_t* argmax, int64_t r) {
  losses[r] = (float)(log((double)part.sum) + ((double)part.power / (double)LOG2E - (double)z_label));
  if (argmax) argmax[r] = part.at == NOWHERE ? 0 : (int32_t)part.at;
}

// What the gradient of a row needs: dL/dz_v = scale 2^(LOG2E z_v - power) - seed [v = label].
struct Slope {
  float power, scale, seed;
  int64_t label;
};

template <int W>
static __device__ __forceinline__ void gradient(const Slope& slope, const float (&z)[W], int64_t v, bf16* out) {
  float g[W];
#pragma unroll
  for (int i = 0; i < W; i++) g[i] = power_of_two(fmaf(z[i], LOG2E, -slope.power)) * slope.scale;
  if ((uint64_t)(slope.label - v) < W) {
#pragma unroll
    for (int i = 0; i < W; i++)
      if (v + i == slope.label) g[i] -= slope.seed;
  }
  if constexpr (W == 4)
    *reinterpret_cast<uint2*>(out + v) = make_uint2(pack2(g[0], g[1]), pack2(g[2], g[3]));
  else
    for (int i = 0; i < W; i++) out[v + i] = __float2bfloat16_rn(g[i]);
}

// ---- a row in the shared memory of a cluster of blocks --------------------------------------------------------------

static const int CLUSTER_THREADS = 512;

// Starts to copy W floats into shared memory.
template <int W>
static __device__ __forceinline__ void copy_async(float* to, const float* from) {
  const uint32_t address = (uint32_t)__cvta_generic_to_shared(to);
  if constexpr (W == 4)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(address), "l"(from) : "memory");
}

// Waits for this thread's groups of copies but the last `groups` (a constant once unrolled).
[[maybe_unused]] static __device__ __forceinline__ void wait_for_all_but(int groups) {
  if (groups == 3)
    asm volatile("cp.async.wait_group 3;" ::: "memory");
  else if (groups == 2)
    asm volatile("cp.async.wait_group 2;" ::: "memory");
  else if (groups == 1)
    asm volatile("cp.async.wait_group 1;" ::: "memory");
  else
    asm volatile("cp.async.wait_group 0;" ::: "memory");
}

// `share` elements of the row a block (a multiple of W); the last block has what is left, perhaps nothing.
template <int W>
static __global__ void __launch_bounds__(CLUSTER_THREADS) shared_row(int64_t V, int share, int cluster, float* logits,
                                                                     const int32_t* labels, const float* seeds, float* losses,
                                                                     int32_t* argmax, bool backward) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) float mine[];
  __shared__ Part known;
  cg::cluster_group group = cg::this_cluster();
  const int rank = (int)(blockIdx.x % cluster), stride = blockDim.x;
  const int64_t r = blockIdx.x / cluster, begin = (int64_t)rank * share;
  const int accesses = (int)((begin >= V ? 0 : begin + share < V ? share : V - begin) / W);
  float* z = logits + r * V;
  const int32_t label = labels[r];
  const float z_label = logit_of(z, label, V);

  // Everything is on its way at once; a thread computes with what it copied itself, a quarter at a time.
  const int PIECES = 4, piece = (accesses + PIECES * stride - 1) / (PIECES * stride) * stride;
#pragma unroll
  for (int p = 0; p < PIECES; p++) {
#pragma unroll 4
    for (int index = p * piece + threadIdx.x; index < min(accesses, (p + 1) * piece); index += stride)
      copy_async<W>(mine + index * W, z + begin + (int64_t)index * W);
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  Part part = empty_part();
#pragma unroll
  for (int p = 0; p < PIECES; p++) {
    wait_for_all_but(PIECES - 1 - p);
#pragma unroll 2
    for (int index = p * piece + threadIdx.x; index < min(accesses, (p + 1) * piece); index += stride) {
      float x[W];
      load<W>(mine + index * W, x);
      add<W>(part, x, index);
    }
  }
  resolve<W>(part, mine);  // a thread reads what it wrote itself
  if (part.at != NOWHERE) part.at += (uint32_t)begin;
  part = block_merge(part);
  if (threadIdx.x == 0) known = part;
  group.sync();  // from here on every block holds its share, and device memory may be overwritten
  const int lane = threadIdx.x % WARP;
  part = warp_merge(lane < cluster ? *group.map_shared_rank(&known, lane) : empty_part());
  cg::cluster_group::arrival_token read = group.barrier_arrive();
  if (backward) {
    const float seed = seeds[r];
    const Slope slope = {part.power, seed / part.sum, seed, label};
    bf16* out = reinterpret_cast<bf16*>(z);
#pragma unroll 4
    for (int index = threadIdx.x; index < accesses; index += stride) {
      float x[W];
      load<W>(mine + index * W, x);
      gradient<W>(slope, x, begin + (int64_t)index * W, out);
    }
  }
  if (rank == 0 && threadIdx.x == 0) write_results(part, z_label, losses, argmax, r);
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

  Part part = empty_part();
#pragma unroll UNROLL
  for (int64_t index = threadIdx.x; index < accesses; index += LONG_THREADS) {
    float x[W];
    load<W>(z + index * W, x);
    add<W>(part, x, (uint32_t)index);
  }
  resolve<W>(part, z);
  part = block_merge(part);  // its barrier: z_label and the elements of `resolve` are read
  if (threadIdx.x == 0) write_results(part, z_label, losses, argmax, r);
  if (!backward) return;
  const float seed = seeds[r];
  const Slope slope = {part.power, seed / part.sum, seed, label};

  // Piece c of C elements lies at bytes 4 C c .. 4 C (c + 1), its gradient at 2 C c .. 2 C (c + 1): over pieces that are not
  // needed any more, or over itself (c = 0). So everybody reads piece c, and then it is written.
  bf16* out = reinterpret_cast<bf16*>(z);
  float x[W], next[W];
  int64_t index = threadIdx.x;
  if (index < accesses) load<W>(z + index * W, x);
  for (int64_t first = 0; first < accesses; first += LONG_THREADS, index += LONG_THREADS) {
    if (index + LONG_THREADS < accesses) load<W>(z + (index + LONG_THREADS) * W, next);
    __syncthreads();
    if (index < accesses) gradient<W>(slope, x, index * W, out);
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
      return launch_clusters(on, wide ? shared_row<4> : shared_row<1>, R * cluster, CLUSTER_THREADS, (size_t)share * 4, cluster, false, V,
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
