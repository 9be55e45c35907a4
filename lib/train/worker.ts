/**
 * The thread that trains. Its calls into the native library block, so nothing else runs here; signals, the terminal and the
 * status server live in the main thread (`background.ts`). Include this module when compiling: it is named by URL only.
 */
/// <reference lib="deno.worker" />
import { DeviceError } from "../../ffi/native.ts";
import type { Config } from "../config/schema.ts";
import { firstError, refusalOf, UserError } from "../errors.ts";
import { openDevice } from "../devices.ts";
import { isWorthRepeating, type Work } from "../repeat.ts";
import type { EngineLayout } from "./engine.ts";
import type { DatasetFacts, FailedEnding, RunEvent } from "./events.ts";
import { unusedSettings } from "./build.ts";
import { checkpointBytes } from "./checkpoint.ts";
import { requireRoom } from "./fit.ts";
import { runIdentity } from "./identity.ts";
import { loadRunInputs } from "./inputs.ts";
import { StopFlag } from "./interrupt.ts";
import { measure, type Measured } from "./measure.ts";
import type { MemoryPlan } from "./memory.ts";
import { datasetFacts } from "./messages.ts";
import { describeResumption, resumption } from "./resumption.ts";
import { prepareRun, smallerRuns, totalSteps } from "./run.ts";
import { type Position, type RunOptions, train } from "./session.ts";
import { existingFolder, requireDiskRoom } from "./space.ts";

/** What the main thread asks for; the only message to a worker. */
export interface Job {
  /** "train": the run; "plan": check everything and lay it out, without taking memory; "measure": evaluate `adapters`. */
  readonly kind: "train" | "plan" | "measure";
  readonly adapters?: readonly (string | null)[];
  readonly config: Config;
  readonly options: RunOptions;
  /** Memory of the StopFlag. */
  readonly stop: SharedArrayBuffer;
}

/** A run that could be started. */
export interface PlannedRun {
  readonly device: string;
  readonly parameters: number;
  readonly steps: number;
  readonly data: { readonly train: DatasetFacts; readonly validation: DatasetFacts | null; readonly test: DatasetFacts | null };
  readonly plan: MemoryPlan;
  readonly layout: EngineLayout;
  /** What the reader should know, such as where it would go on. */
  readonly notes: readonly string[];
  /** Why it would not start all the same, complete with what to do; null: it would. */
  readonly refusal: string | null;
}

/**
 * What a worker answers; "event" with a "finished" event, "planned", "measured" or "lost" is the last message. "lost": it failed by a
 * fault that another process may find the operator of.
 */
export type Answer =
  | { readonly kind: "event"; readonly event: RunEvent }
  | { readonly kind: "planned"; readonly planned: PlannedRun }
  | { readonly kind: "measured"; readonly measured: Measured | null }
  | { readonly kind: "lost"; readonly ending: FailedEnding; readonly work: Work };

function planRun(config: Config, { device = {}, resume = false, allowChange = [] }: RunOptions): PlannedRun {
  const { output } = config;
  const inputs = loadRunInputs(config);
  const notes: string[] = [];
  const identity = runIdentity(config, inputs.data);
  const from = resume
    ? resumption(
      { config, identity, steps: totalSteps(config, inputs.data.train.samples.length) },
      allowChange,
      (text) => notes.push(text),
    )
    : null;
  const where = from && describeResumption(from, output);
  if (where !== null) notes.push(where);
  using dev = openDevice(device);
  const prepared = prepareRun(dev, config, inputs);
  const { engine, steps, plan } = prepared;
  notes.push(...unusedSettings(dev, config, inputs.model.tied));
  const { train, validation, test } = inputs.data;
  const bytes = checkpointBytes(engine.parameters, train.samples.length);
  const refusal = from?.kind === "complete" ? null : refusalOf(() => { // there, nothing is done
    requireRoom("train", plan.total_bytes, smallerRuns(dev, prepared), { dev, memory: config.train.memory });
    requireDiskRoom(existingFolder(output), bytes, "train");
  });
  return {
    device: dev.name,
    parameters: engine.parameters,
    steps,
    data: {
      train: datasetFacts(train),
      validation: validation && datasetFacts(validation),
      test: test && datasetFacts(test),
    },
    plan,
    layout: engine.layout,
    notes,
    refusal,
  };
}

function work({ kind, config, options, stop, adapters = [] }: Job, answer: (answer: Answer) => void): void {
  const emit = (event: RunEvent) => answer({ kind: "event", event });
  const position: Position = { before: null, evaluating: false };
  try {
    if (kind === "plan") return answer({ kind: "planned", planned: planRun(config, options) });
    const flag = new StopFlag(stop);
    if (kind === "measure") return answer({ kind: "measured", measured: measure(config, options, adapters, flag) });
    emit({ type: "finished", ending: train(config, options, emit, flag, position) });
  } catch (thrown) {
    const error = firstError(thrown);
    const message = error instanceof Error ? error.message || error.name : String(error);
    const stack = error instanceof Error ? error.stack ?? null : Deno.inspect(error);
    const exitCode = error instanceof UserError ? error.exitCode : 1;
    const defect = !(error instanceof UserError || error instanceof DeviceError);
    const ending = { kind: "failed", message, exitCode, defect, stack } as const;
    if (kind === "plan" || !isWorthRepeating(error)) return emit({ type: "finished", ending });
    const { device = {} } = options;
    const work = kind === "train" ? { kind, config, device, position } : { kind, config, device, adapters };
    answer({ kind: "lost", ending, work });
  }
}

const scope = self as unknown as DedicatedWorkerGlobalScope;
// Only inside a worker: importing the types of this module runs it, too, where type imports are kept.
if ("WorkerGlobalScope" in globalThis) {
  scope.onmessage = ({ data }: MessageEvent<Job>) => work(data, (answer) => scope.postMessage(answer));
}
