/**
 * Checkpoints: `checkpoints/step-N/`, complete or absent, with a manifest of sizes and hashes. `restore.ts` reads them.
 *
 *   adapter/                   θ in PEFT's format, f32 bit for bit
 *   optimizer.safetensors      Adam's m and v, f32 [P]
 *   reweighting.safetensors    what the similarity keeps between batches (V of exact and core, z and g of pooled), f32
 *   statistics.safetensors     what is known of every training sample, f64 [samples] a column
 *   state.json                 a CheckpointState
 *   manifest.json              {file: {bytes, sha256}} of all of these
 */
import { dirname, join } from "node:path";
import type { Config } from "../config/schema.ts";
import { sha256OfFile } from "../data/readers.ts";
import { UserError } from "../errors.ts";
import { writePeftAdapter } from "../export/peft.ts";
import { syncFolder, writeAll, writeFileAtomic, writeFolderAtomic } from "../tensor/atomic.ts";
import { writeSafetensors } from "../tensor/safetensors.ts";
import { toPeft } from "./adapters.ts";
import type { Engine } from "./engine.ts";
import type { RunIdentity } from "./identity.ts";
import { release } from "./memory.ts";
import type { PreparedRun } from "./run.ts";
import { requireDiskRoom } from "./space.ts";
import type { Trainer, TrainerState } from "./trainer.ts";

/** The number of this layout; a version that reads another one refuses it. */
export const CHECKPOINT_FORMAT = 1;

/** Everything of a run's state that is no vector: what state.json holds. */
export interface CheckpointState extends TrainerState, RunIdentity {
  readonly format: number;
  /** Version of metalora that wrote it. */
  readonly version: string;
  readonly seed: number;
  /** Updates that Adam made. */
  readonly adam_step: number;
  readonly progress: {
    /** Tokens that went through the model, and seconds of training, so far. */
    readonly tokens: number;
    readonly seconds: number;
    /** Of the last training batch, nats; null before the first. */
    readonly loss: number | null;
    /** Length of metrics.jsonl. */
    readonly metrics_bytes: number;
    /** The evaluation of this step is still to be made. */
    readonly evaluate: boolean;
  };
  /** Loss on the validation data at this step; null where it was not measured. */
  readonly validation_loss: number | null;
  /** The checkpoint with the lowest one so far. */
  readonly best: { readonly step: number; readonly loss: number } | null;
  readonly config: Config;
}

/** Files that every checkpoint has. */
export const CHECKPOINT_FILES = [
  "adapter/adapter_config.json",
  "adapter/adapter_model.safetensors",
  "optimizer.safetensors",
  "reweighting.safetensors",
  "state.json",
  "statistics.safetensors",
] as const;

/** Where the checkpoint of a step lies. */
export function checkpointFolder(output: string, step: number): string {
  return join(output, "checkpoints", `step-${step}`);
}

/** About the bytes of a checkpoint: θ, m, v and V in f32, six numbers a sample, names and text. */
export function checkpointBytes(P: number, samples: number): number {
  return 4 * 4 * P + 48 * samples + 2 ** 16;
}

/**
 * Writes the state of a run between two passes and removes all but the newest `keep` checkpoints and the best one.
 * @returns the folder and its bytes
 * @throws {UserError} when it does not fit on the disk, cannot be written, or the adapter has numbers that are none
 */
export function writeCheckpoint(
  output: string,
  { prepared, trainer, state, keep }: { prepared: PreparedRun; trainer: Trainer; state: CheckpointState; keep: number },
): { path: string; bytes: number } {
  const { engine, adam, similarity, config } = prepared;
  const { step } = state;
  const path = checkpointFolder(output, step);
  const samples = trainer.statistics.records.length;
  requireDiskRoom(output, checkpointBytes(engine.parameters, samples), `save the checkpoint of step ${step}`);
  Deno.mkdirSync(dirname(path), { recursive: true });
  syncFolder(output);
  let bytes = 0;
  writeFolderAtomic(path, (dir) => {
    const theta = finiteAdapters(engine, step);
    writePeftAdapter(join(dir, "adapter"), toPeft(theta, engine.adapters, config));
    release(theta);
    const { m, v } = adam.state();
    writeSafetensors(join(dir, "optimizer.safetensors"), [vector("m", m), vector("v", v)]);
    release(m, v);
    const kept = [...similarity?.save() ?? []];
    writeSafetensors(join(dir, "reweighting.safetensors"), kept.map(([name, values]) => vector(name, values)));
    release(...kept.map(([, values]) => values));
    const columns = Object.entries(trainer.statistics.save());
    writeSafetensors(join(dir, "statistics.safetensors"), columns.map(([name, values]) => vector(name, values)));
    writeText(join(dir, "state.json"), JSON.stringify(state, null, 2) + "\n");
    const manifest = Object.fromEntries(CHECKPOINT_FILES.map((name) => {
      const file = join(dir, name);
      const { size } = Deno.statSync(file);
      bytes += size;
      return [name, { bytes: size, sha256: sha256OfFile(file) }];
    }));
    writeText(join(dir, "manifest.json"), JSON.stringify(manifest, null, 2) + "\n");
  });
  const others = checkpointSteps(output).filter((other) => other !== step);
  const older = others.slice(0, Math.max(0, others.length - (keep - 1)));
  removeCheckpoints(output, older.filter((other) => other !== state.best?.step));
  return { path, bytes };
}

/**
 * A copy of θ.
 * @throws {UserError} when it has numbers that are none: such an adapter is neither saved nor published
 */
export function finiteAdapters(engine: Engine, step: number): Float32Array<ArrayBuffer> {
  const theta = engine.getAdapters();
  if (theta.every(Number.isFinite)) return theta;
  throw new UserError(
    `Cannot save the adapter of step ${step}: some of its numbers are NaN or infinite. Lower optimizer.lr or check the data`,
  );
}

/** Removes checkpoints, each at once: what is left of one that was being removed has another name. */
export function removeCheckpoints(output: string, steps: readonly number[]): void {
  for (const step of steps) {
    const path = checkpointFolder(output, step);
    const going = join(dirname(path), `.step-${step}.${Deno.pid}-0.tmp`);
    Deno.renameSync(path, going);
    Deno.removeSync(going, { recursive: true });
  }
}

/** Steps of the checkpoints in an output folder, oldest first. */
export function checkpointSteps(output: string): number[] {
  try {
    return [...Deno.readDirSync(join(output, "checkpoints"))]
      .flatMap(({ name }) => /^step-(\d+)$/.exec(name)?.[1] ?? [])
      .map(Number)
      .sort((a, b) => a - b);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) return [];
    throw error;
  }
}

function vector(name: string, values: Float32Array<ArrayBuffer> | Float64Array<ArrayBuffer>) {
  const dtype = values instanceof Float32Array ? "F32" as const : "F64" as const;
  return { name, dtype, shape: [values.length], data: new Uint8Array(values.buffer, values.byteOffset, values.byteLength) };
}

function writeText(path: string, text: string): void {
  writeFileAtomic(path, (file) => writeAll(file, new TextEncoder().encode(text)));
}
