/** Builds engine, optimizer and similarity out of a configuration and lays out their memory. */
import type { Device, Place } from "../../ffi/device.ts";
import type { Config } from "../config/schema.ts";
import { UserError } from "../errors.ts";
import { KEEP_ALL, type Recompute, RUNGS } from "../model/activations.ts";
import type { ModelConfig } from "../model/config.ts";
import type { AdapterOf } from "../model/linear.ts";
import { Adam } from "../optim/adam.ts";
import { PooledSimilarity } from "../reweight/pooled.ts";
import { CoreSimilarity, ExactSimilarity, type Similarity } from "../reweight/similarity.ts";
import type { Limits } from "../model/decoder.ts";
import { Engine } from "./engine.ts";
import { allowedBytes } from "./fit.ts";
import { type HostWork, memoryPlan } from "./memory.ts";
import type { PassOptions } from "./plan.ts";

/** What a training run is made of. */
export interface Training {
  readonly engine: Engine;
  readonly adam: Adam;
  readonly similarity: Similarity | null;
}

/** The order of passes that a configuration asks for. */
export function passOptions({ reweight: { method, similarity, preset, validation } }: Config): PassOptions {
  const zeroAtStart = similarity === "core" || similarity === "pooled";
  const plainStart = preset === "reference" ? "epoch" : zeroAtStart ? "first" : "never";
  return { method, every: validation.every, plainStart };
}

/** The type that frozen weights have on a device: `train.precision`, where auto is the device's own. */
export function weightDtype(dev: Device, precision: Config["train"]["precision"]): "f32" | "bf16" {
  if (precision === "f32" && dev.backend === "cuda") {
    throw new UserError("Cannot use train.precision: f32 on CUDA, which computes in bf16. Leave it out, or use --device cpu", 2);
  }
  return precision === "auto" ? dev.activationDtype : precision;
}

/** What a run is laid out for. */
export interface TrainingInputs {
  readonly model: ModelConfig;
  readonly limits: Limits;
  /** Whether a validation batch may need several passes. */
  readonly sumsPasses: boolean;
  readonly adapterOf: AdapterOf;
  readonly padId: number | null;
}

/**
 * Lays out a training run without taking memory: `engine.arena` then knows the plan, `engine.allocate()` takes it. With
 * `train.recompute: auto` it recomputes as little as fits into `train.memory` and into what is free, or as much as it can. Before it
 * recomputes anything it leaves the embedding to the host (`train.embedding: auto`): reading a few of its rows over the bus costs less.
 * @param work what the run does beside its steps, as far as that takes memory
 * @throws {UserError} when keys of the configuration contradict each other
 */
export function buildTraining(dev: Device, config: Config, inputs: TrainingInputs, work: HostWork): Training {
  const { recompute } = config.train;
  const { L, tied } = inputs.model;
  // On the CPU all memory is the host's, and an embedding that is the head as well is read as a whole.
  const movable = dev.backend === "cuda" && !tied && config.train.embedding !== "device";
  const given: Layout = { recompute: KEEP_ALL, embedding: movable && config.train.embedding === "host" ? "host" : "device" };
  const limit = allowedBytes(dev, config);
  const least: Layout = { ...given, embedding: movable ? "host" : "device" };
  let smallest: Training | null = null, fewest = Infinity;
  const fitting = (layout: Layout): Training | null => {
    const training = layOut(dev, config, inputs, layout);
    const { total_bytes: bytes } = memoryPlan(dev, training, work);
    if (bytes <= fewest) [smallest, fewest] = [training, bytes];
    return bytes <= limit ? training : null;
  };
  for (const layout of [given, least]) {
    const training = fitting(recompute === "auto" ? layout : { ...layout, recompute: { rung: recompute, layers: L } });
    if (training) return training;
  }
  if (recompute === "auto") {
    for (const rung of RUNGS.slice(1)) {
      const on = (layers: number) => fitting({ ...least, recompute: { rung, layers } });
      // Every further layer of a rung takes as much less as the others, or as much more: where the gradients that lay over its
      // activations find no room any longer. So the first fits, or some from the first on do not, or none does.
      const first = on(1);
      if (first) return first;
      let found = on(L);
      if (!found) continue;
      for (let low = 1, high = L; high - low > 1;) {
        const middle = Math.floor((low + high) / 2), training = on(middle);
        if (training) [found, high] = [training, middle];
        else low = middle;
      }
      return found;
    }
  }
  return smallest!;
}

/**
 * What a configuration asks for that a device or model has no use for, a line each.
 * @param tied Whether the model's embedding is its head as well.
 */
export function unusedSettings(dev: Device, { train, optimizer }: Config, tied: boolean): string[] {
  if (dev.backend === "cpu") {
    const asked = { "train.embedding": train.embedding, "optimizer.placement": optimizer.placement };
    const unused = Object.entries(asked).filter(([, place]) => place === "host").map(([key]) => key);
    return unused.map((key) => `${key}: host changes nothing on the CPU, where all memory is the host's`);
  }
  if (train.embedding !== "host" || !tied) return [];
  return ["train.embedding: host changes nothing: this model's embedding is its head as well, and read as a whole"];
}

/** What trades time for memory. */
interface Layout {
  readonly recompute: Recompute;
  readonly embedding: Place;
}

function layOut(
  dev: Device,
  config: Config,
  { model, limits, sumsPasses, adapterOf, padId }: TrainingInputs,
  { recompute, embedding }: Layout,
): Training {
  const { reweight, optimizer, train } = config;
  const weighted = reweight.method === "meta-lora";
  const samples = train.batch_size * train.accumulate;
  const engine = new Engine(dev, model, {
    adapterOf,
    weightDtype: weightDtype(dev, train.precision),
    limits,
    purpose: "train",
    staged: weighted ? samples : 0,
    // One backward pass a step: its activations are free for the gradients. On the CPU they keep a place of their own.
    gradients: dev.backend === "cuda" && train.accumulate === 1 ? "reuse" : "whole",
    sumsPasses,
    recompute,
    embedding,
    padding: isPadded(config) ? { id: requirePad(padId) } : null,
  });
  if (engine.parameters === 0) {
    throw new UserError(
      `Cannot train: adapter.targets ${JSON.stringify(config.adapter.targets)} matches no matrix of the model`,
      2,
    );
  }
  const { eps, clip, weight_decay: weightDecay } = optimizer;
  const placement = dev.backend === "cpu" ? "device" : optimizer.placement;
  const adam = new Adam(dev, engine.arena, engine.parameters, { betas: optimizer.betas, eps, weightDecay, clip, placement });
  return { engine, adam, similarity: weighted ? buildSimilarity(dev, config, engine, adam) : null };
}

/** Whether samples run padded to the longest of their batch, as the authors' code does. */
export const isPadded = ({ reweight }: Config): boolean => reweight.preset === "reference";

function requirePad(padId: number | null): number {
  if (padId !== null) return padId;
  throw new UserError("Cannot use reweight.preset: reference: the tokenizer names neither a padding nor an end-of-text token", 2);
}

function buildSimilarity(dev: Device, config: Config, engine: Engine, adam: Adam): Similarity {
  const { reweight, train } = config;
  const { modules, normalize, validation: { ema, batch_size: m } } = reweight;
  const n = train.batch_size * train.accumulate;
  const { arena, model } = engine;
  switch (reweight.similarity) {
    case "exact":
      return new ExactSimilarity(dev, arena, model, { staging: engine.staging!, ema, modules, normalize, adam: null });
    case "exact-adam":
      return new ExactSimilarity(dev, arena, model, { staging: engine.staging!, ema, modules, normalize, adam });
    case "core":
      return new CoreSimilarity(dev, arena, model, { samples: n, ema, modules, normalize });
    case "pooled": {
      if (normalize !== "none") {
        throw new UserError(
          "Cannot use reweight.normalize: cosine with similarity: pooled, which has no gradient to divide by. Use none",
          2,
        );
      }
      const reduction = reweight.preset === "paper" ? "mean-of-products" : "product-of-means";
      const loss = reweight.preset === "reference" ? "token-mean" : "sample-mean";
      return new PooledSimilarity(dev, arena, model, Math.max(n, m), { ema, modules, reduction, loss });
    }
  }
}
