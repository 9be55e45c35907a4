/** Reads checkpoints back: the newest one that is whole, and its state into a run that is laid out the same way. */
import { join } from "node:path";
import { sha256OfFile } from "../data/readers.ts";
import { UserError } from "../errors.ts";
import { readPeftAdapter } from "../export/peft.ts";
import { readRegularFile, reasonOf } from "../files.ts";
import type { SimilarityState } from "../reweight/similarity.ts";
import { openSafetensors, type SafetensorsFile } from "../tensor/safetensors.ts";
import { fromPeft } from "./adapters.ts";
import { CHECKPOINT_FILES, CHECKPOINT_FORMAT, checkpointFolder, type CheckpointState, checkpointSteps } from "./checkpoint.ts";
import { release } from "./memory.ts";
import type { PreparedRun } from "./run.ts";
import type { SampleStatistics } from "./statistics.ts";
import type { Trainer } from "./trainer.ts";

/** A checkpoint whose every byte is as it was written. */
export interface FoundCheckpoint {
  readonly path: string;
  readonly state: CheckpointState;
}

/** What {@linkcode findCheckpoint} saw. */
export interface Search {
  /** The newest whole checkpoint. */
  readonly found: FoundCheckpoint | null;
  /** Those newer than it, newest first, and what is wrong with each. */
  readonly damaged: readonly { readonly step: number; readonly what: string }[];
}

/**
 * Looks for the newest whole checkpoint of an output.
 * @throws {UserError} exit code 2, for one that another version laid out in another way
 */
export function findCheckpoint(output: string): Search {
  const damaged: { step: number; what: string }[] = [];
  for (const step of checkpointSteps(output).reverse()) {
    const path = checkpointFolder(output, step);
    const checked = check(path, step);
    if (typeof checked !== "string") return { found: { path, state: checked }, damaged };
    damaged.push({ step, what: checked });
  }
  return { found: null, damaged };
}

/** The state of a checkpoint, or what is wrong with it. */
function check(path: string, step: number): CheckpointState | string {
  const manifest = readJson(join(path, "manifest.json")) as Record<string, { bytes: number; sha256: string }> | null;
  if (manifest === null || typeof manifest !== "object") return "manifest.json is missing or no JSON";
  for (const name of new Set([...CHECKPOINT_FILES, ...Object.keys(manifest)])) {
    const expected = manifest[name];
    if (!expected) {
      const other = readJson(join(path, "state.json")) as { format?: unknown } | null;
      if (other !== null && other.format !== CHECKPOINT_FORMAT) refuseFormat(path, other.format);
      return `manifest.json does not name ${name}`;
    }
    try {
      const { size } = Deno.statSync(join(path, name));
      if (size !== expected.bytes) return `${name} has ${size} bytes instead of ${expected.bytes}`;
      if (sha256OfFile(join(path, name)) !== expected.sha256) return `${name} is not what was written`;
    } catch (error) {
      return error instanceof Deno.errors.NotFound ? `${name} is missing` : `${name} cannot be read: ${reasonOf(error as Error)}`;
    }
  }
  const state = readJson(join(path, "state.json")) as CheckpointState | null;
  if (state?.format !== CHECKPOINT_FORMAT) refuseFormat(path, state?.format);
  return state.step === step ? state : `state.json is of step ${state.step}`;
}

function refuseFormat(path: string, format: unknown): never {
  throw new UserError(
    `Cannot resume from ${path}: its format is ${format ?? "an older one"}, this version reads ${CHECKPOINT_FORMAT}. ` +
      `Use the version that wrote it, or train without --resume`,
    2,
  );
}

function readJson(path: string): unknown {
  try {
    return JSON.parse(readRegularFile(path));
  } catch {
    return null;
  }
}

/**
 * Puts a checkpoint's state into a loaded run.
 * @returns lines for the reader about what could not be taken over
 * @throws {UserError} exit code 2, when adapter or optimizer do not fit
 */
export function restoreCheckpoint({ path, state }: FoundCheckpoint, prepared: PreparedRun, trainer: Trainer): string[] {
  const { engine, adam, similarity, inputs, config: { train, reweight } } = prepared;
  const notes: string[] = [];
  const P = engine.parameters;
  const saved = readPeftAdapter(join(path, "adapter"));
  const theta = fromPeft(saved, engine.adapters, { P, config: inputs.model, dir: join(path, "adapter") });
  release(...saved.modules.flatMap(({ A, B }) => [A, B] as { buffer: ArrayBuffer }[]));
  engine.setAdapters(theta);
  release(theta);
  {
    using file = openSafetensors(join(path, "optimizer.safetensors"));
    const m = floats(file, "m"), v = floats(file, "v");
    if (m.length !== P || v.length !== P) {
      throw new UserError(`Cannot resume from ${path}: Adam's moments have ${m.length} numbers, the adapter ${P}`, 2);
    }
    adam.restore({ step: state.adam_step, m, v });
    release(m, v);
  }
  if (similarity) {
    const kept = readVectors(join(path, "reweighting.safetensors"));
    if (!similarity.restore(kept)) notes.push("the validation gradient of the checkpoint is of another kind: it is made anew");
    release(...kept.values());
  }
  const samples = inputs.data.train.samples.length, validation = inputs.data.validation?.samples.length ?? 0;
  // Data and batches may be others now. Where whole batches fill an epoch none may cross its end: `limitsFor` counts on that.
  const inside = ({ epoch, position }: CheckpointState["train_order"], count: number, batchSize: number) => {
    if (position >= count) return { epoch, position: 0 };
    return { epoch, position: count % batchSize === 0 ? position - position % batchSize : position };
  };
  const { train_order, validation_order } = state;
  trainer.restore({
    ...state,
    train_order: inside(train_order, samples, train.batch_size),
    validation_order: validation_order && inside(validation_order, validation, reweight.validation.batch_size),
  });
  const sameData = state.data.train === inputs.data.train.sha256;
  if (!sameData || !restoreStatistics(join(path, "statistics.safetensors"), trainer.statistics)) {
    notes.push("the training data is another: what is known of its samples starts anew");
  }
  return notes;
}

/** @returns false when they are of another number of samples */
function restoreStatistics(path: string, statistics: SampleStatistics): boolean {
  using file = openSafetensors(path);
  const columns = statistics.save();
  for (const [name, values] of Object.entries(columns)) {
    if (file.tensors.get(name)?.bytes !== values.byteLength) return false;
    file.read(name, new Uint8Array(values.buffer));
  }
  statistics.restore(columns);
  return true;
}

function readVectors(path: string): SimilarityState {
  using file = openSafetensors(path);
  return new Map(Array.from(file.tensors.keys(), (name) => [name, floats(file, name)]));
}

function floats(file: SafetensorsFile, name: string): Float32Array<ArrayBuffer> {
  const values = new Float32Array((file.tensors.get(name)?.bytes ?? 0) / 4);
  if (values.length > 0) file.read(name, new Uint8Array(values.buffer));
  return values;
}
