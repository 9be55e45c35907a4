// swiglu.cuh: y = silu(gate) * up and its slopes, one element (swiglu.cu has the formulas).
#pragma once
#include "math.cuh"

namespace metalora {
namespace cuda {

// 1 / (1 + e^-x). e^-x is infinite below x = -88, where the quotient is 0.
static __device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

static __device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

// (gate, up, dy) become (dgate, dup, y).
static __device__ __forceinline__ void swiglu_backward(float& gate, float& up, float& dy) {
  const float s = sigmoid(gate), silu = gate * s;
  const float y = up * silu, dup = dy * gate * s;
  gate = dy * up * s * (1.0f + gate * (1.0f - s));
  up = dup;
  dy = y;
}

}  // namespace cuda
}  // namespace metalora
