// vec.h: one vector type for every instruction set, and the loop that all threads share.
//
// `vf` holds VL floats (generic 4, AVX2 8, AVX-512 16). GCC's vector extensions give + - * / and comparisons on it;
// a * b + c becomes one fused multiply-add where the machine has it (-ffp-contract=fast). All of it lives in namespace
// ML_ISA and is inlined, so no symbol compiled for one instruction set can replace that of another when linking.
#pragma once
#include "kernels.h"

#include <math.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef ML_ISA
#error "ML_ISA must name the instruction set: generic, avx2, avx512 or avx512bf16"
#endif

#define ML_INLINE static inline __attribute__((always_inline, unused))

namespace metalora {
namespace ML_ISA {

#if defined(__AVX512F__)
constexpr int VL = 16;
#elif defined(__AVX2__)
constexpr int VL = 8;
#else
constexpr int VL = 4;
#endif

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef uint32_t vu __attribute__((vector_size(VL * 4)));
typedef uint16_t vh __attribute__((vector_size(VL * 2)));  // VL bf16 bit patterns
typedef double vd __attribute__((vector_size(VL * 4)));    // VL/2 doubles, for sums that must not lose digits

ML_INLINE vf load(const float* p) {
  vf v;
  memcpy(&v, p, sizeof v);
  return v;
}
ML_INLINE void store(float* p, vf v) { memcpy(p, &v, sizeof v); }
ML_INLINE vf set1(float x) { return x - vf{}; }  // x - 0 keeps the sign of -0, and becomes one broadcast

// Lanes n..VL-1 are 0 (load_part) or left alone in memory (store_part); 0 <= n <= VL.
#if defined(__AVX512F__)
ML_INLINE vf load_part(const float* p, int64_t n) { return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
ML_INLINE void store_part(float* p, vf v, int64_t n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v); }
#elif defined(__AVX2__)
ML_INLINE __m256i first_lanes(int64_t n) { return (__m256i)(vi{0, 1, 2, 3, 4, 5, 6, 7} < (vi{} + (int32_t)n)); }
ML_INLINE vf load_part(const float* p, int64_t n) { return (vf)_mm256_maskload_ps(p, first_lanes(n)); }
ML_INLINE void store_part(float* p, vf v, int64_t n) { _mm256_maskstore_ps(p, first_lanes(n), (__m256)v); }
#else
ML_INLINE vf load_part(const float* p, int64_t n) {
  vf v = {};
  for (int64_t i = 0; i < n; i++) v[i] = p[i];
  return v;
}
ML_INLINE void store_part(float* p, vf v, int64_t n) {
  for (int64_t i = 0; i < n; i++) p[i] = v[i];
}
#endif

// a * b + c in one rounding where the machine can. Written out, because the compiler may otherwise choose which of two
// products it fuses, and the same sum could round differently in two places.
#if defined(__AVX512F__)
ML_INLINE vf fma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
#elif defined(__FMA__)
ML_INLINE vf fma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
#else
ML_INLINE vf fma(vf a, vf b, vf c) { return a * b + c; }
#endif
ML_INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }
ML_INLINE vf vmin(vf a, vf b) { return a < b ? a : b; }

// Sums and maxima over the lanes, pairwise: always in the same order.
ML_INLINE float hsum(vf v) {
  float lane[VL];
  memcpy(lane, &v, sizeof v);
  for (int width = VL / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++) lane[i] += lane[i + width];
  return lane[0];
}
ML_INLINE double hsum(vd v) {
  double lane[VL / 2];
  memcpy(lane, &v, sizeof v);
  for (int width = VL / 4; width > 0; width /= 2)
    for (int i = 0; i < width; i++) lane[i] += lane[i + width];
  return lane[0];
}
ML_INLINE float hmax(vf v) {
  float lane[VL];
  memcpy(lane, &v, sizeof v);
  for (int width = VL / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
  return lane[0];
}

// The lower and the upper half of v in double. (The plain conversion makes GCC 12 split each half once more.)
#if defined(__AVX512F__)
ML_INLINE vd widen_low(vf v) { return (vd)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v)); }
ML_INLINE vd widen_high(vf v) { return (vd)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1)); }
#elif defined(__AVX2__)
ML_INLINE vd widen_low(vf v) { return (vd)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v)); }
ML_INLINE vd widen_high(vf v) { return (vd)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1)); }
#else
ML_INLINE vd widen_low(vf v) {
  vd wide;
  for (int i = 0; i < VL / 2; i++) wide[i] = v[i];
  return wide;
}
ML_INLINE vd widen_high(vf v) {
  vd wide;
  for (int i = 0; i < VL / 2; i++) wide[i] = v[i + VL / 2];
  return wide;
}
#endif

// bf16 is the upper half of an f32. Rounding goes to the nearest, ties to even; NaN stays NaN.
#if defined(__AVX512F__)
ML_INLINE vf from_bf16(vh h) { return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16); }
#elif defined(__AVX2__)
ML_INLINE vf from_bf16(vh h) { return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)h), 16); }
#else
ML_INLINE vf from_bf16(vh h) { return (vf)(__builtin_convertvector(h, vu) << 16); }
#endif
ML_INLINE vh to_bf16(vf v) {
#if defined(__AVX512BF16__)
  return (vh)_mm512_cvtneps_pbh((__m512)v);  // the same rounding in one instruction; denormals become 0
#endif
  const vu u = (vu)v;
  const vu rounded = (u + (0x7fff + ((u >> 16) & 1))) >> 16;
  const vu quiet = (u >> 16) | 0x40;
  return __builtin_convertvector((vu)(v == v ? (vi)rounded : (vi)quiet), vh);
}
ML_INLINE float from_bf16(uint16_t h) {
  const uint32_t u = (uint32_t)h << 16;
  float x;
  memcpy(&x, &u, 4);
  return x;
}
ML_INLINE uint16_t to_bf16(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  if (x != x) return (uint16_t)((u >> 16) | 0x40);
  return (uint16_t)((u + (0x7fff + ((u >> 16) & 1))) >> 16);
}
ML_INLINE vf load_bf16(const uint16_t* p) {
  vh h;
  memcpy(&h, p, sizeof h);
  return from_bf16(h);
}
ML_INLINE void store_bf16(uint16_t* p, vf v) {
  const vh h = to_bf16(v);
  memcpy(p, &h, sizeof h);
}

ML_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
ML_INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
ML_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
ML_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// body(index, thread) for index 0..n-1 on all threads of the pool. Not to be nested.
template <class Body>
ML_INLINE void parallel(Pool& pool, int64_t n, const Body& body) {
  pool.run(
      n, [](void* arg, int64_t index, int thread) { (*static_cast<const Body*>(arg))(index, thread); },
      const_cast<Body*>(&body));
}

}  // namespace ML_ISA
}  // namespace metalora
