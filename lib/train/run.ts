/** A whole training run: from a configuration to an output folder (design §5). */
import { join } from "node:path";
import { Device } from "../../ffi/device.ts";
import type { Config } from "../config/schema.ts";
import { writeConfig } from "../config/write.ts";
import { BatchCursor } from "../data/order.ts";
import { UserError } from "../errors.ts";
import { writePeftAdapter } from "../export/peft.ts";
import { loadWeights } from "../model/load.ts";
import { gatherReport } from "../report/gather.ts";
import { renderReport } from "../report/report.ts";
import { openCheckpoint } from "../tensor/checkpoint.ts";
import { VERSION } from "../version.ts";
import { adapterOf, initialAdapters, toPeft } from "./adapters.ts";
import { buildTraining, isPadded, passOptions, type Training } from "./build.ts";
import { writeCheckpoint } from "./checkpoint.ts";
import { type Engine, limitsFor } from "./engine.ts";
import { type Evaluation, evaluation } from "./evaluation.ts";
import { requireRoom, smallerConfigs } from "./fit.ts";
import { RunFolder, writing } from "./folder.ts";
import { loadRunInputs, type RunInputs } from "./inputs.ts";
import { type MemoryPlan, memoryPlan, peakMemoryBytes, release } from "./memory.ts";
import { plannedSteps } from "./plan.ts";
import { type StepReport, Trainer, trainerOptions } from "./trainer.ts";

/** What `train --json` prints at the end. */
export interface RunResult {
  readonly steps: number;
  /** Unweighted loss of the last training batch, nats. */
  readonly loss: number;
  readonly seconds: number;
  readonly tokens_per_second: number;
  readonly peak_memory_bytes: number;
  readonly output: string;
  readonly validation?: Evaluation;
  readonly test?: Evaluation;
}

/** What a run tells while it goes on. */
export interface RunObserver {
  /** Once, before the first step. */
  started?(info: { inputs: RunInputs; steps: number; parameters: number; device: string; plan: MemoryPlan }): void;
  /** After every pass. */
  stepped?(report: StepReport, at: { steps: number; seconds: number; tokensPerSecond: number }): void;
  /** After an evaluation. */
  evaluated?(name: "validation" | "test", evaluation: Evaluation, step: number): void;
}

/** A run that is laid out but has taken no memory for its model. */
export interface PreparedRun extends Training {
  readonly config: Config;
  readonly inputs: RunInputs;
  readonly steps: number;
  readonly plan: MemoryPlan;
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
 * @throws {UserError} when the configuration, the model or the data cannot be used
 */
export function prepareRun(dev: Device, config: Config, inputs: RunInputs): PreparedRun {
  const { train, validation, test } = inputs.data;
  const others = [...validation?.samples ?? [], ...test?.samples ?? []];
  const limits = limitsFor(train.samples, others, { batchSize: config.train.batch_size, padded: isPadded(config) });
  const padId = inputs.tokenizer.padId ?? inputs.tokenizer.eosId;
  const training = buildTraining(dev, config, { model: inputs.model, limits, adapterOf: adapterOf(config.adapter), padId });
  requireModules(config, training.engine);
  const steps = totalSteps(config, train.samples.length);
  const { warmup } = config.optimizer;
  if (warmup >= 1 && warmup >= steps) {
    throw new UserError(
      `Cannot train: a warm-up of ${warmup} steps does not fit into a run of ${steps}. Lower optimizer.warmup`,
      2,
    );
  }
  const { every } = config.checkpoints;
  const saves = every > 0 && every <= steps ? "checkpoints" : "adapter";
  return { ...training, config, inputs, steps, plan: memoryPlan(dev, training, { saves }) };
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
function* smallerRuns(dev: Device, { config, inputs }: PreparedRun): Generator<{ settings: string; bytes: number }> {
  for (const { settings, config: smaller } of smallerConfigs(config)) {
    yield { settings, bytes: prepareRun(dev, smaller, inputs).plan.total_bytes };
  }
}

/** Takes the memory, loads the weights and starts the adapters. */
export function loadRun(dev: Device, { engine, config, inputs }: PreparedRun): void {
  using checkpoint = openCheckpoint(inputs.dir);
  engine.allocate();
  loadWeights(dev, engine.model, checkpoint);
  const { init } = config.adapter;
  const theta = initialAdapters(engine.adapters, engine.parameters, { init, seed: config.seed });
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

/**
 * Runs a configuration and writes its output folder.
 * @throws {UserError} for anything that a person can mend; no adapter is written then
 */
export function run(config: Config, observer: RunObserver = {}, { threads = 0 }: { threads?: number } = {}): RunResult {
  using folder = RunFolder.open(config.output); // first, so that nobody waits for a model to be told of another run
  folder.requireOwn();
  const inputs = loadRunInputs(config);
  using dev = Device.open({ threads });
  const prepared = prepareRun(dev, config, inputs);
  const { engine, plan, steps } = prepared;
  using _engine = engine;
  requireRoom("train", plan.total_bytes, smallerRuns(dev, prepared));
  loadRun(dev, prepared);
  folder.writeText("config.yaml", writeConfig(config, [`metalora ${VERSION}: the configuration of this run with every default`]));
  folder.removeStale(["checkpoints", "weights.jsonl", "report.html"]);
  folder.startLog("metrics.jsonl");
  observer.started?.({ inputs, steps, parameters: engine.parameters, device: dev.name, plan });

  const trainer = makeTrainer(prepared);
  const { checkpoints, train } = config;
  const start = performance.now();
  const seconds = () => (performance.now() - start) / 1000;
  let tokens = 0, loss = NaN, saved = 0;
  const evaluateAll = (step: number) => {
    const results: { validation?: Evaluation; test?: Evaluation } = {};
    for (const name of ["validation", "test"] as const) {
      const dataset = inputs.data[name];
      if (!dataset) continue;
      results[name] = evaluation(engine.evaluate(dataset.samples));
      folder.log("metrics.jsonl", { step, kind: `${name} evaluation`, ...results[name] });
      observer.evaluated?.(name, results[name], step);
    }
    return results;
  };
  for (const report of trainer.run()) {
    tokens += report.tokens;
    if (report.kind === "train") loss = report.loss;
    const at = { steps, seconds: seconds(), tokensPerSecond: tokens / seconds() };
    folder.log("metrics.jsonl", metricsLine(report, at));
    observer.stepped?.(report, at);
    const { step } = report;
    if (report.skipped || step === saved) continue;
    if (train.eval_every > 0 && step % train.eval_every === 0 && step < steps) evaluateAll(step);
    if (checkpoints.every > 0 && step % checkpoints.every === 0) {
      writing(folder.path, () => writeCheckpoint(folder.path, { prepared, trainer, keep: checkpoints.keep }));
      folder.writeText("weights.jsonl", trainer.statistics.lines(inputs.data.train.samples));
      saved = step;
    }
  }
  const trained = seconds();
  const results = evaluateAll(steps);
  folder.writeText("weights.jsonl", trainer.statistics.lines(inputs.data.train.samples));
  const adapter = toPeft(engine.getAdapters(), engine.adapters, config);
  writing(folder.path, () => writePeftAdapter(join(folder.path, "adapter"), adapter));
  const result = {
    steps: trainer.step,
    loss,
    seconds: trained,
    tokens_per_second: tokens / trained,
    peak_memory_bytes: peakMemoryBytes(),
    output: config.output,
    ...results,
  };
  folder.writeText("report.html", renderReport(gatherReport(folder.path, { prepared, result, device: dev.name })));
  return result;
}

/** A pass as a line of metrics.jsonl. */
function metricsLine(report: StepReport, at: { seconds: number; tokensPerSecond: number }): Record<string, unknown> {
  const { step, kind, epoch, lr, loss, gradNorm, tokens, weights, effectiveSampleSize, skipped } = report;
  return {
    step,
    kind,
    epoch,
    loss,
    lr,
    grad_norm: gradNorm,
    tokens,
    tokens_per_second: at.tokensPerSecond,
    seconds: at.seconds,
    memory_bytes: peakMemoryBytes(),
    ...(weights ? { effective_sample_size: effectiveSampleSize, max_weight: Math.max(...Array.from(weights)), skipped } : {}),
  };
}
