/**
 * Presets: values for keys that a configuration does not give.
 *
 * `fixed` keys define what the preset reproduces, so another value there is refused; `start` keys are the settings that the
 * authors used and may be changed. Sources: META-LORA, COLING 2025 (paper) and its published code (reference).
 */

/** Key path → value. */
export type PresetTable = {
  readonly fixed: Readonly<Record<string, unknown>>;
  readonly start: Readonly<Record<string, unknown>>;
};

/** Settings that the paper states and the code uses alike (paper §4.1, train.sh). */
const shared = {
  "adapter.rank": 32,
  "optimizer.lr": 5e-4,
  "optimizer.betas": [0.9, 0.95],
  "optimizer.eps": 1e-8,
  "optimizer.weight_decay": 0,
  "optimizer.clip": 1,
  "optimizer.schedule": "cosine",
  "optimizer.warmup": 0,
  "train.batch_size": 4,
  "reweight.validation.batch_size": 4,
  "reweight.validation.every": 10,
};

/** Every preset by its name in `reweight.preset`. */
export const presets: Readonly<Record<"paper" | "reference", PresetTable>> = {
  // The paper's text: u_i = mean over validation samples j of Σ_l (z_i·z_j)(g_i·g_j), Eq. 17; clip at 0, Eq. 7-8; validation
  // samples give weights only.
  paper: {
    fixed: {
      "reweight.method": "meta-lora",
      "reweight.similarity": "pooled",
      "reweight.normalize": "none",
      "reweight.weights": "clip",
      "reweight.validation.train_on": false,
      "reweight.validation.ema": 0,
      "train.loss": "sample-mean",
    },
    start: shared,
  },
  // The authors' code: product of means over tokens and validation samples, weights shifted by 2·min, an optimizer step on
  // every validation batch, a plain first step in each epoch; A from U(±1/√r), scale 1/r, a space behind "Response:".
  reference: {
    fixed: {
      "reweight.method": "meta-lora",
      "reweight.similarity": "pooled",
      "reweight.normalize": "none",
      "reweight.weights": "shift",
      "reweight.validation.train_on": true,
      "reweight.validation.ema": 0,
      "train.loss": "sample-mean",
      "train.accumulate": 1,
    },
    start: {
      ...shared,
      "adapter.alpha": 1,
      "adapter.init": "reference",
      "data.template": "alpaca-reference",
      "data.max_length": 400,
    },
  },
};
