// attention_args.h: what the attention kernels of attention.cu and attention_hopper.cu share: their arguments as one struct, and
// the few device functions that read the batch.
#pragma once
#include "kernels.h"

namespace metalora {
namespace cuda {

// The arguments of attention_forward and attention_backward; letters and layouts as in ffi/metalora.h. Passed to kernels by value.
struct Attention {
  int64_t T;
  int S, max_length;
  const int32_t* cu;       // [S + 1]
  const int32_t* kv_lens;  // [S] or NULL
  int H, K, D;
  float scale;
  const bf16 *q, *k, *v;  // [T, H*D], [T, K*D], [T, K*D]
  int64_t ldqkv;
  bf16* out;  // [T, ldo]; read by the backward
  int64_t ldo;
  float* lse;        // [T, H]; read by the backward
  const bf16* dout;  // [T, lddout]; NULL in the forward
  int64_t lddout;
  bf16 *dq, *dk, *dv;
  int64_t lddqkv;
  float* delta;  // [T, H] = sum_d dout * out, the backward's scratch
  // By the angles of a row's position dq and dk are rotated back (rope.cu, the inverse) before they are rounded; cos NULL: they are not.
  const float *cos, *sin;    // [positions, D/2]
  const int32_t* positions;  // [T]
};

// attention_hopper.cu: the same on sm_90a, for D = 64 and 128. The backward expects delta and zeros behind cu[S] to be there.
bool hopper_attention_fits(const Launch& on, const Attention& a);
cudaError_t hopper_attention_forward(const Launch& on, const Attention& a);
cudaError_t hopper_attention_backward(const Launch& on, const Attention& a);

constexpr float LOG2E = 1.4426950408889634f;
constexpr float LN2 = 0.6931471805599453f;

// One segment: rows start .. start+length-1 of the stream, the first `keys` of them serve as keys.
struct Segment {
  int64_t start;
  int length, keys;
};

__device__ __forceinline__ Segment segment_of(const Attention& a, int i) {
  const int start = a.cu[i], length = a.cu[i + 1] - start;
  const int keys = a.kv_lens ? max(0, min(a.kv_lens[i], length)) : length;
  return {start, length, keys};
}

// 2^x; the hardware's approximation, results below the smallest normal number are zero.
__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Programmatic dependent launch (sm_90): lets the next kernel of the stream start once all blocks of this one have said so or ended;
// waits until the kernel before has ended and what it wrote can be read.
__device__ __forceinline__ void release_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void await_last_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Zeros columns 0 .. cols-1 of row t with `count` threads, of which this one is `index`.
__device__ __forceinline__ void zero_row(bf16* x, int64_t t, int64_t ld, int cols, int index, int count) {
  for (int c = index; c < cols; c += count) x[t * ld + c] = __float2bfloat16(0.0f);
}

// The forward's rows behind cu[S]: out and lse become zero. Blocks share the rows.
__device__ __forceinline__ void zero_forward_behind(const Attention& a, int64_t block, int64_t blocks, int index, int count) {
  for (int64_t t = a.cu[a.S] + block; t < a.T; t += blocks) {
    zero_row(a.out, t, a.ldo, a.H * a.D, index, count);
    for (int h = index; h < a.H; h += count) a.lse[t * a.H + h] = 0.0f;
  }
}

}  // namespace cuda
}  // namespace metalora
