// math.h: the exponential of negative numbers and the logistic function on a vector, accurate to 1 to 2 ulp.
//
// Softmax and the logistic function need e^x for x <= 0 only, which spares the care for overflow: Cody and Waite's
// reduction x = n ln 2 + r, |r| <= ln 2 / 2 (ln 2 split so that n * ln2_high is exact), then the polynomial of Cephes'
// expf (S. Moshier), times 2^n.
#pragma once
#include "vec.h"

namespace metalora {
namespace ML_ISA {

// e^x for x <= 0; results below the normal range (x < -87) become 0, NaN stays NaN.
ML_INLINE vf vexp_negative(vf x) {
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which then sits in the low bits
  const vf shifted = x * 1.44269504f + shift;
  const vf n = shifted - shift;
  const vf r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const vf power = (vf)(((vi)shifted << 23) + (127 << 23));  // 2^n: the bits of `shift` itself leave at the top
  return x < -87.0f ? vf{} : p * power;
}

// 1 / (1 + e^-x), from e = e^-|x| <= 1, which cannot overflow: 1 / (1 + e) or e / (1 + e). 0 below x = -87.
ML_INLINE vf vsigmoid(vf x) {
  const vf e = vexp_negative(x < 0 ? x : -x);
  return (x < 0 ? e : set1(1.0f)) / (1.0f + e);
}

}  // namespace ML_ISA
}  // namespace metalora
