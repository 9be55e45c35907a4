// attention_hopper.cu: attention on Hopper's warpgroup matrix instructions and bulk copies (sm_90a), for D = 64 and 128; kernels in
// attention_hopper_forward.h and attention_hopper_backward.h, launchers here. attention.cu calls them where hopper_attention_fits.
#include "attention_hopper_backward.h"
#include "attention_hopper_forward.h"
#include "tensor_map.h"

namespace metalora {
namespace cuda {
namespace {

// Map of x [T, columns], rows ld apart, in boxes of `rows` x 64.
cudaError_t describe(CUtensorMap* map, const bf16* x, int64_t T, int64_t columns, int64_t ld, int rows) {
  const cuuint64_t sizes[2] = {(cuuint64_t)columns, (cuuint64_t)T}, strides[1] = {(cuuint64_t)ld * 2};
  const cuuint32_t box[2] = {64, (cuuint32_t)rows}, steps[2] = {1, 1};
  const CUresult status = tensor_map_encoder()(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void*)x, sizes, strides, box, steps,
                                               CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return status == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

int tiles_of(const Attention& a, int rows) { return (a.max_length + rows - 1) / rows; }

// How many (segment, head) pairs of `bytes` each run side by side so that what they read again stays in L2 (60 MB on an H200). Of 12,
// 32 and 200 MB, 32 was best on the whole: 4 x 2048 tokens, D = 128, took 8.9, 8.8 and 10.9 ms forward; 4 x 400 1.34, 1.22 and 1.23 ms.
int pairs_in_cache(int64_t bytes, int pairs) {
  constexpr int64_t CACHE = 32 << 20;
  const int64_t fit = CACHE / (bytes > 0 ? bytes : 1);
  return (int)(fit < 1 ? 1 : fit > pairs ? pairs : fit);
}

// `early` lets the kernel start before the one before it in the stream has ended (release_next_kernel, await_last_kernel).
template <typename Shared, typename... P, typename... A>
cudaError_t launch(const Launch& on, void (*kernel)(P...), int threads, int64_t blocks, bool early, const A&... arguments) {
  const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(Shared));
  if (status != cudaSuccess) return status;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3((unsigned)blocks);
  config.blockDim = dim3((unsigned)threads);
  config.dynamicSmemBytes = sizeof(Shared);
  config.stream = on.stream;
  config.attrs = &attribute;
  config.numAttrs = early ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// Three warpgroups read each tile of keys once for 192 rows, which spares L2. One H200, 32 layers of 4 x 2048 tokens and 32 heads: two
// warpgroups with tiles of 128 keys took 8.6 to 9.2 ms at D = 128 (three with 64: 8.3 to 8.8) and 6.9 at D = 64 (three with 128: 6.0).
template <int D, int KEYS, int STAGES>
cudaError_t forward(const Launch& on, const Attention& a) {
  constexpr int WGS = 3, TILE = 64 * WGS;
  CUtensorMap q, k, v;
  cudaError_t status = describe(&q, a.q, a.T, a.H * D, a.ldqkv, TILE);
  if (status == cudaSuccess) status = describe(&k, a.k, a.T, a.K * D, a.ldqkv, KEYS);
  if (status == cudaSuccess) status = describe(&v, a.v, a.T, a.K * D, a.ldqkv, KEYS);
  if (status != cudaSuccess) return status;
  const int tiles = tiles_of(a, TILE), pairs = a.S * a.H;
  const int64_t blocks = (int64_t)pairs * tiles;
  return launch<ForwardShared<D, KEYS, STAGES, WGS>>(on, hopper_forward_kernel<D, KEYS, STAGES, WGS>, 128 + WGS * 128,
                                                     blocks > 0 ? blocks : 1, false, q, k, v, a, tiles,
                                                     pairs_in_cache((int64_t)a.max_length * D * 4 * a.K / a.H, pairs));
}

template <int D>
cudaError_t backward(const Launch& on, const Attention& a) {
  constexpr int STREAMED = 64, STAGES = 3, TILE = BACKWARD_TILE, THREADS = 128 + BACKWARD_WGS * 128;
  if (a.S == 0 || a.max_length == 0) return cudaSuccess;
  const int tiles = tiles_of(a, TILE), key_pairs = a.S * a.K, query_pairs = a.S * a.H;
  const int64_t bytes = (int64_t)a.max_length * D * 4;  // of q and dout, or k and v, of one head
  CUtensorMap q, k, v, g;
  cudaError_t status = describe(&q, a.q, a.T, a.H * D, a.ldqkv, STREAMED);
  if (status == cudaSuccess) status = describe(&k, a.k, a.T, a.K * D, a.ldqkv, TILE);
  if (status == cudaSuccess) status = describe(&v, a.v, a.T, a.K * D, a.ldqkv, TILE);
  if (status == cudaSuccess) status = describe(&g, a.dout, a.T, a.H * D, a.lddout, STREAMED);
  if (status != cudaSuccess) return status;
  status = launch<KeyShared<D, STREAMED, STAGES>>(on, hopper_dkv_kernel<D, STREAMED, STAGES>, THREADS, (int64_t)key_pairs * tiles, true, q,
                                                  k, v, g, a, tiles, pairs_in_cache(bytes * (a.H / a.K), key_pairs));
  if (status == cudaSuccess) status = describe(&q, a.q, a.T, a.H * D, a.ldqkv, TILE);
  if (status == cudaSuccess) status = describe(&k, a.k, a.T, a.K * D, a.ldqkv, STREAMED);
  if (status == cudaSuccess) status = describe(&v, a.v, a.T, a.K * D, a.ldqkv, STREAMED);
  if (status == cudaSuccess) status = describe(&g, a.dout, a.T, a.H * D, a.lddout, TILE);
  if (status != cudaSuccess) return status;
  return launch<QueryShared<D, STREAMED, STAGES>>(on, hopper_dq_kernel<D, STREAMED, STAGES>, THREADS, (int64_t)query_pairs * tiles, true, q,
                                                  k, v, g, a, tiles, pairs_in_cache(bytes * a.K / a.H, query_pairs));
}

bool sixteen(const void* p, int64_t ld) { return (uintptr_t)p % 16 == 0 && ld % 8 == 0; }

}  // namespace

// Whether the kernels here take these arguments: chip, head dimension, 16-byte alignment, sizes that copies can address.
bool hopper_attention_fits(const Launch& on, const Attention& a) {
  if (on.arch != 90 || (a.D != 64 && a.D != 128) || !(a.scale > 0) || a.T > INT32_MAX || !tensor_map_encoder()) return false;
  if ((int64_t)a.S * a.H * tiles_of(a, 64) > INT32_MAX) return false;
  if (!sixteen(a.q, a.ldqkv) || !sixteen(a.k, a.ldqkv) || !sixteen(a.v, a.ldqkv)) return false;
  if (!a.dout) return sixteen(a.out, a.ldo);
  if ((uintptr_t)a.cos % 8 || (uintptr_t)a.sin % 8) return false;  // rotate_back reads two at once
  return sixteen(a.dout, a.lddout) && sixteen(a.dq, a.lddqkv) && sixteen(a.dk, a.lddqkv) && sixteen(a.dv, a.lddqkv);
}

cudaError_t hopper_attention_forward(const Launch& on, const Attention& a) {
  if (a.D == 128) return forward<128, 64, 4>(on, a);
  // Tiles of 64 keys waste less on short segments: 8 x 512 tokens took 0.57 ms (128 keys: 0.61), 4 x 2048 tokens 6.2 ms (6.0).
  return a.max_length <= 1024 ? forward<64, 64, 4>(on, a) : forward<64, 128, 2>(on, a);
}

cudaError_t hopper_attention_backward(const Launch& on, const Attention& a) {
  return a.D == 64 ? backward<64>(on, a) : backward<128>(on, a);
}

}  // namespace cuda
}  // namespace metalora
