/**
 * The weights of a Hugging Face model folder: one safetensors file, or shards behind an index.
 *
 * @module
 */

import { isAbsolute, normalize } from "node:path";
import { UserError } from "../errors.ts";
import { readRegularFile, reasonOf, within } from "../files.ts";
import { type Dtype, toFloat32 } from "./dtypes.ts";
import { openSafetensors, type SafetensorsFile, type TensorInfo } from "./safetensors.ts";

const SINGLE = "model.safetensors";
const INDEX = "model.safetensors.index.json";

/** All tensors of a model, wherever they lie. */
export class Checkpoint implements Disposable {
  /** Folder, as given. */
  readonly path: string;
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /** What is odd but no reason to refuse, one line each. */
  readonly warnings: readonly string[];
  readonly #files: Map<string, SafetensorsFile>;

  constructor(path: string, files: Map<string, SafetensorsFile>, tensors: Map<string, TensorInfo>, warnings: string[]) {
    this.path = path;
    this.#files = files;
    this.tensors = tensors;
    this.warnings = warnings;
  }

  /**
   * The description of a tensor that the model cannot do without.
   *
   * @param name Name of the tensor.
   * @param shape Shape that it must have.
   * @throws {UserError} When it is missing, has another shape, or is not stored as F32, BF16 or F16.
   */
  expect(name: string, shape: readonly number[]): TensorInfo & { dtype: "F32" | "BF16" | "F16" } {
    const info = this.#find(name);
    if (info.shape.length !== shape.length || info.shape.some((size, i) => size !== shape[i])) {
      throw new UserError(
        `Cannot load the tensor "${name}": its shape in ${info.file} is [${info.shape}], but config.json asks for [${shape}]. ` +
          `Use the config.json that belongs to these weights`,
        2,
      );
    }
    if (!isFloat(info.dtype)) {
      throw new UserError(
        `Cannot load the tensor "${name}": ${info.file} stores it as ${info.dtype}. Use a checkpoint in F32, BF16 or F16`,
        2,
      );
    }
    return { ...info, dtype: info.dtype };
  }

  /**
   * Fills `dst` with bytes of a tensor, starting at `byteOffset` of its data.
   *
   * @throws {UserError} When the tensor is missing or cannot be read.
   * @throws {RangeError} When the range does not lie inside the tensor.
   */
  read(name: string, dst: Uint8Array, byteOffset: number = 0): void {
    const info = this.#find(name);
    this.#files.get(info.file)!.read(name, dst, byteOffset);
  }

  /** A whole tensor widened to f32; for small ones, since it is copied. */
  readFloat32(name: string): Float32Array<ArrayBuffer> {
    const info = this.#find(name);
    const bytes = new Uint8Array(info.bytes);
    this.read(name, bytes);
    return toFloat32(info.dtype, bytes);
  }

  /** Closes all files. */
  [Symbol.dispose](): void {
    for (const file of this.#files.values()) file[Symbol.dispose]();
    this.#files.clear();
  }

  #find(name: string): TensorInfo {
    const info = this.tensors.get(name);
    if (info === undefined) {
      throw new UserError(
        `Cannot load the tensor "${name}": none of the ${this.tensors.size} tensors in ${this.path} has that name. ` +
          `Check that the weights belong to config.json`,
        2,
      );
    }
    return info;
  }
}

/**
 * Opens the weights in `dir`: `model.safetensors`, or else all shards that `model.safetensors.index.json` names. Headers
 * are checked, data is not read.
 *
 * @param dir Folder of the model.
 * @returns The checkpoint, which the caller owns: `using weights = openCheckpoint(dir)`.
 * @throws {UserError} When nothing is there, a shard or a tensor is missing, or a file breaks a rule of the format.
 */
export function openCheckpoint(dir: string): Checkpoint {
  const files = new Map<string, SafetensorsFile>();
  try {
    if (exists(within(dir, SINGLE))) {
      const file = openSafetensors(within(dir, SINGLE));
      files.set(file.path, file);
      return new Checkpoint(dir, files, new Map(file.tensors), []);
    }
    if (exists(within(dir, INDEX))) return openShards(dir, files);
  } catch (error) {
    for (const file of files.values()) file[Symbol.dispose]();
    throw error;
  }
  const found = exists(within(dir, "pytorch_model.bin")) || exists(within(dir, "pytorch_model.bin.index.json"));
  throw new UserError(
    `Cannot open the weights in ${dir}: it has neither ${SINGLE} nor ${INDEX}` +
      (found
        ? ", only pytorch_model.bin. Save the model with safe_serialization=True"
        : ". Name the folder of a Hugging Face model"),
    2,
  );
}

function openShards(dir: string, files: Map<string, SafetensorsFile>): Checkpoint {
  const path = within(dir, INDEX);
  const { weightMap, totalSize } = readIndex(path);
  const tensors = new Map<string, TensorInfo>();
  let total = 0;
  for (const [name, shard] of weightMap) {
    const shardPath = within(dir, insideFolder(path, name, shard));
    if (!files.has(shardPath)) {
      if (!exists(shardPath)) {
        throw new UserError(
          `Cannot open the weights in ${dir}: the shard ${shard}, which ${INDEX} names, is missing. Download it`,
          2,
        );
      }
      files.set(shardPath, openSafetensors(shardPath));
    }
    const info = files.get(shardPath)!.tensors.get(name);
    if (info === undefined) {
      throw new UserError(
        `Cannot load the tensor "${name}": ${INDEX} places it in ${shardPath}, which does not have it. Download the folder again`,
        2,
      );
    }
    tensors.set(name, info);
    total += info.bytes;
  }
  const warnings = totalSize === null || totalSize === total
    ? []
    : [`${path} announces total_size ${totalSize}, but its tensors have ${total} bytes`];
  return new Checkpoint(dir, files, tensors, warnings);
}

function readIndex(path: string): { weightMap: [string, string][]; totalSize: number | null } {
  const bad = (what: string): never => {
    throw new UserError(`Cannot read ${path}: ${what}. Download it again`, 2);
  };
  let root: unknown;
  try {
    root = JSON.parse(readRegularFile(path));
  } catch (error) {
    bad(error instanceof Error ? reasonOf(error) : String(error));
  }
  if (!isObject(root)) return bad("it is not a JSON object");
  const { weight_map: map, metadata } = root;
  if (!isObject(map)) return bad("it has no object weight_map");
  const weightMap = Object.entries(map).map(([name, shard]): [string, string] =>
    typeof shard === "string"
      ? [name, shard]
      : bad(`weight_map gives ${JSON.stringify(shard)} for "${name}" instead of a file name`)
  );
  if (weightMap.length === 0) bad("weight_map is empty");
  if (metadata !== undefined && !isObject(metadata)) return bad("metadata is not an object");
  const totalSize = metadata?.total_size ?? null;
  // Written as a float by some converters.
  if (totalSize !== null && (typeof totalSize !== "number" || !(totalSize >= 0))) {
    return bad(`metadata.total_size is ${JSON.stringify(totalSize)} instead of a number of bytes`);
  }
  return { weightMap, totalSize };
}

/** Refuses a shard outside the folder: an index from the internet must not choose which files are read. */
function insideFolder(index: string, name: string, shard: string): string {
  const path = normalize(shard);
  if (shard === "" || shard.includes("\0") || isAbsolute(path) || path === "." || path === ".." || path.startsWith("../")) {
    throw new UserError(
      `Cannot read ${index}: weight_map places "${name}" in ${
        JSON.stringify(shard)
      }, outside its folder. Do not trust this checkpoint`,
      2,
    );
  }
  return path;
}

function exists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) return false;
    throw new UserError(`Cannot look at ${path}: ${error instanceof Error ? reasonOf(error) : error}. Check its permissions`, 2);
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isFloat(dtype: Dtype): dtype is "F32" | "BF16" | "F16" {
  return dtype === "F32" || dtype === "BF16" || dtype === "F16";
}
