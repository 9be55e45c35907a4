/**
 * Every key of a configuration file: its type, range, default and meaning. This table is the authority; the documentation,
 * `metalora config schema` and the resolved configuration of a run are made from it.
 *
 * A default that depends on another key is written `null` here and filled in by resolve.ts.
 */
import { z } from "zod";
import { RUNGS } from "../model/activations.ts";

const whole = (least: number) => z.int().min(least);
const positive = () => z.number().gt(0);
const text = () => z.string().min(1);
/** 12000000000, "11.5 GiB" or "900 MiB", as bytes. */
const bytes = () =>
  z.union([
    whole(1),
    z.string().regex(/^\d+(\.\d+)? ?[KMG]iB$/).transform((value) => {
      const [, number, unit] = /^([\d.]+) ?([KMG])iB$/.exec(value)!;
      return Math.round(Number(number) * 1024 ** ("KMG".indexOf(unit!) + 1));
    }),
  ], { error: "bytes, or a number with KiB, MiB or GiB such as 11.5 GiB" });

const fieldsSchema = z.strictObject({
  instruction: text().optional().describe("alpaca: name of the field with the instruction (default: instruction)"),
  input: text().nullable().optional().describe("alpaca: name of the field with the input; null: there is none (default: input)"),
  output: text().optional().describe("alpaca: name of the field with the answer (default: output)"),
  prompt: text().optional().describe("prompt-completion: name of the field with the prompt (default: prompt)"),
  completion: text().optional().describe("prompt-completion: name of the field with the completion (default: completion)"),
});

const sourceSchema = z.strictObject({
  path: text().describe("File with the samples: JSON (one array) or JSONL (one object a line)"),
  format: z.enum(["alpaca", "prompt-completion"]).default("alpaca").describe("Which fields a row has"),
  fields: fieldsSchema.prefault({}).describe("Names of the fields, where they differ from the format's own"),
  limit: whole(1).nullable().default(null).describe("Use only the first N rows; null: all"),
});

const dataSchema = z.strictObject({
  train: sourceSchema.describe("What the model is trained on"),
  validation: sourceSchema.nullable().default(null).describe("Small and trusted: guides the weights of the training samples"),
  test: sourceSchema.nullable().default(null).describe("Measured at the end, never trained on"),
  max_length: whole(2).default(512).describe("Longest sample in tokens"),
  template: z.enum(["alpaca", "alpaca-reference", "none"]).nullable().default(null).describe(
    "Prompt around a row; alpaca-reference has a space behind 'Response:' (default: alpaca, and none for prompt-completion)",
  ),
  append_eos: z.boolean().default(true).describe("Put the end-of-text token behind every answer and train on it"),
  shuffle: z.boolean().default(true).describe("New order of the training samples every epoch, drawn from the seed"),
  validation_split: positive().nullable().default(null).describe(
    "Without a validation file: rows of the training data to hold out instead, a share if below 1, else a number",
  ),
  on_overlap: z.enum(["error", "drop", "allow"]).default("error").describe(
    "A row that is in the training and the validation data",
  ),
});

const adapterSchema = z.strictObject({
  rank: whole(1).default(32).describe("Rank r of every adapter"),
  alpha: positive().nullable().default(null).describe("The adapter's output is scaled by alpha / r (default: the rank)"),
  dropout: z.number().refine((value) => value === 0, "0: dropout is not supported").default(0).describe(
    "Only 0: dropout is not supported",
  ),
  targets: z.union([z.literal("all-linear"), z.array(text()).min(1)], {
    error: "'all-linear' or a list of module names such as [q_proj, v_proj]",
  }).default("all-linear").describe("Which matrices get an adapter"),
  init: z.enum(["kaiming", "reference"]).default("kaiming").describe(
    "Start of A: kaiming (PEFT: U(±1/√d_in)) or reference (U(±1/√r)); B starts at 0",
  ),
  rslora: z.boolean().default(false).describe("Scale by alpha / √r instead of alpha / r"),
});

const beta = () => z.number().min(0).lt(1);

const optimizerSchema = z.strictObject({
  lr: positive().default(5e-4).describe("Peak learning rate of Adam"),
  betas: z.tuple([beta(), beta()]).default([0.9, 0.95]).describe("Decay of the first and second moments"),
  eps: positive().default(1e-8).describe("Added to the root of the second moment"),
  weight_decay: z.number().min(0).default(0).describe("Decoupled weight decay (AdamW)"),
  clip: z.number().min(0).default(1).describe("Largest global norm of the gradient; 0: no clipping"),
  schedule: z.enum(["cosine", "linear", "constant"]).default("cosine").describe(
    "Learning rate after the warm-up, to 0 at the end",
  ),
  warmup: z.number().min(0).default(0).describe("Steps from 0 to the peak learning rate; a share of the run if below 1"),
  placement: z.enum(["device", "host"]).default("device").describe("Where Adam's moments live: same result, other memory"),
});

const trainSchema = z.strictObject({
  steps: whole(1).nullable().default(null).describe("Optimizer steps (give this or epochs)"),
  epochs: positive().max(1e9).nullable().default(null).describe(
    "Passes over the training data (default 1 when steps is not given)",
  ),
  batch_size: whole(1).max(65536).default(4).describe("Samples a micro-batch"),
  accumulate: whole(1).default(1).describe("Micro-batches an optimizer step"),
  precision: z.enum(["auto", "f32", "bf16"]).default("auto").describe("Frozen weights; auto: f32 on the CPU, bf16 on CUDA"),
  recompute: z.enum(["auto", ...RUNGS]).default("auto").describe(
    "What the backward pass computes again instead of keeping it, to save memory (same result); auto: as little as fits",
  ),
  embedding: z.enum(["auto", "device", "host"]).default("auto").describe(
    "CUDA: whose memory holds the embedding, of which a batch reads a few rows; auto: the host's before anything is computed again",
  ),
  memory: bytes().nullable().default(null).describe(
    "Memory that the run may take on its device, such as 18 GiB; null: what is free",
  ),
  loss: z.enum(["token-mean", "sample-mean"]).nullable().default(null).describe(
    "Mean over all labelled tokens of a step, or of the samples' means (default: sample-mean for meta-lora, else token-mean)",
  ),
  log_every: whole(1).default(10).describe("Steps between lines of progress"),
  eval_every: whole(0).default(0).describe("Steps between evaluations; 0: only at the end"),
});

const checkpointsSchema = z.strictObject({
  every: whole(0).default(100).describe("Steps between checkpoints; 0: none but the one of a run that is stopped"),
  keep: whole(1).default(3).describe(
    "Newest checkpoints to keep; the best one stays as well, by the validation loss of those where train.eval_every measured it",
  ),
});

const faultsSchema = z.strictObject({
  spike: z.number().min(0).default(10).describe(
    "A training loss so many standard deviations above the mean of the last 50 batches is a fault; one counts as 0.5 nats at least; 0: none is",
  ),
  give_up: whole(1).default(5).describe(
    "A faulty batch (a spike, or a loss or gradient that is no number) is skipped; the run fails after so many in a row",
  ),
});

const reweightValidationSchema = z.strictObject({
  batch_size: whole(1).default(16).describe("Validation samples a refresh"),
  every: whole(1).default(10).describe("Training batches between refreshes of the validation gradient"),
  train_on: z.boolean().default(true).describe("Take an optimizer step on every validation batch, too"),
  ema: z.number().min(0).lt(1).default(0.8).describe(
    "Share of the old validation gradient kept at a refresh; 0: only the newest",
  ),
});

const reweightSchema = z.strictObject({
  method: z.enum(["none", "mix", "meta-lora"]).default("none").describe(
    "none: plain LoRA; mix: also trained on validation batches; meta-lora: samples weighted by their similarity to them",
  ),
  similarity: z.enum(["exact", "exact-adam", "core", "pooled"]).default("exact").describe(
    "Of gradients: exact inner product, the same scaled as Adam would, on the r×r core, or of mean activations (the paper)",
  ),
  normalize: z.enum(["none", "cosine"]).default("none").describe("cosine: divide the similarity by the norms of the gradients"),
  weights: z.enum(["mix", "shift", "clip", "softmax"]).default("mix").describe("From similarities to weights that sum to 1"),
  lambda: z.number().min(0).max(1).default(0.5).describe("weights: mix gives (1-lambda)/n + lambda × clip"),
  temperature: positive().default(1).describe("weights: softmax of similarity / temperature"),
  validation: reweightValidationSchema.prefault({}).describe("How the validation data is used"),
  modules: z.enum(["all", "attention", "mlp"]).default("all").describe("Which adapters count in the similarity"),
  preset: z.enum(["paper", "reference"]).nullable().default(null).describe(
    "Reproduce the paper's equations, or its authors' code, to the letter",
  ),
});

const retrainSchema = z.strictObject({
  from: z.enum(["published", "fresh"]).default("published").describe(
    "What a retraining starts from: the published adapter (where it fits the configuration), or a fresh one",
  ),
  metric: z.enum(["loss", "accuracy"]).default("loss").describe(
    "What candidate and published adapter are compared by, on data.test or else data.validation",
  ),
  margin: z.number().default(0).describe(
    "A candidate is published unless it is worse by more than this (nats of loss, or share of exact answers); below 0: it must be better",
  ),
  keep: whole(2).default(5).describe("Releases to keep, the published one and the one before it among them"),
});

const statusSchema = z.strictObject({
  listen: text().nullable().default(null).describe(
    "HOST:PORT of the status page, or PORT alone for this machine only; null: none",
  ),
  token_file: text().nullable().default(null).describe(
    "File with the token of the status page (default: METALORA_STATUS_TOKEN of the environment); any other address than loopback needs one",
  ),
  samples: z.boolean().default(false).describe("Let the status page tell the most and least useful samples, texts included"),
  hosts: z.array(text()).default([]).describe("Further names that the status page answers to, such as that of a proxy"),
});

/** Schema of a configuration file. Its output still has `null` where a default depends on another key. */
export const configSchema = z.strictObject({
  model: text().describe("Directory of a Hugging Face checkpoint"),
  output: text().describe("Directory that the run writes"),
  seed: whole(0).max(0xffff_ffff).default(0).describe("Makes a run repeat itself bit for bit"),
  data: dataSchema.describe("Samples"),
  adapter: adapterSchema.prefault({}).describe("LoRA"),
  optimizer: optimizerSchema.prefault({}).describe("Adam"),
  train: trainSchema.prefault({}).describe("Length and size of the run"),
  checkpoints: checkpointsSchema.prefault({}).describe("The whole state of a run, saved on the way: --resume continues from it"),
  faults: faultsSchema.prefault({}).describe("What happens to batches whose loss or gradient cannot be right"),
  reweight: reweightSchema.prefault({}).describe("META-LORA"),
  retrain: retrainSchema.prefault({}).describe("What metalora retrain publishes"),
  status: statusSchema.prefault({}).describe("Status page of a run"),
});

/** What the schema returns, before resolve.ts. */
export type ParsedConfig = z.output<typeof configSchema>;
type ParsedSource = z.output<typeof sourceSchema>;

/** Where samples come from and which field is what. */
export type DataSource =
  & Omit<ParsedSource, "format" | "fields">
  & (
    | { format: "alpaca"; fields: { instruction: string; input: string | null; output: string } }
    | { format: "prompt-completion"; fields: { prompt: string; completion: string } }
  );

/** A configuration with every default filled in; all keys are present. */
export type Config = Omit<ParsedConfig, "data" | "adapter" | "train"> & {
  data: Omit<ParsedConfig["data"], "train" | "validation" | "test" | "template"> & {
    train: DataSource;
    validation: DataSource | null;
    test: DataSource | null;
    template: "alpaca" | "alpaca-reference" | "none";
  };
  adapter: Omit<ParsedConfig["adapter"], "alpha"> & { alpha: number };
  /** Exactly one of `steps` and `epochs` is a number. */
  train: Omit<ParsedConfig["train"], "loss"> & { loss: "token-mean" | "sample-mean" };
};
