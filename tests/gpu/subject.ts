/**
 * What the GPU tests of single operators share: a device under test, memory whose paddings are watched, and one comparison: an
 * operator runs on the device and on the CPU library with the same bf16 numbers.
 *
 * With METALORA_TEST_BACKEND=cpu the CPU library stands in for the GPU, so that the tests themselves can be checked on any
 * machine; what a GPU would store as bf16 is then rounded where it would be stored. Without it and without a GPU they are skipped.
 */
import { assert } from "@std/assert";
import { Device, type Dtype, DTYPE_BYTES, type Memory, type Storage, Tensor } from "../../ffi/device.ts";
import { download, upload } from "../../ffi/operators.ts";
import { chooseDevice } from "../../lib/devices.ts";
import { toFloat32 } from "../../lib/tensor/dtypes.ts";
import type { Floats } from "../native/harness.ts";

/** The CPU library stands in for the GPU. */
export const standIn = Deno.env.get("METALORA_TEST_BACKEND") === "cpu";
/** There is something to test. */
export const available = standIn || chooseDevice(null).backend === "cuda";
/** The device that these tests are about. */
export const BACKEND = standIn ? "cpu" : "cuda";
if (!available) console.log("skipped: no GPU here that can be used");

/** The largest difference of each result in the test that runs, and what it may be. */
const largest = new Map<string, { far: number; allowed: number }>();

function remember(name: string, far: number, allowed: number): void {
  const known = largest.get(name);
  if (far > 0 && !(known && known.far / known.allowed >= far / allowed)) largest.set(name, { far, allowed });
}

// METALORA_TEST_PART="1 4": of a file's tests the second, the sixth, and so on (run.sh).
const [part, parts] = (Deno.env.get("METALORA_TEST_PART") ?? "0 1").split(" ").map(Number) as [number, number];
let turns = 0;

/** A test that needs the device. It ends with the largest difference of each result that was compared. */
export function gpuTest(name: string, fn: () => void): void {
  if (turns++ % parts !== part) return;
  Deno.test({
    name,
    ignore: !available,
    fn() {
      largest.clear();
      fn();
      const all = [...largest].map(([result, { far, allowed }]) => `${result} ${far.toExponential(1)} of ${allowed}`);
      if (all.length > 0) console.log(`  largest differences: ${all.join(", ")}`);
    },
  });
}

/** bf16 results: 2^-9 for the result and as much for intermediate values. */
export const ROUNDED = 1e-2;
/** Fixtures were computed from numbers of 11 bits, bf16 has 8. */
export const FROM_ROUNDED = 2e-2;

/** NaNs that no instruction makes: what is there before an operator runs, and must still be there where it may not write. */
const UNTOUCHED = { f32: 0x7fa5a5a5, bf16: 0x7fa5 } as const;

/** Rounds every number to bf16, to nearest, ties to even. */
export function asBf16(values: ArrayLike<number>): Floats {
  const rounded = Float32Array.from(values), bits = new Uint32Array(rounded.buffer);
  for (let i = 0; i < bits.length; i++) {
    const u = bits[i]!;
    bits[i] = (u & 0x7fffffff) > 0x7f800000 ? 0x7fc00000 : (u + 0x7fff + (u >>> 16 & 1)) & 0xffff0000;
  }
  return rounded;
}

/** A device with memory that is freed at the end. Activations are bf16 on CUDA, and the same numbers in f32 on the CPU. */
export class Subject implements Disposable {
  readonly dev: Device;
  /** The type of activations. */
  readonly dtype: "f32" | "bf16";
  readonly #memory: Memory[] = [];
  readonly #padded: { tensor: Tensor; elements: number }[] = [];
  readonly #activations = new Set<Storage>();

  private constructor(backend: "cpu" | "cuda", readonly rounding: boolean) {
    this.dev = Device.open({ backend, threads: backend === "cpu" ? 2 : 0 });
    this.dtype = this.dev.activationDtype;
  }

  /** The device under test; `arch` takes the kernels of an older chip. */
  static underTest(arch: string | null = null): Subject {
    if (arch === null) return new Subject(BACKEND, standIn);
    const before = Deno.env.get("METALORA_ARCH");
    Deno.env.set("METALORA_ARCH", arch);
    try {
      return new Subject(BACKEND, standIn);
    } finally {
      if (before === undefined) Deno.env.delete("METALORA_ARCH");
      else Deno.env.set("METALORA_ARCH", before);
    }
  }

  /** The CPU library in full precision: what the device is compared with. */
  static reference(): Subject {
    return new Subject("cpu", false);
  }

  #tensor(rows: number, cols: number, ld: number, dtype: Dtype): Tensor {
    const memory = this.dev.alloc(Math.max(1, rows * ld) * DTYPE_BYTES[dtype]);
    this.#memory.push(memory);
    return new Tensor(memory, 0, rows, cols, dtype, ld);
  }

  /** Memory [rows, ld] with `values` in the first columns and NaN wherever there is none. The NaNs behind `cols` must stay. */
  #put(values: ArrayLike<number> | null, rows: number, cols: number, ld: number, dtype: "f32" | "bf16"): Tensor {
    const tensor = this.#tensor(rows, cols, ld, dtype);
    const bits = dtype === "f32" ? new Uint32Array(rows * ld) : new Uint16Array(rows * ld);
    bits.fill(UNTOUCHED[dtype]);
    if (values) {
      assert(values.length === rows * cols, `${values.length} values for [${rows},${cols}]`);
      const own = new Uint32Array(Float32Array.from(values).buffer);
      for (let i = 0; i < rows; i++) {
        for (let j = 0; j < cols; j++) bits[i * ld + j] = dtype === "f32" ? own[i * cols + j]! : own[i * cols + j]! >>> 16;
      }
    }
    upload(this.dev, tensor, new Uint8Array(bits.buffer));
    if (ld > cols) this.#padded.push({ tensor, elements: ld - cols });
    return tensor;
  }

  /** Activations, rounded to bf16. */
  act(values: ArrayLike<number>, rows: number, cols: number, ld = cols): Tensor {
    const tensor = this.#put(asBf16(values), rows, cols, ld, this.dtype);
    this.#activations.add(tensor.storage);
    return tensor;
  }

  /** Room for activations; NaN until an operator writes. */
  room(rows: number, cols: number, ld = cols): Tensor {
    const tensor = this.#put(null, rows, cols, ld, this.dtype);
    this.#activations.add(tensor.storage);
    return tensor;
  }

  /** Frozen weights: bf16 on every device. `values` null: NaN. */
  weight(values: ArrayLike<number> | null, rows: number, cols: number, ld = cols): Tensor {
    return this.#put(values && asBf16(values), rows, cols, ld, "bf16");
  }

  /** Numbers that are f32 on every device. `values` null: NaN. */
  f32(values: ArrayLike<number> | null, rows: number, cols: number, ld = cols): Tensor {
    return this.#put(values, rows, cols, ld, "f32");
  }

  /** Ids, offsets, labels. */
  ints(values: ArrayLike<number>): Tensor {
    const tensor = this.#tensor(1, values.length, values.length, "i32");
    upload(this.dev, tensor, Int32Array.from(values));
    return tensor;
  }

  /** Room for n doubles. */
  doubles(n: number): Tensor {
    return this.#tensor(1, n, n, "f64");
  }

  /** The values of a tensor, dense [rows, cols]; activations of a stand-in as a GPU would have stored them. */
  read(tensor: Tensor): Floats {
    const { rows, cols, ld, dtype } = tensor;
    const size = DTYPE_BYTES[dtype];
    const bytes = new Uint8Array(((rows - 1) * ld + cols) * size);
    download(this.dev, bytes, tensor);
    const all = dtype === "bf16" ? toFloat32("BF16", bytes) : new Float32Array(bytes.buffer);
    const values = new Float32Array(rows * cols);
    for (let i = 0; i < rows; i++) values.set(all.subarray(i * ld, i * ld + cols), i * cols);
    return this.rounding && this.#activations.has(tensor.storage) ? asBf16(values) : values;
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

  /** In a stand-in, rounds activations that the next operator reads to what a GPU would have stored. */
  settle(...tensors: Tensor[]): void {
    if (!this.rounding) return;
    for (const tensor of tensors) {
      const { rows, cols, ld } = tensor;
      const all = new Float32Array((rows - 1) * ld + cols), values = this.read(tensor);
      download(this.dev, all, tensor);
      for (let i = 0; i < rows; i++) all.set(values.subarray(i * cols, (i + 1) * cols), i * ld);
      upload(this.dev, tensor, all);
    }
  }

  /** Asserts that no operator has written behind the columns of any matrix. */
  requirePaddings(): void {
    this.dev.synchronize();
    for (const { tensor, elements } of this.#padded) {
      const { rows, cols, ld, dtype } = tensor;
      const bytes = new Uint8Array(rows * ld * DTYPE_BYTES[dtype]);
      download(this.dev, bytes, tensor);
      const bits = dtype === "f32" ? new Uint32Array(bytes.buffer) : new Uint16Array(bytes.buffer);
      const wanted = UNTOUCHED[dtype as "f32" | "bf16"];
      for (let i = 0; i < rows; i++) {
        for (let j = cols; j < cols + elements; j++) {
          const found = bits[i * ld + j]!;
          assert(found === wanted, `row ${i}, column ${j} of the padding of ${tensor.shape} was written: ${found.toString(16)}`);
        }
      }
    }
  }

  [Symbol.dispose](): void {
    for (const memory of this.#memory) memory.close();
    this.dev.close();
  }
}

/** What an operator gives, by name. */
export type Results = Record<string, Float32Array | Float64Array | Int32Array>;

/** How far |actual - expected| / (|expected| + rms(expected)) may go for any element; `norm`: how far ‖a − e‖ / ‖e‖ may. */
export interface Tolerance {
  readonly element: number;
  readonly norm?: number;
}

/**
 * Asserts that results are near enough, infinities equal. What is nearest to its limit is told when the test ends.
 */
function assertNear(
  actual: Results[string],
  expected: Results[string],
  given: number | Tolerance,
  { what, name }: { what: string; name: string },
): void {
  const tolerance = typeof given === "number" ? { element: given } : given;
  assert(actual.length === expected.length, `${what}: ${name}: ${actual.length} values, expected ${expected.length}`);
  let squares = 0, finite = 0, difference = 0, worst = 0;
  for (const value of expected) if (Number.isFinite(value)) [squares, finite] = [squares + value ** 2, finite + 1];
  const typical = Math.sqrt(squares / Math.max(1, finite));
  for (let i = 0; i < expected.length; i++) {
    const [a, e] = [actual[i]!, expected[i]!];
    if (a === e) continue;
    assert(Number.isFinite(a) && Number.isFinite(e), `${what}: ${name}[${i}]: ${a}, expected ${e}`);
    difference += (a - e) ** 2;
    const far = Math.abs(a - e) / (Math.abs(e) + typical);
    assert(
      far <= tolerance.element,
      `${what}: ${name}[${i}]: ${a}, expected ${e} within ${tolerance.element} (typical size ${typical})`,
    );
    worst = Math.max(worst, far);
  }
  const distance = squares > 0 ? Math.sqrt(difference / squares) : 0;
  assert(distance <= (tolerance.norm ?? Infinity), `${what}: ${name}: ${distance} away in norm, allowed ${tolerance.norm}`);
  remember(name, worst, tolerance.element);
  if (tolerance.norm !== undefined) remember(`${name} in norm`, distance, tolerance.norm);
}

/** Asserts that two runs gave the same bits. */
function assertSame(again: Results, first: Results, what: string): void {
  for (const [name, values] of Object.entries(first)) {
    const [a, b] = [again[name]!, values].map(({ buffer, byteOffset, byteLength }) =>
      new Uint8Array(buffer, byteOffset, byteLength)
    );
    assert(
      a!.length === b!.length && a!.every((byte, i) => byte === b![i]),
      `${what}: ${name}: ${name} has other bits in another run`,
    );
  }
}

/** Tolerances by result; a number bounds every element. */
export type Tolerances<R extends Results> = { readonly [name in keyof R]: number | Tolerance };

/**
 * Runs `work` on the device (twice in one context, once in another: the same bits) and on the CPU, and compares. No operator may
 * write into a padding.
 * @param archs chips whose kernels are tested beside the device's own, such as "80"
 * @param fixture what PyTorch found, and how much more than `tolerances` it may differ by: its inputs were not rounded to bf16
 */
export function compare<R extends Results>(
  what: string,
  work: (on: Subject) => R,
  tolerances: Tolerances<R>,
  { archs = [], fixture }: {
    archs?: readonly string[];
    fixture?: { expected: { readonly [name in keyof R]?: Results[string] }; tolerance: number | Tolerance };
  } = {},
): void {
  const run = (on: Subject): R => {
    const results = work(on);
    on.requirePaddings();
    return results;
  };
  using cpu = Subject.reference();
  const expected = run(cpu);
  for (const arch of standIn ? [null] : [null, ...archs]) {
    const label = arch === null ? what : `${what}, kernels of sm_${arch}`;
    using subject = Subject.underTest(arch), other = Subject.underTest(arch);
    const first = run(subject);
    for (const again of [subject, other]) assertSame(run(again), first, label);
    for (const [name, given] of Object.entries(tolerances)) {
      assertNear(first[name]!, expected[name]!, given, { what: label, name });
      const oracle = fixture?.expected[name];
      if (oracle) assertNear(first[name]!, oracle, fixture.tolerance, { what: label, name: `${name} of PyTorch` });
    }
  }
}

/** ‖a − b‖ / ‖b‖. */
export function distance(a: Float32Array, b: Float32Array): number {
  let difference = 0, size = 0;
  for (let i = 0; i < b.length; i++) {
    difference += (a[i]! - b[i]!) ** 2;
    size += b[i]! ** 2;
  }
  return Math.sqrt(difference / size);
}
