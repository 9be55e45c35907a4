import { Fields } from "./fields.ts";

/**
 * How rotary frequencies are stretched beyond the positions of pre-training, by `rope_type`. Values are as in config.json,
 * defaults filled in.
 */
export type RopeScaling =
  | { readonly type: "default" }
  /** All frequencies divided by `factor` (position interpolation). */
  | { readonly type: "linear"; readonly factor: number }
  /** The base grows with the length of the sequence (dynamic NTK). */
  | { readonly type: "dynamic"; readonly factor: number }
  /** Low frequencies divided by `factor`, high ones kept, the band between them interpolated (Llama 3.1). */
  | {
    readonly type: "llama3";
    readonly factor: number;
    readonly lowFreqFactor: number;
    readonly highFreqFactor: number;
    readonly originalMaxPositions: number;
  }
  /** YaRN, https://arxiv.org/abs/2309.00071; `attentionFactor` multiplies cos and sin. */
  | {
    readonly type: "yarn";
    readonly factor: number;
    readonly attentionFactor: number;
    readonly betaFast: number;
    readonly betaSlow: number;
    readonly truncate: boolean;
    readonly originalMaxPositions: number;
  };

const TYPES = ["default", "linear", "dynamic", "llama3", "yarn"];

/**
 * Reads `rope_theta` with `rope_scaling` (transformers 4) or `rope_parameters` (transformers 5). As in transformers,
 * `rope_scaling` wins where both stand, and a theta inside the object wins over the one beside it.
 *
 * @throws {UserError} For an unknown type or a missing or wrong value.
 */
export function readRopeScaling(
  config: Fields,
  { maxPositions, D }: { maxPositions: number; D: number },
): { theta: number; scaling: RopeScaling } {
  const key = config.has("rope_scaling") ? "rope_scaling" : "rope_parameters";
  const rope = Fields.of(config.path, config.raw(key) ?? {}, `${key}.`);
  const theta = rope.number("rope_theta", config.number("rope_theta", 10_000));
  if (theta <= 1) config.refuse(`rope_theta is ${theta}`, "Give a number above 1");
  for (const fields of [config, rope]) {
    if (fields.number("partial_rotary_factor", 1) !== 1) {
      fields.refuse(`partial_rotary_factor is ${fields.number("partial_rotary_factor")}`, "Llama rotates whole heads; remove it");
    }
  }
  const type = rope.string("rope_type", rope.string("type", "default"));
  if (!TYPES.includes(type)) rope.refuse(`rope_type is ${JSON.stringify(type)}`, `Supported: ${TYPES.join(", ")}`);
  return { theta, scaling: readType(type as RopeScaling["type"], rope, config, { maxPositions, D }) };
}

function readType(
  type: RopeScaling["type"],
  rope: Fields,
  config: Fields,
  { maxPositions, D }: { maxPositions: number; D: number },
): RopeScaling {
  if (type === "default") return { type };
  if (type === "linear") return { type, factor: factor(rope) };
  if (type === "dynamic") {
    // base · (…)^(D / (D - 2)) has no value for D = 2.
    if (D < 4) config.refuse(`head_dim is ${D}`, 'The rope_type "dynamic" needs at least 4');
    return { type, factor: factor(rope) };
  }
  // The value beside the object has priority over the one in it (Phi-3 keeps it there).
  const originalMaxPositions = config.has("original_max_position_embeddings")
    ? config.positive("original_max_position_embeddings")
    : rope.positive("original_max_position_embeddings", maxPositions);
  if (type === "llama3") {
    const lowFreqFactor = above0(rope, "low_freq_factor");
    const highFreqFactor = above0(rope, "high_freq_factor");
    if (highFreqFactor <= lowFreqFactor) {
      rope.refuse(`high_freq_factor is ${highFreqFactor}, not above low_freq_factor = ${lowFreqFactor}`, "Correct config.json");
    }
    return { type, factor: factor(rope), lowFreqFactor, highFreqFactor, originalMaxPositions };
  }
  return readYarn(rope, maxPositions, originalMaxPositions);
}

function readYarn(rope: Fields, maxPositions: number, originalMaxPositions: number): RopeScaling {
  const value = rope.has("factor") ? factor(rope) : maxPositions / originalMaxPositions;
  // 0 and null both mean "use the default" in transformers.
  const betaFast = rope.number("beta_fast", 32) || 32;
  const betaSlow = rope.number("beta_slow", 1) || 1;
  if (betaFast < betaSlow || betaSlow < 0) {
    rope.refuse(
      `beta_fast is ${betaFast} and beta_slow is ${betaSlow}`,
      "beta_fast must be at least beta_slow, and both above 0",
    );
  }
  const mscale = rope.number("mscale", 0);
  const mscaleAllDim = rope.number("mscale_all_dim", 0);
  // §3.4 of the paper: softmax temperature through the length of q and k, 0.1 ln(factor) + 1.
  const magnitude = (scale: number) => value <= 1 ? 1 : 0.1 * scale * Math.log(value) + 1;
  const attentionFactor = rope.has("attention_factor")
    ? above0(rope, "attention_factor")
    : mscale && mscaleAllDim
    ? magnitude(mscale) / magnitude(mscaleAllDim)
    : magnitude(1);
  const truncate = rope.boolean("truncate", { default: true });
  return { type: "yarn", factor: value, attentionFactor, betaFast, betaSlow, truncate, originalMaxPositions };
}

function factor(rope: Fields): number {
  const value = rope.number("factor");
  return value >= 1 ? value : rope.refuse(`factor is ${value}`, "Give a number of at least 1");
}

function above0(rope: Fields, key: string): number {
  const value = rope.number(key);
  return value > 0 ? value : rope.refuse(`${key} is ${value}`, "Give a number above 0");
}
