/** Weight maps: from the similarities u [n] of a batch to weights w [n] that sum to 1, or are all 0 (algorithms §1.3, §5.5). */

/** How similarities become weights. */
export type WeightMap = "mix" | "shift" | "clip" | "softmax";

/** max(u, 0) normalised; all 0 when nothing is positive (paper, equations 7 and 8). */
export function clip(u: ArrayLike<number>): Float64Array<ArrayBuffer> {
  return normalised(Float64Array.from(u, (value) => Math.max(value, 0)));
}

/**
 * The authors' code: when some u is negative, u − 2·min(u), so that the worst sample keeps |min|; else u itself.
 * All 0 when every u is 0.
 */
export function shift(u: ArrayLike<number>): Float64Array<ArrayBuffer> {
  const values = Float64Array.from(u);
  const min = values.reduce((a, b) => Math.min(a, b), Infinity);
  return normalised(values.map((value) => min < 0 ? value - 2 * min : Math.max(value, 0)));
}

/** softmax(u / (temperature · rms(u))): scale-free. Uniform when every u is 0. */
export function softmax(u: ArrayLike<number>, temperature: number): Float64Array<ArrayBuffer> {
  const values = Float64Array.from(u);
  const rms = Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / values.length);
  if (rms === 0) return uniform(values.length);
  const max = values.reduce((a, b) => Math.max(a, b), -Infinity);
  return normalised(values.map((value) => Math.exp((value - max) / (temperature * rms))));
}

/** (1 − λ)/n + λ · clip(u); uniform when nothing is positive. */
export function mix(u: ArrayLike<number>, lambda: number): Float64Array<ArrayBuffer> {
  const clipped = clip(u);
  if (clipped.every((w) => w === 0)) return uniform(u.length);
  return clipped.map((w) => (1 - lambda) / u.length + lambda * w);
}

/** 1/n each. */
export function uniform(n: number): Float64Array<ArrayBuffer> {
  return new Float64Array(n).fill(1 / n);
}

/** Applies the map of a configuration. */
export function sampleWeights(
  u: ArrayLike<number>,
  { weights, lambda, temperature }: { weights: WeightMap; lambda: number; temperature: number },
): Float64Array<ArrayBuffer> {
  switch (weights) {
    case "clip":
      return clip(u);
    case "shift":
      return shift(u);
    case "softmax":
      return softmax(u, temperature);
    case "mix":
      return mix(u, lambda);
  }
}

/** Effective sample size 1 / Σ w² of weights that sum to 1; 0 when all are 0. */
export function effectiveSampleSize(w: ArrayLike<number>): number {
  let squares = 0;
  for (let i = 0; i < w.length; i++) squares += w[i]! * w[i]!;
  return squares === 0 ? 0 : 1 / squares;
}

/** w / (Σ w + [Σ w = 0]) */
function normalised(w: Float64Array<ArrayBuffer>): Float64Array<ArrayBuffer> {
  const sum = w.reduce((a, b) => a + b, 0);
  return w.map((value) => value / (sum + (sum === 0 ? 1 : 0)));
}
