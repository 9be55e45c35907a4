/** What a run is made from, as hashes: whether a run that goes on is still the same one. */
import { createHash, type Hash } from "node:crypto";
import { join } from "node:path";
import type { Config } from "../config/schema.ts";
import type { RunData } from "../data/load.ts";
import { UserError } from "../errors.ts";
import { reasonOf } from "../files.ts";

/** Hashes of everything that a run reads; SHA-256, hexadecimal. */
export interface RunIdentity {
  /** Of the resolved configuration. */
  readonly config_sha256: string;
  /** Of the whole data files. */
  readonly data: { readonly train: string; readonly validation: string | null; readonly test: string | null };
  /** Of the model's folder, see {@linkcode modelFingerprint}. */
  readonly model: string;
}

/** The identity of a run whose data is loaded. */
export function runIdentity(config: Config, { train, validation, test }: RunData): RunIdentity {
  return {
    config_sha256: createHash("sha256").update(JSON.stringify(config)).digest("hex"),
    data: { train: train.sha256, validation: validation?.sha256 ?? null, test: test?.sha256 ?? null },
    model: modelFingerprint(config.model),
  };
}

/** The identity as a comment in the configuration that a run writes: a complete run keeps no checkpoint that could tell it. */
export function madeFrom(identity: RunIdentity): string {
  return `made from ${JSON.stringify(identity)}`;
}

/** The identity that {@linkcode madeFrom} wrote; null where there is none. */
export function readMadeFrom(yaml: string): RunIdentity | null {
  const match = /^# made from (\{.*\})$/m.exec(yaml);
  return match ? JSON.parse(match[1]!) : null;
}

const PIECE = 1 << 16;
const PIECES = 128; // 8 MiB of a large file: a model of 13 GB takes milliseconds instead of half a minute

/**
 * A hash over the files that a model is loaded from: names, sizes and contents, where of a file beyond 8 MiB only 128 pieces
 * spread evenly over it count, the first and the last among them. Training changes every weight, so that any other model shows.
 * @throws {UserError} exit code 2, when a file cannot be read
 */
export function modelFingerprint(dir: string): string {
  try {
    const names = Array.from(Deno.readDirSync(dir), ({ name }) => name)
      .filter((name) => /^(config\.json|tokenizer.*|.*\.safetensors(\.index\.json)?)$/.test(name)).sort();
    const hash = createHash("sha256");
    for (const name of names) {
      // Opening a named pipe waits for somebody who writes into it.
      if (!Deno.statSync(join(dir, name)).isFile) throw new TypeError(`${name} is not a regular file`);
      using file = Deno.openSync(join(dir, name), { read: true });
      const { size } = file.statSync();
      hash.update(`${name}\0${size}\0`);
      hashPieces(hash, file, size);
    }
    return hash.digest("hex");
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    throw new UserError(`Cannot read the model ${dir}: ${reasonOf(error)}. Check the folder and its permissions`, 2);
  }
}

function hashPieces(hash: Hash, file: Deno.FsFile, size: number): void {
  const chunk = new Uint8Array(PIECE);
  const last = Math.max(0, size - PIECE);
  const count = Math.min(PIECES, Math.ceil(size / PIECE));
  for (let i = 0; i < count; i++) {
    file.seekSync(count === 1 ? 0 : Math.floor(last * i / (count - 1)), Deno.SeekMode.Start);
    for (let done = 0; done < PIECE;) {
      const n = file.readSync(chunk.subarray(0, PIECE - done));
      if (n === null) break;
      hash.update(chunk.subarray(0, n));
      done += n;
    }
  }
}
