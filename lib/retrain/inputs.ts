/** What a retraining is made from, as hashes: whether there is anything to do at all. */
import { createHash } from "node:crypto";
import type { Config } from "../config/schema.ts";
import { sha256OfFile } from "../data/readers.ts";
import { UserError } from "../errors.ts";
import { modelFingerprint } from "../train/identity.ts";
import type { Measured } from "../train/measure.ts";

/** SHA-256, hexadecimal, of everything that decides what a retraining makes. */
export interface InputHashes {
  /** Of the configuration without what changes no result: places of files, status, progress, checkpoints, releases to keep. */
  readonly config: string;
  readonly train: string;
  readonly validation: string | null;
  readonly test: string | null;
  /** Of the base model's folder, see `modelFingerprint`. */
  readonly model: string;
}

/**
 * Hashes what a configuration names, by content: time stamps and names of files do not count.
 * @throws {UserError} exit code 2, when a file cannot be read
 */
export function hashInputs(config: Config): InputHashes {
  const { train, validation, test } = config.data;
  return {
    config: createHash("sha256").update(JSON.stringify(decisive(config))).digest("hex"),
    train: sha256OfFile(train.path),
    validation: validation && sha256OfFile(validation.path),
    test: test && sha256OfFile(test.path),
    model: modelFingerprint(config.model),
  };
}

/** The keys of a configuration that change what is trained or published. */
function decisive({ data, retrain, train, ...config }: Config): unknown {
  const { output: _, model: __, status: ___, checkpoints: ____, ...rest } = config;
  const { keep: _____, ...policy } = retrain;
  const { log_every: ______, ...length } = train;
  const source = <T extends { path: string } | null>(each: T) => each && { ...each, path: null };
  const sources = { train: source(data.train), validation: source(data.validation), test: source(data.test) };
  return { ...rest, data: { ...data, ...sources }, retrain: policy, train: length };
}

/**
 * Whether adapters were measured on what the candidate was trained beside. Validation data that is split off comes out of the
 * training file: of another one, other rows are held out, some of which the candidate was trained on.
 * @throws {UserError} when a file changed while the candidate was trained
 */
export function requireMeasuredOn(config: Config, inputs: InputHashes, { data, path, sha256 }: Measured): void {
  const expected = inputs[data] ?? inputs.train;
  const changed = sha256 !== expected ? path : modelFingerprint(config.model) !== inputs.model ? config.model : null;
  if (changed !== null) throw new UserError(`Cannot retrain: ${changed} changed while the candidate was trained. Run it again`);
}

/** What the reader is told that differs, such as "training data, configuration"; nothing: the inputs are the same. */
export function changedInputs(before: InputHashes, now: InputHashes): string[] {
  const names: Record<keyof InputHashes, string> = {
    config: "configuration",
    train: "training data",
    validation: "validation data",
    test: "test data",
    model: "base model",
  };
  return (Object.keys(names) as (keyof InputHashes)[]).filter((key) => before[key] !== now[key]).map((key) => names[key]);
}
