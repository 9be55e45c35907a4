/** A training run before its first step: laid out, planned, loaded. `session.ts` runs it. */
import type { Device } from "../../ffi/device.ts";
import type { Config } from "../config/schema.ts";
import { BatchCursor } from "../data/order.ts";
import { counted } from "../counted.ts";
import { UserError } from "../errors.ts";
import { readPeftAdapter } from "../export/peft.ts";
import { loadWeights } from "../model/load.ts";
import { openCheckpoint } from "../tensor/checkpoint.ts";
import { adapterOf, fromPeft, initialAdapters } from "./adapters.ts";
import { buildTraining, isPadded, passOptions, type Training } from "./build.ts";
import { type Engine, fitsOnePass, limitsFor } from "./engine.ts";
import { lesserConfigs, smallerConfigs } from "./fit.ts";
import type { RunInputs } from "./inputs.ts";
import { type MemoryPlan, memoryPlan, type ProcessMemory, processMemory, release } from "./memory.ts";
import { plannedSteps } from "./plan.ts";
import { Trainer, trainerOptions } from "./trainer.ts";

/** A run that is laid out but has taken no memory for its model. */
export interface PreparedRun extends Training {
  readonly config: Config;
  readonly inputs: RunInputs;
  readonly steps: number;
  readonly plan: MemoryPlan;
  /** What the process took before. */
  readonly before: ProcessMemory;
}

/** Optimizer steps of a run: `train.steps`, or what `train.epochs` amount to. */
export function totalSteps({ train, reweight, ...config }: Config, samples: number): number {
  if (train.steps !== null) return train.steps;
  const perStep = train.batch_size * train.accumulate;
  const batches = Math.ceil((train.epochs ?? 1) * samples / perStep);
  const trainOn = reweight.method === "mix" || reweight.validation.train_on;
  return plannedSteps(batches, Math.ceil(samples / perStep), { ...passOptions({ ...config, train, reweight }), trainOn });
}

/**
 * Lays out a run and plans its memory; nothing is written.
 * @param before what the process takes, the same for runs whose plans are compared
 * @throws {UserError} when the configuration, the model or the data cannot be used
 */
export function prepareRun(dev: Device, config: Config, inputs: RunInputs, before = processMemory()): PreparedRun {
  const { train, validation, test } = inputs.data;
  const others = [...validation?.samples ?? [], ...test?.samples ?? []];
  const padded = isPadded(config);
  const limits = limitsFor(train.samples, others, { batchSize: config.train.batch_size, padded });
  const padId = inputs.tokenizer.padId ?? inputs.tokenizer.eosId;
  const steps = totalSteps(config, train.samples.length);
  const { every } = config.checkpoints;
  const work = { saves: every > 0 && every <= steps ? "checkpoints" : "adapter", before } as const;
  const { method, validation: { batch_size: m } } = config.reweight;
  const sumsPasses = method !== "none" && !fitsOnePass(validation!.samples, limits, { batchSize: m, padded });
  const layout = { model: inputs.model, limits, sumsPasses, adapterOf: adapterOf(config.adapter, inputs.model), padId };
  const training = buildTraining(dev, config, layout, work);
  requireModules(config, training.engine);
  const { warmup } = config.optimizer;
  if (warmup >= 1 && warmup >= steps) {
    throw new UserError(
      `Cannot train: a warm-up of ${counted(warmup, "step")} does not fit into a run of ${steps}. Lower optimizer.warmup`,
      2,
    );
  }
  return { ...training, config, inputs, steps, before, plan: memoryPlan(dev, training, work) };
}

/** @throws {UserError} when the similarity would compare no adapter at all */
export function requireModules({ adapter, reweight: { method, modules } }: Config, { model, parameters }: Engine): void {
  if (method !== "meta-lora" || modules === "all") return;
  const compared = modules === "attention" ? model.attentionParameters : parameters - model.attentionParameters;
  if (compared > 0) return;
  throw new UserError(
    `Cannot compare gradients: reweight.modules is ${modules}, but adapter.targets ${JSON.stringify(adapter.targets)} has no ` +
      `matrix there. Set reweight.modules to all`,
    2,
  );
}

/** What the run would take with settings that take less, nearest first. */
export function* smallerRuns(
  dev: Device,
  { config, inputs, before }: PreparedRun,
): Generator<{ settings: string; bytes: number }> {
  for (const configs of [smallerConfigs(config), lesserConfigs(config)]) {
    for (const { settings, config: smaller } of configs) {
      yield { settings, bytes: prepareRun(dev, smaller, inputs, before).plan.total_bytes };
    }
  }
}

/**
 * Takes the memory, loads the weights and starts the adapters.
 * @param start Folder of a PEFT adapter to start from; null: fresh ones.
 * @throws {UserError} when that adapter belongs to another model
 */
export function loadRun(dev: Device, { engine, config, inputs }: PreparedRun, start: string | null = null): void {
  using checkpoint = openCheckpoint(inputs.dir);
  engine.allocate();
  loadWeights(dev, engine.model, checkpoint);
  const { init } = config.adapter;
  const P = engine.parameters;
  const theta = start === null
    ? initialAdapters(engine.adapters, P, { init, seed: config.seed })
    : fromPeft(readPeftAdapter(start), engine.adapters, { P, config: inputs.model, dir: start });
  engine.setAdapters(theta);
  release(theta);
}

/** The loop over a prepared, loaded run. */
export function makeTrainer({ engine, adam, similarity, config, inputs, steps }: PreparedRun): Trainer {
  const { train, validation } = inputs.data;
  const { reweight, data, seed } = config;
  const order = data.shuffle ? "shuffled" as const : "sequential" as const;
  const cursor = (samples: number, batchSize: number, stream: string) =>
    new BatchCursor({ samples, batchSize, order, seed, stream });
  const guided = reweight.method !== "none";
  return new Trainer(engine, adam, similarity, {
    train: train.samples,
    validation: validation?.samples ?? [],
    trainOrder: cursor(train.samples.length, config.train.batch_size, "train"),
    validationOrder: guided ? cursor(validation!.samples.length, reweight.validation.batch_size, "validation") : null,
  }, trainerOptions(config, steps));
}
