/**
 * The header of a safetensors file, with every rule of the format.
 *
 * A file is: header length N (u64, little-endian), N bytes of JSON, the data. The JSON maps each tensor's name to
 * `{"dtype", "shape", "data_offsets": [begin, end]}`, offsets counted from the end of the header, and `__metadata__` to an
 * object of strings. See https://github.com/huggingface/safetensors ("Format").
 *
 * @module
 */

import { UserError } from "../errors.ts";
import { type Dtype, DTYPE_BITS, isDtype } from "./dtypes.ts";
import { NumberLiteral, parseStrictJson, quote, type StrictJson, StrictJsonError } from "./json.ts";

/** The library refuses longer headers, so that a corrupt length cannot ask for all memory. */
export const MAX_HEADER_BYTES = 100_000_000;

/** A tensor as the header of its file describes it. */
export interface TensorInfo {
  readonly name: string;
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  /** Size of the data. */
  readonly bytes: number;
  /** Path of the file that holds it. */
  readonly file: string;
  /** Where its data starts, counted from the start of the file. */
  readonly offset: number;
}

/** What a header says. */
export interface Header {
  /** In the order of the data. */
  readonly tensors: Map<string, TensorInfo>;
  /** The strings of `__metadata__`. */
  readonly metadata: Record<string, string>;
}

const ADVICE = "The file is damaged or not safetensors; download or write it again";

/** An error about the file as a whole or one of its tensors, in the project's grammar. */
function refuse(path: string, what: string): never {
  throw new UserError(`Cannot read ${path}: ${what}. ${ADVICE}`, 2);
}

/**
 * Checks the first 8 bytes against the size of the file.
 *
 * @param prefix The first 8 bytes, fewer when the file is shorter.
 * @param fileBytes Size of the file.
 * @returns Bytes of the header.
 * @throws {UserError} When a header of that length cannot be in the file.
 */
export function headerLength(path: string, prefix: Uint8Array, fileBytes: number): number {
  if (prefix.length < 8) refuse(path, `it has ${prefix.length} bytes, fewer than the 8 of the header length`);
  const length = new DataView(prefix.buffer, prefix.byteOffset, 8).getBigUint64(0, true);
  if (length > BigInt(MAX_HEADER_BYTES)) {
    refuse(path, `its header length is ${length} bytes, more than the limit of ${MAX_HEADER_BYTES}`);
  }
  if (length > BigInt(fileBytes - 8)) refuse(path, `its header length is ${length} bytes, but only ${fileBytes - 8} follow`);
  if (length < 2n) refuse(path, `its header length is ${length}, too short for "{}"`);
  return Number(length);
}

/**
 * Reads the JSON of a header.
 *
 * @param path Path of the file, for messages and `TensorInfo.file`.
 * @param header The header's bytes, without the 8 bytes of length.
 * @param fileBytes Size of the file.
 * @returns Tensors in the order of their data, and metadata.
 * @throws {UserError} When any rule of the format is broken.
 */
export function parseHeader(path: string, header: Uint8Array, fileBytes: number): Header {
  const dataStart = 8 + header.length;
  const root = parseRoot(path, header);
  const tensors: TensorInfo[] = [];
  let metadata: Record<string, string> = {};
  for (const [name, value] of root) {
    if (name === "__metadata__") metadata = parseMetadata(path, value);
    else tensors.push(parseTensor(path, name, value, dataStart));
  }
  // Stable: tensors of 0 bytes keep their place before the one that starts where they do.
  tensors.sort((a, b) => a.offset - b.offset || a.bytes - b.bytes);
  checkContiguous(path, tensors, dataStart, fileBytes);
  return { tensors: new Map(tensors.map((t) => [t.name, t])), metadata };
}

function parseRoot(path: string, header: Uint8Array): Map<string, StrictJson> {
  if (header[0] !== 0x7b) {
    refuse(path, `its header starts with byte 0x${header[0]!.toString(16).padStart(2, "0")} instead of "{"`);
  }
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(header);
  } catch {
    refuse(path, "its header is not valid UTF-8");
  }
  try {
    // It starts with "{", so a value of another kind cannot come out.
    return parseStrictJson(text) as Map<string, StrictJson>;
  } catch (error) {
    if (!(error instanceof StrictJsonError)) throw error;
    refuse(path, `its header is not valid JSON at character ${error.offset}: ${error.message}`);
  }
}

function parseMetadata(path: string, value: StrictJson): Record<string, string> {
  if (!(value instanceof Map)) refuse(path, `__metadata__ is ${describe(value)} instead of an object of strings`);
  for (const [key, entry] of value) {
    if (typeof entry !== "string") refuse(path, `__metadata__ has ${describe(entry)} under ${quote(key)} instead of a string`);
  }
  return Object.fromEntries(value) as Record<string, string>;
}

function parseTensor(path: string, name: string, value: StrictJson, dataStart: number): TensorInfo {
  const where = `tensor ${quote(name)}`;
  if (!(value instanceof Map)) refuse(path, `${where} is ${describe(value)} instead of an object`);
  const dtype = value.get("dtype");
  if (typeof dtype !== "string" || !isDtype(dtype)) {
    refuse(path, `${where} has the dtype ${describe(dtype)}, which the format does not know`);
  }
  const shape = naturals(path, `${where}, shape`, value.get("shape"));
  const offsets = naturals(path, `${where}, data_offsets`, value.get("data_offsets"));
  const [begin, end] = offsets;
  if (begin === undefined || end === undefined || offsets.length !== 2) {
    refuse(path, `${where} has ${offsets.length} data_offsets instead of [begin, end]`);
  }
  if (begin > end) refuse(path, `${where} has data_offsets [${begin}, ${end}], which end before they begin`);
  const bytes = tensorBytes(path, where, dtype, shape);
  if (end - begin !== bytes) {
    refuse(
      path,
      `${where} of ${dtype} [${shape}] needs ${bytes} bytes, but its data_offsets [${begin}, ${end}] hold ${end - begin}`,
    );
  }
  return { name, dtype, shape, bytes, file: path, offset: dataStart + begin };
}

function naturals(path: string, where: string, value: StrictJson | undefined): number[] {
  if (!Array.isArray(value)) refuse(path, `${where} is ${describe(value)} instead of a list`);
  return value.map((entry) => {
    if (typeof entry !== "number" || entry < 0) {
      refuse(path, `${where} has ${describe(entry)} instead of an integer in 0..2^53-1`);
    }
    return entry;
  });
}

/** Elements × bits, refused beyond 2^53 - 1 bits: exact, because each product is checked before the next. */
function tensorBytes(path: string, where: string, dtype: Dtype, shape: readonly number[]): number {
  // Left to right, as the library does: [2^50, 2^50, 0] overflows, though it would be empty.
  let bits = 1;
  for (const size of [...shape, DTYPE_BITS[dtype]]) {
    bits *= size;
    if (!Number.isSafeInteger(bits)) refuse(path, `${where} of ${dtype} [${shape}] is larger than 2^53 bits`);
  }
  if (bits % 8 !== 0) refuse(path, `${where} of ${dtype} [${shape}] has ${bits} bits, which fill no whole number of bytes`);
  return bits / 8;
}

function checkContiguous(path: string, tensors: readonly TensorInfo[], dataStart: number, fileBytes: number): void {
  let end = dataStart;
  let previous = "the header";
  for (const t of tensors) {
    const where = `tensor ${quote(t.name)}`;
    if (t.offset !== end) {
      const kind = t.offset > end ? `leaves a hole of ${t.offset - end} bytes` : `overlaps by ${end - t.offset} bytes`;
      refuse(path, `${where} at offset ${t.offset - dataStart} ${kind} after ${previous}`);
    }
    end += t.bytes;
    previous = where;
  }
  if (end > fileBytes) refuse(path, `its tensors end at byte ${end}, but the file ends at ${fileBytes} (truncated)`);
  if (end < fileBytes) refuse(path, `${fileBytes - end} bytes follow the last tensor, which ends at byte ${end}`);
}

function describe(value: StrictJson | undefined): string {
  if (value === undefined) return "missing";
  if (value instanceof NumberLiteral) return value.text.length > 40 ? `${value.text.slice(0, 40)}…` : value.text;
  if (value instanceof Map) return "an object";
  if (Array.isArray(value)) return "a list";
  return typeof value === "string" ? quote(value) : String(value);
}
