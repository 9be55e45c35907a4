// math.h: exp, log and the logistic function on a vector, accurate to about 1 ulp.
//
// exp: Cody and Waite's reduction x = n ln 2 + r, |r| <= ln 2 / 2 (ln 2 split so that n * ln2_high is exact), then the
// polynomial of Cephes' expf (S. Moshier), then n added to the exponent.
#pragma once
#include "vec.h"

namespace metalora {
namespace ML_ISA {

// e^r for the reduced argument; n comes back in `exponent`, r in [-0.35, 0.35].
ML_INLINE vf exp_reduced(vf x, vi* exponent) {
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which then sits in the low bits
  const vf shifted = x * 1.44269504f + shift;
  const vf n = shifted - shift;
  const vf r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  *exponent = (vi)shifted - (vi)set1(shift);
  return p * (r * r) + r + 1.0f;
}

// e^x for every x: denormal results, 0, +inf and NaN included.
ML_INLINE vf vexp(vf x) {
  x = x > 89.0f ? set1(89.0f) : x;  // e^89 = inf; a NaN passes both comparisons untouched
  x = x < -104.0f ? set1(-104.0f) : x;
  vi n;
  const vf p = exp_reduced(x, &n);
  const vi half = n >> 1;  // 2^n in two factors, so that neither overflows nor becomes denormal too early
  return p * (vf)((half + 127) << 23) * (vf)((n - half + 127) << 23);
}

// e^x for x <= 0, as softmax needs it: results below the normal range become 0; NaN stays NaN.
ML_INLINE vf vexp_negative(vf x) {
  vi n;
  const vf p = exp_reduced(x, &n);
  const vf y = (vf)((vi)p + (n << 23));
  return x < -87.0f ? vf{} : y;
}

// 1 / (1 + e^-x). For x < -88 the denominator overflows to inf and the result is 0, as it should be.
ML_INLINE vf vsigmoid(vf x) { return 1.0f / (1.0f + vexp(-x)); }

}  // namespace ML_ISA
}  // namespace metalora
