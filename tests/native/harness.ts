/**
 * What the tests of native operators share: a device with memory that is freed at the end of a test, fixtures made with
 * PyTorch (tests/oracle/operators.py), and a comparison with a stated tolerance.
 */
import { assert } from "@std/assert";
import { type Device, type Dtype, DTYPE_BYTES, dtypeCode, type Memory, Tensor } from "../../ffi/device.ts";
import { Native } from "../../ffi/native.ts";
import { download, type Groups, Pieces, upload } from "../../ffi/operators.ts";
import { toFloat32 } from "../../lib/tensor/dtypes.ts";
import { openSafetensors } from "../../lib/tensor/safetensors.ts";
import { openCpu } from "./instructions.ts";

export type Floats = Float32Array<ArrayBuffer>;

// The library stays open for the whole process, so it is opened before the first test looks for leaks.
Native.load("cpu");

/** A device and the memory of one test. */
export class Workbench implements Disposable {
  readonly dev: Device;
  readonly #memory: Memory[] = [];

  constructor(threads = 2) {
    this.dev = openCpu(threads);
  }

  #tensor(rows: number, cols: number, ld: number, dtype: Dtype): Tensor {
    const memory = this.dev.alloc(Math.max(1, rows * ld) * DTYPE_BYTES[dtype]);
    this.#memory.push(memory);
    return new Tensor(memory, 0, rows, cols, dtype, ld);
  }

  /** Values [rows, cols] on the device. Columns between cols and ld hold NaN, which poisons whatever reads them. */
  put(values: ArrayLike<number>, rows: number, cols: number, { ld = cols, dtype = "f32" as "f32" | "bf16" } = {}): Tensor {
    const tensor = this.#tensor(rows, cols, ld, dtype);
    const padded = new Float32Array(rows * ld).fill(NaN);
    for (let i = 0; i < rows; i++) for (let j = 0; j < cols; j++) padded[i * ld + j] = values[i * cols + j]!;
    const { symbols, ctx } = this.dev;
    const bytes = new Uint8Array(padded.buffer);
    this.dev.check(symbols.ml_upload_2d(ctx, rows, ld, bytes, 0, tensor.pointer, dtypeCode(dtype), ld));
    return tensor;
  }

  /** Token ids, offsets, labels. */
  ints(values: ArrayLike<number>): Tensor {
    const tensor = this.#tensor(1, values.length, values.length, "i32");
    upload(this.dev, tensor, Int32Array.from(values));
    return tensor;
  }

  /** Room for a result [rows, cols], full of NaN: what an operator forgets to write is found. */
  out(rows: number, cols: number, ld = cols): Tensor {
    return this.put(new Float32Array(rows * cols).fill(NaN), rows, cols, { ld });
  }

  /** Room for n doubles. */
  doubles(n: number): Tensor {
    return this.#tensor(1, n, n, "f64");
  }

  /** The values of a tensor, dense [rows, cols]. */
  read(tensor: Tensor): Floats {
    const { rows, cols, ld } = tensor;
    const all = new Float32Array(rows === 0 ? 0 : (rows - 1) * ld + cols);
    download(this.dev, all, tensor);
    const values = new Float32Array(rows * cols);
    for (let i = 0; i < rows; i++) values.set(all.subarray(i * ld, i * ld + cols), i * cols);
    return values;
  }

  /** Asserts that columns cols .. ld - 1 still hold the NaN of `put` or `out`. The last row has none if nothing follows. */
  paddingUntouched(tensor: Tensor): void {
    const { rows, cols, ld } = tensor;
    if (ld > cols) {
      assert(this.read(tensor.columns(cols, ld - cols)).every(Number.isNaN), `row padding of [${rows},${cols}] was written`);
    }
  }

  readInts(tensor: Tensor): Int32Array {
    const values = new Int32Array(tensor.cols);
    download(this.dev, values, tensor);
    return values;
  }

  readDoubles(tensor: Tensor): Float64Array {
    const values = new Float64Array(tensor.cols);
    download(this.dev, values, tensor);
    return values;
  }

  [Symbol.dispose](): void {
    for (const memory of this.#memory) memory.close();
    this.dev.close();
  }
}

/** The groups of a linear layer from [[d_out, r], …]. */
export function makeGroups(table: readonly (readonly [number, number])[], scales: readonly number[]): Groups {
  return { count: table.length, table: Int32Array.from(table.flat()), scales: Float32Array.from(scales) };
}

/**
 * Asserts |actual - expected| <= tolerance · (|expected| + rms(expected)) for every element. The second term is the size of a
 * typical element: sums that cancel to almost nothing cannot be more exact than their terms.
 */
export function assertClose(actual: ArrayLike<number>, expected: ArrayLike<number>, tolerance: number, what: string): void {
  assert(actual.length === expected.length, `${what}: ${actual.length} values, expected ${expected.length}`);
  let squares = 0;
  for (let i = 0; i < expected.length; i++) squares += expected[i]! ** 2;
  const typical = Math.sqrt(squares / Math.max(1, expected.length));
  for (let i = 0; i < expected.length; i++) {
    const [a, e] = [actual[i]!, expected[i]!];
    const good = a === e || Math.abs(a - e) <= tolerance * (Math.abs(e) + typical);
    assert(good, `${what}[${i}]: ${a}, expected ${e} within ${tolerance} (typical size ${typical})`);
  }
}

/**
 * What a product may differ by. vdpbf16ps multiplies bf16 by bf16, so that beside bf16 weights the activations are rounded to
 * 8 bits, too; everywhere else bf16 weights are widened and nothing is lost.
 */
export function productTolerance(dev: Device, weights: "f32" | "bf16", exact: number): number {
  return weights === "bf16" && dev.name.includes("avx512bf16") ? 2e-2 : exact;
}

/** The columns of x in pieces that begin at `firsts`, multiples of 64. */
export const inPieces = (x: Tensor, firsts: readonly number[]): Pieces =>
  new Pieces(firsts.map((first, i) => x.columns(first, (firsts[i + 1] ?? x.cols) - first)));

/** Asserts that two arrays hold the same bits (NaN equals NaN). */
export function assertSameBits(actual: Floats, expected: Floats, what: string): void {
  const [a, e] = [new Uint32Array(actual.buffer), new Uint32Array(expected.buffer)];
  const at = a.findIndex((bits, i) => bits !== e[i]);
  assert(at < 0 && a.length === e.length, `${what}: first difference at ${at}, ${actual[at]} and ${expected[at]}`);
}

/** Repeatable normal numbers (Box-Muller on a 32-bit xorshift). */
export function normals(n: number, seed: number): Floats {
  let state = (seed * 2654435761 + 1) >>> 0 || 1;
  const uniform = () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state = (state ^ (state << 5)) >>> 0;
    return (state + 1) / 4294967297;
  };
  return Float32Array.from({ length: n }, () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()));
}

// ---- fixtures ----

/** One case of tests/fixtures/operators.safetensors: its scalars, and its tensors by name. */
export interface Case {
  readonly name: string;
  readonly op: string;
  /** A scalar of the case. */
  number(key: string): number;
  /** Any other value of the case. */
  value<T>(key: string): T;
  /** A tensor, widened to f32. */
  f32(name: string): Floats;
  f64(name: string): Float64Array;
  i32(name: string): Int32Array;
  has(name: string): boolean;
}

/** All cases of one operator. */
export function fixtureCases(op: string): Case[] {
  using file = openSafetensors(new URL("../fixtures/operators.safetensors", import.meta.url).pathname);
  const loaded = new Map<string, { dtype: string; bytes: Uint8Array<ArrayBuffer> }>();
  const list = JSON.parse(file.metadata["cases"]!) as ({ name: string; op: string } & Record<string, unknown>)[];
  const cases = list.filter((each) => each.op === op);
  assert(cases.length > 0, `no fixture for ${op}`);
  for (const [name, info] of file.tensors) {
    if (!cases.some((each) => name.startsWith(`${each.name}/`))) continue;
    const bytes = new Uint8Array(info.bytes);
    file.read(name, bytes);
    loaded.set(name, { dtype: info.dtype, bytes });
  }
  return cases.map((each) => {
    const find = (tensor: string, dtypes: string[]) => {
      const entry = loaded.get(`${each.name}/${tensor}`);
      assert(entry && dtypes.includes(entry.dtype), `fixture ${each.name}/${tensor} is ${entry?.dtype}, wanted ${dtypes}`);
      return entry;
    };
    return {
      name: each.name,
      op,
      number: (key) => {
        assert(typeof each[key] === "number", `fixture ${each.name} has no number ${key}`);
        return each[key];
      },
      value: <T>(key: string) => each[key] as T,
      f32: (tensor) => {
        const { dtype, bytes } = find(tensor, ["F32", "F16", "BF16"]);
        return toFloat32(dtype as "F32" | "F16" | "BF16", bytes);
      },
      f64: (tensor) => new Float64Array(find(tensor, ["F64"]).bytes.buffer),
      i32: (tensor) => new Int32Array(find(tensor, ["I32"]).bytes.buffer),
      has: (tensor) => loaded.has(`${each.name}/${tensor}`),
    };
  });
}
