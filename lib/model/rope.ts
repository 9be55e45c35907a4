/**
 * Rotary position embeddings (RoFormer, https://arxiv.org/abs/2104.09864): tables of cos and sin for every position, with
 * the scalings that Llama checkpoints use. Formulas follow `modeling_rope_utils.py` of transformers, name by name.
 *
 * @module
 */

import type { LlamaConfig } from "./config.ts";

type RopeInput = Pick<LlamaConfig, "D" | "ropeTheta" | "ropeScaling" | "maxPositions">;

/**
 * cos and sin of position · frequency, times the attention factor of the scaling (1 except for yarn).
 *
 * Only "dynamic" depends on `seqLen`: transformers recomputes its base when a sequence is longer than
 * `max_position_embeddings`, so a batch with such a sequence needs tables of its own.
 *
 * Angles are rounded to f32 as transformers does: a model was trained with these angles, not with exact ones.
 *
 * @param config Head dimension, base and scaling of the model.
 * @param positions Rows of the tables: positions 0 .. positions - 1.
 * @param seqLen Length of the longest sequence, `positions` when omitted.
 * @returns cos and sin, f32 [positions, D/2].
 */
export function ropeTables(
  config: RopeInput,
  positions: number,
  seqLen: number = positions,
): { cos: Float32Array<ArrayBuffer>; sin: Float32Array<ArrayBuffer> } {
  const frequencies = inverseFrequencies(config, seqLen); // [D/2]
  const half = frequencies.length;
  const factor = config.ropeScaling.type === "yarn" ? config.ropeScaling.attentionFactor : 1;
  const cos = new Float32Array(positions * half);
  const sin = new Float32Array(positions * half);
  for (let p = 0; p < positions; p++) {
    for (let j = 0; j < half; j++) {
      const angle = Math.fround(p * frequencies[j]!);
      cos[p * half + j] = Math.cos(angle) * factor;
      sin[p * half + j] = Math.sin(angle) * factor;
    }
  }
  return { cos, sin };
}

/**
 * Angle per position of each pair of dimensions, [D/2]; theta^(-2j/D) before scaling. Computed in f64, rounded to f32.
 *
 * @param seqLen Length of the longest sequence; matters to "dynamic" alone.
 */
export function inverseFrequencies({ D, ropeTheta, ropeScaling: s, maxPositions }: RopeInput, seqLen: number): Float32Array {
  const half = D / 2;
  const plain = (base: number) => Float64Array.from({ length: half }, (_, j) => base ** (-2 * j / D));
  switch (s.type) {
    case "default":
      return Float32Array.from(plain(ropeTheta));
    case "linear":
      return Float32Array.from(plain(ropeTheta), (frequency) => frequency / s.factor);
    case "dynamic": {
      const growth = s.factor * Math.max(seqLen, maxPositions) / maxPositions - (s.factor - 1);
      return Float32Array.from(plain(ropeTheta * growth ** (D / (D - 2))));
    }
    case "llama3":
      return Float32Array.from(plain(ropeTheta), (frequency) => {
        const turns = s.originalMaxPositions * frequency / (2 * Math.PI); // full rotations within the original length
        if (turns > s.highFreqFactor) return frequency;
        if (turns < s.lowFreqFactor) return frequency / s.factor;
        const smooth = (turns - s.lowFreqFactor) / (s.highFreqFactor - s.lowFreqFactor);
        return (1 - smooth) * frequency / s.factor + smooth * frequency;
      });
    case "yarn": {
      // Index of the pair that makes `rotations` full turns within the original length.
      const dimensionOf = (rotations: number) =>
        D * Math.log(s.originalMaxPositions / (rotations * 2 * Math.PI)) / (2 * Math.log(ropeTheta));
      const [first, last] = [dimensionOf(s.betaFast), dimensionOf(s.betaSlow)];
      const low = Math.max(s.truncate ? Math.floor(first) : first, 0);
      const bound = Math.min(s.truncate ? Math.ceil(last) : last, D - 1);
      const high = bound === low ? bound + 0.001 : bound; // avoids 0 / 0 below
      return Float32Array.from(plain(ropeTheta), (frequency, j) => {
        const interpolated = Math.min(Math.max((j - low) / (high - low), 0), 1);
        return interpolated * frequency / s.factor + (1 - interpolated) * frequency;
      });
    }
  }
}
