/**
 * One safetensors file: opened, checked whole, and read in pieces; or written.
 *
 * @module
 */

import { UserError } from "../errors.ts";
import { refuseLfsPointer, unreadable } from "../files.ts";
import { writeAll, writeFileAtomic } from "./atomic.ts";
import { type Dtype, DTYPE_BITS, DTYPE_ORDER } from "./dtypes.ts";
import { headerLength, parseHeader, type TensorInfo } from "./header.ts";

export type { Dtype } from "./dtypes.ts";
export type { TensorInfo } from "./header.ts";

// One readSync moves at most this much, so that a large tensor never needs a second copy of itself inside the runtime.
const PIECE_BYTES = 8 << 20;

/** An open file whose header has been checked. */
export class SafetensorsFile implements Disposable {
  /** Path, as given. */
  readonly path: string;
  /** By name, in the order of the data. */
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /** The strings of `__metadata__`. */
  readonly metadata: Readonly<Record<string, string>>;
  readonly #file: Deno.FsFile;

  private constructor(path: string, file: Deno.FsFile, tensors: Map<string, TensorInfo>, metadata: Record<string, string>) {
    this.path = path;
    this.#file = file;
    this.tensors = tensors;
    this.metadata = metadata;
  }

  /** See {@linkcode openSafetensors}. */
  static open(path: string): SafetensorsFile {
    const file = openFile(path);
    try {
      const { size } = file.statSync();
      refuseLfsPointer(path, readUpTo(file, 0, 64));
      const prefix = readUpTo(file, 0, 8);
      const header = readUpTo(file, 8, headerLength(path, prefix, size));
      const { tensors, metadata } = parseHeader(path, header, size);
      return new SafetensorsFile(path, file, tensors, metadata);
    } catch (error) {
      file.close();
      throw error;
    }
  }

  /**
   * Fills `dst` with bytes of a tensor.
   *
   * @param name Name of the tensor.
   * @param dst As many bytes as are wanted.
   * @param byteOffset Where in the tensor's data to start.
   * @throws {UserError} When the tensor is missing or the file has shrunk since it was opened.
   * @throws {RangeError} When the range does not lie inside the tensor.
   */
  read(name: string, dst: Uint8Array, byteOffset: number = 0): void {
    const info = this.tensors.get(name);
    if (info === undefined) throw new UserError(`Cannot read the tensor "${name}": ${this.path} has no tensor of that name`, 2);
    if (byteOffset < 0 || byteOffset + dst.length > info.bytes) {
      const range = `${byteOffset}..${byteOffset + dst.length}`;
      throw new RangeError(`Cannot read the tensor "${name}": bytes ${range} do not lie in its ${info.bytes} (${this.path})`);
    }
    const done = readInto(this.#file, info.offset + byteOffset, dst);
    if (done < dst.length) {
      throw new UserError(`Cannot read the tensor "${name}": ${this.path} has become shorter. Download or write it again`, 1);
    }
  }

  /** Closes the file. */
  [Symbol.dispose](): void {
    this.#file.close();
  }
}

/**
 * Opens a safetensors file and checks all of its header; no tensor data is read.
 *
 * @param path Path of the file.
 * @returns The file, which the caller owns: `using file = openSafetensors(path)`.
 * @throws {UserError} When the file is missing or breaks a rule of the format; the message names file, tensor and value.
 */
export function openSafetensors(path: string): SafetensorsFile {
  return SafetensorsFile.open(path);
}

/** A tensor to be written. */
export interface TensorData {
  readonly name: string;
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  /** Elements, little-endian, dense. */
  readonly data: Uint8Array;
}

/**
 * Writes a safetensors file that is complete or absent, byte for byte as the safetensors library would: tensors by element
 * type (widest first), then by name; the header padded with spaces so that the data starts at a multiple of 8.
 *
 * @param path Final path; its folder must exist.
 * @param tensors Names must differ, sizes must fit dtype and shape.
 * @param metadata Strings for `__metadata__`, written in the order of their keys.
 * @throws {UserError} When the file cannot be written.
 * @throws {RangeError} When a size does not fit, or a name appears twice.
 */
export function writeSafetensors(path: string, tensors: readonly TensorData[], metadata: Record<string, string> = {}): void {
  const sorted = [...tensors].sort((a, b) =>
    DTYPE_ORDER.get(b.dtype)! - DTYPE_ORDER.get(a.dtype)! || compareUtf8(a.name, b.name)
  );
  const header = encodeHeader(path, sorted, metadata);
  writeFileAtomic(path, (file) => {
    const prefix = new Uint8Array(8);
    new DataView(prefix.buffer).setBigUint64(0, BigInt(header.length), true);
    writeAll(file, prefix);
    writeAll(file, header);
    for (const t of sorted) writeAll(file, t.data);
  });
}

function encodeHeader(path: string, tensors: readonly TensorData[], metadata: Record<string, string>): Uint8Array {
  const entries: string[] = [];
  const keys = Object.keys(metadata).sort();
  if (keys.length > 0) {
    entries.push(`"__metadata__":{${keys.map((key) => `${JSON.stringify(key)}:${JSON.stringify(metadata[key])}`).join(",")}}`);
  }
  const names = new Set<string>(["__metadata__"]);
  let offset = 0;
  for (const { name, dtype, shape, data } of tensors) {
    const bytes = shape.reduce((product, size) => product * size, DTYPE_BITS[dtype] / 8);
    if (data.length !== bytes) {
      throw new RangeError(
        `Cannot write the tensor "${name}" to ${path}: ${dtype} [${shape}] needs ${bytes} bytes, not ${data.length}`,
      );
    }
    if (names.has(name)) throw new RangeError(`Cannot write the tensor "${name}" to ${path}: the name is taken`);
    names.add(name);
    const end = offset + bytes;
    entries.push(`${JSON.stringify(name)}:{"dtype":"${dtype}","shape":[${shape.join(",")}],"data_offsets":[${offset},${end}]}`);
    offset = end;
  }
  const json = new TextEncoder().encode(`{${entries.join(",")}}`);
  const padded = new Uint8Array(Math.ceil(json.length / 8) * 8).fill(0x20);
  padded.set(json);
  return padded;
}

/** Order of Rust strings (UTF-8 bytes, which is code points); JavaScript's own order is by UTF-16 units. */
function compareUtf8(a: string, b: string): number {
  const x = Array.from(a);
  const y = Array.from(b);
  const n = Math.min(x.length, y.length);
  for (let i = 0; i < n; i++) {
    const difference = x[i]!.codePointAt(0)! - y[i]!.codePointAt(0)!;
    if (difference !== 0) return difference;
  }
  return x.length - y.length;
}

function openFile(path: string): Deno.FsFile {
  try {
    // Looked at before it is opened: opening a named pipe waits for somebody who writes into it.
    if (!Deno.statSync(path).isFile) {
      throw new UserError(`Cannot open ${path}: it is not a regular file. Name a .safetensors file`, 2);
    }
    return Deno.openSync(path, { read: true });
  } catch (error) {
    if (error instanceof UserError) throw error;
    throw new UserError(`Cannot open ${path}: ${unreadable(error, "Check the path")}`, 2);
  }
}

/** Reads until `dst` is full or the file ends; returns the bytes read. */
function readInto(file: Deno.FsFile, offset: number, dst: Uint8Array): number {
  file.seekSync(offset, Deno.SeekMode.Start);
  let done = 0;
  while (done < dst.length) {
    const n = file.readSync(dst.subarray(done, Math.min(done + PIECE_BYTES, dst.length)));
    if (n === null) break;
    done += n;
  }
  return done;
}

function readUpTo(file: Deno.FsFile, offset: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  return bytes.subarray(0, readInto(file, offset, bytes));
}
