/**
 * The third floor of the boundary: a device, memory that frees itself, and tensors as views of that memory.
 * The operators that work on them are in `operators.ts`.
 */
import { type Backend, Native, NativeError, nativeError, readText, synchronous } from "./native.ts";
import { Profiler } from "./profile.ts";

/** Element types: f32 and bf16 compute, f16 only as a source of uploads, i32 for ids and offsets, f64 for sums. */
export type Dtype = "f32" | "bf16" | "f16" | "i32" | "f64";

/** Bytes of an element. */
export const DTYPE_BYTES: Readonly<Record<Dtype, number>> = { f32: 4, bf16: 2, f16: 2, i32: 4, f64: 8 };

/** The codes of metalora.h. */
export const DTYPE_CODE: Readonly<Record<"f32" | "bf16" | "f16", number>> = { f32: 0, bf16: 1, f16: 2 };

/** The code of a floating-point type that operators accept. */
export function dtypeCode(dtype: Dtype): number {
  if (dtype === "i32" || dtype === "f64") throw new TypeError(`Cannot compute on ${dtype}`);
  return DTYPE_CODE[dtype];
}

/** A device context: one CPU (with its threads) or one GPU. Owns native memory; close it, or declare it with `using`. */
export class Device implements Disposable {
  #ctx: Deno.PointerValue;
  readonly #native: Native;
  #profiled: Native["symbols"] | null = null;

  private constructor(readonly backend: Backend, native: Native, ctx: Deno.PointerValue) {
    this.#native = native;
    this.#ctx = ctx;
  }

  /**
   * Opens a device.
   * @param backend "cpu" or "cuda"
   * @param index which GPU; on the CPU 0, or the number of an instruction set (metalora.h), which only tests ask for
   * @param threads CPU threads, 0 for all cores that this process may use
   * @throws {NativeError} when the library or the device cannot be opened
   */
  static open({ backend = "cpu", index = 0, threads = 0 }: { backend?: Backend; index?: number; threads?: number } = {}): Device {
    const native = Native.load(backend);
    const out = new BigUint64Array(1);
    const status = native.symbols.ml_create(index, threads, out);
    if (status !== 0) throw nativeError(status, native.lastError(null));
    return new Device(backend, native, Deno.UnsafePointer.create(out[0]!));
  }

  /** The context handle, for `operators.ts` only. */
  get ctx(): Deno.PointerValue {
    if (this.#ctx === null) throw new NativeError("Cannot use the device: it is closed");
    return this.#ctx;
  }

  /** The native symbols, for `operators.ts` only. */
  get symbols(): Native["symbols"] {
    return this.#profiled ?? this.#native.symbols;
  }

  /** Whether operators are being timed one by one. */
  get profiling(): boolean {
    return this.#profiled !== null;
  }

  /** Runs `work` and returns the device time of every operator in it: milliseconds and calls by symbol. */
  profile(work: () => void): Map<string, { ms: number; calls: number }> {
    const profiler = new Profiler(this.#native.symbols, this.ctx, (status) => this.check(status));
    this.#profiled = profiler.symbols;
    try {
      work();
    } finally {
      this.#profiled = null;
    }
    return profiler.finish();
  }

  /** Such as "AMD EPYC, avx2, 2 threads". */
  get name(): string {
    return readText((text, capacity) => this.symbols.ml_device_name(this.ctx, text, capacity));
  }

  /** CPU threads, or multiprocessors of a GPU. */
  get units(): number {
    return this.symbols.ml_device_units(this.ctx);
  }

  /** The type that activations have on this device. */
  get activationDtype(): "f32" | "bf16" {
    return this.symbols.ml_activation_dtype(this.ctx) === DTYPE_CODE.bf16 ? "bf16" : "f32";
  }

  /** Bytes held through `alloc` right now. */
  get allocatedBytes(): number {
    return Number(this.symbols.ml_allocated_bytes(this.ctx));
  }

  /** Bytes of the device's memory, free and in all, as its driver (or the operating system) tells them now. */
  memory(): { free: number; total: number } {
    const bytes = new BigUint64Array(2);
    this.check(this.symbols.ml_memory_info(this.ctx, bytes));
    return { free: Number(bytes[0]), total: Number(bytes[1]) };
  }

  /** Throws the native message when a status is not 0. */
  check(status: number): void {
    if (status !== 0) throw nativeError(status, this.#native.lastError(this.ctx));
  }

  /** Whether recorded work is to be replayed here: on a GPU, unless every operator is waited for. */
  get replays(): boolean {
    return this.backend === "cuda" && !synchronous();
  }

  /** Zero-filled memory: the device's, or with `place: "host"` the host's, which the device reads over its bus. */
  alloc(bytes: number, { place = "device" }: { place?: Place } = {}): Memory {
    const out = new BigUint64Array(1);
    this.check(this.symbols.ml_alloc(this.ctx, BigInt(bytes), place === "host" ? 1 : 0, out));
    return new Memory(this, out[0]!, bytes);
  }

  synchronize(): void {
    this.check(this.symbols.ml_synchronize(this.ctx));
  }

  close(): void {
    if (this.#ctx === null) return;
    this.symbols.ml_destroy(this.#ctx);
    this.#ctx = null;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Whose memory. */
export type Place = "device" | "host";

/** A block of device memory. Freed by `close` or `using`; tensors over it are invalid afterwards. */
export class Memory implements Disposable {
  #address: bigint;

  constructor(readonly device: Device, address: bigint, readonly bytes: number) {
    this.#address = address;
  }

  get address(): bigint {
    if (this.#address === 0n) throw new NativeError("Cannot use device memory: it is freed");
    return this.#address;
  }

  close(): void {
    if (this.#address === 0n) return;
    this.device.check(this.device.symbols.ml_free(this.device.ctx, Deno.UnsafePointer.create(this.#address)));
    this.#address = 0n;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Where a tensor's memory begins; an arena answers once it has been allocated. */
export interface Storage {
  readonly address: bigint;
}

/** A matrix [rows, cols] in device memory whose rows are `ld` elements apart. A view: it owns nothing. */
export class Tensor {
  #pointer: Deno.PointerObject | undefined;

  constructor(
    readonly storage: Storage,
    readonly byteOffset: number,
    readonly rows: number,
    readonly cols: number,
    readonly dtype: Dtype,
    readonly ld: number = cols,
  ) {}

  /** The address of the first element. */
  get pointer(): Deno.PointerObject {
    return this.#pointer ??= Deno.UnsafePointer.create(this.storage.address + BigInt(this.byteOffset))!;
  }

  /** Bytes from the first element to the end of the last row, row padding included. */
  get bytes(): number {
    return this.rows * this.ld * DTYPE_BYTES[this.dtype];
  }

  /** Columns first .. first + count - 1 of every row. */
  columns(first: number, count: number): Tensor {
    if (first < 0 || first + count > this.ld) throw new RangeError(`Cannot take columns ${first}+${count} of ${this.shape}`);
    return new Tensor(this.storage, this.byteOffset + first * DTYPE_BYTES[this.dtype], this.rows, count, this.dtype, this.ld);
  }

  /** Rows first .. first + count - 1. */
  rowRange(first: number, count: number): Tensor {
    if (first < 0 || first + count > this.rows) throw new RangeError(`Cannot take rows ${first}+${count} of ${this.shape}`);
    const offset = this.byteOffset + first * this.ld * DTYPE_BYTES[this.dtype];
    return new Tensor(this.storage, offset, count, this.cols, this.dtype, this.ld);
  }

  /** A part of a dense tensor, seen with another shape: [rows, cols] starting `element` elements in. */
  part(element: number, rows: number, cols: number): Tensor {
    if (element < 0 || element + rows * cols > this.rows * this.ld) {
      throw new RangeError(`Cannot take [${rows},${cols}] at element ${element} of ${this.shape}`);
    }
    return new Tensor(this.storage, this.byteOffset + element * DTYPE_BYTES[this.dtype], rows, cols, this.dtype);
  }

  /** "[rows,cols] f32", for messages. */
  get shape(): string {
    return `[${this.rows},${this.cols}] ${this.dtype}`;
  }
}
