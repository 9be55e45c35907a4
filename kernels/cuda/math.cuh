// math.cuh: what the elementwise and reducing CUDA kernels share: 16-byte loads and stores, reductions in a fixed order, launches.
//
// Kernels over bf16 rows are templates over W, the elements of one access: 8 (16 bytes; rows and leading dimensions are
// aligned) or 1 (anything). The launcher looks at the pointers and picks.
#pragma once
#include "kernels.h"

namespace metalora {
namespace cuda {

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int round_to_warps(int64_t threads) { return (int)(ceil_div(threads, WARP) * WARP); }

// May rows of `count` elements of `size` bytes, ld apart, be read 16 bytes at a time? A single row has no ld.
static inline bool aligned16(const void* p, int64_t ld = 0, int size = 2) { return (uintptr_t)p % 16 == 0 && ld * size % 16 == 0; }

// ---- W elements at a time ----------------------------------------------------------------------------------------

template <int W>
struct Bits;  // W bf16 as they lie in memory
template <>
struct Bits<8> {
  uint4 raw;
};
template <>
struct Bits<1> {
  unsigned short raw;
};

template <int W>
static __device__ __forceinline__ Bits<W> load_bits(const bf16* p) {
  return *reinterpret_cast<const Bits<W>*>(p);
}
template <int W>
static __device__ __forceinline__ void store_bits(bf16* p, Bits<W> bits) {
  *reinterpret_cast<Bits<W>*>(p) = bits;
}

static __device__ __forceinline__ void unpack(Bits<1> bits, float (&x)[1]) { x[0] = __uint_as_float((uint32_t)bits.raw << 16); }
static __device__ __forceinline__ void unpack(Bits<8> bits, float (&x)[8]) {
  const uint32_t word[4] = {bits.raw.x, bits.raw.y, bits.raw.z, bits.raw.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    x[2 * i] = __uint_as_float(word[i] << 16);
    x[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
  }
}

// Two floats rounded to nearest even, the first in the low half.
static __device__ __forceinline__ uint32_t pack2(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}
static __device__ __forceinline__ Bits<1> pack(const float (&x)[1]) { return {__bfloat16_as_ushort(__float2bfloat16_rn(x[0]))}; }
static __device__ __forceinline__ Bits<8> pack(const float (&x)[8]) {
  return {make_uint4(pack2(x[0], x[1]), pack2(x[2], x[3]), pack2(x[4], x[5]), pack2(x[6], x[7]))};
}

template <int W>
static __device__ __forceinline__ void load(const bf16* p, float (&x)[W]) {
  unpack(load_bits<W>(p), x);
}
template <int W>
static __device__ __forceinline__ void store(bf16* p, const float (&x)[W]) {
  store_bits<W>(p, pack(x));
}

// W floats, 16 bytes at a time where W allows.
template <int W>
static __device__ __forceinline__ void load(const float* p, float (&x)[W]) {
  if constexpr (W % 4 == 0) {
#pragma unroll
    for (int i = 0; i < W; i += 4) {
      const float4 v = *reinterpret_cast<const float4*>(p + i);
      x[i] = v.x, x[i + 1] = v.y, x[i + 2] = v.z, x[i + 3] = v.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < W; i++) x[i] = p[i];
  }
}
template <int W>
static __device__ __forceinline__ void store(float* p, const float (&x)[W]) {
  if constexpr (W % 4 == 0) {
#pragma unroll
    for (int i = 0; i < W; i += 4) *reinterpret_cast<float4*>(p + i) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
  } else {
#pragma unroll
    for (int i = 0; i < W; i++) p[i] = x[i];
  }
}

// ---- reductions ---------------------------------------------------------------------------------------------------

// The sum over the lanes of a warp, the same bits in each of them.
template <typename T>
static __device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
  return x;
}

// The sum over a block of whole warps (at most 1024 threads), the same bits in every thread. Once a kernel: it does not wait
// for everybody to have read `parts`.
template <typename T>
static __device__ __forceinline__ T block_sum(T x) {
  __shared__ T parts[WARP];
  x = warp_sum(x);
  const int warps = blockDim.x / WARP;
  if (warps == 1) return x;
  if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
  __syncthreads();
  T sum = parts[0];
  for (int i = 1; i < warps; i++) sum += parts[i];
  return sum;
}

// ---- launches -----------------------------------------------------------------------------------------------------

// Clusters of blocks and their shared memory exist in the code for 9.0 alone; other devices run the code for 8.0, or what
// their driver makes of its PTX.
static inline bool has_clusters(const Launch& on) { return on.arch == 90; }

// Which of `count` things that share a launch a block works on: the last with no more than `unit` blocks' worth of work before it.
template <class Items>
static __device__ __forceinline__ int item_of(const Items& items, int count, unsigned unit) {
  int low = 0, high = count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if ((unsigned)items[middle].before <= unit)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

// Launches `cluster` neighbouring blocks at a time, with `shared` bytes of dynamic shared memory each. `early`: they may start before the
// kernel before them has ended, and wait for it themselves (await_last_kernel).
template <typename... Parameters, typename... Arguments>
static inline cudaError_t launch_clusters(const Launch& on, void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared,
                                          int cluster, bool early, const Arguments&... arguments) {
  if (shared > 32 * 1024) {  // with what the kernel declares itself it may pass the 48 KiB that need no asking
    const cudaError_t error = cudaFuncSetAttribute((const void*)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3((unsigned)blocks);
  config.blockDim = dim3((unsigned)threads);
  config.dynamicSmemBytes = shared;
  config.stream = on.stream;
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (early) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = (unsigned)cluster;
    attribute.val.clusterDim.y = 1;
    attribute.val.clusterDim.z = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, (Parameters)arguments...);
}

}  // namespace cuda
}  // namespace metalora
