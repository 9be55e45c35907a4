/**
 * Memory is planned, not discovered: everything that a run needs is reserved by name before step 0, then allocated in one
 * block. The same reservations give `--dry-run` its table. (Design §4.)
 */
import { type Device, type Dtype, DTYPE_BYTES, type Memory, type Place, type Storage, Tensor } from "../../ffi/device.ts";

/** What a reservation is for; a plan adds up by these. */
export type Purpose = "weights" | "adapter" | "optimizer" | "reweighting" | "activations" | "workspace";

const ALIGNMENT = 256;

/** One block of memory, laid out first and allocated once. */
export class Arena implements Storage, Disposable {
  #bytes = 0;
  #memory: Memory | undefined;
  readonly #purposes = new Map<Purpose, number>();

  /** @param place whose memory it will be; nothing is taken where nothing is reserved */
  constructor(readonly place: Place = "device") {}

  /** Reserves a [rows, cols] matrix with rows `ld` elements apart. Usable as an operand after `allocate`. */
  reserve(
    purpose: Purpose,
    rows: number,
    cols: number,
    { dtype = "f32", ld = cols }: { dtype?: Dtype; ld?: number } = {},
  ): Tensor {
    if (this.#memory) throw new Error("Cannot reserve memory: the arena is allocated already");
    const bytes = this.alignedBytes(rows, ld, dtype);
    const tensor = new Tensor(this, this.#bytes, rows, cols, dtype, ld);
    this.#bytes += bytes;
    this.#purposes.set(purpose, (this.#purposes.get(purpose) ?? 0) + bytes);
    return tensor;
  }

  /** Bytes that a reservation of [rows, ld] takes. */
  alignedBytes(rows: number, ld: number, dtype: Dtype): number {
    return Math.ceil(rows * ld * DTYPE_BYTES[dtype] / ALIGNMENT) * ALIGNMENT;
  }

  /** A dense f32 matrix [rows, cols] over bytes that are reserved already, for data whose time comes when theirs is over. */
  overlay(byteOffset: number, rows: number, cols: number): Tensor {
    if (byteOffset % ALIGNMENT !== 0 || byteOffset + this.alignedBytes(rows, cols, "f32") > this.#bytes) {
      throw new RangeError(`Cannot lay [${rows},${cols}] over byte ${byteOffset} of ${this.#bytes}`);
    }
    return new Tensor(this, byteOffset, rows, cols, "f32");
  }

  /** Bytes reserved so far, by purpose. */
  plan(): Record<Purpose, number> {
    const of = (purpose: Purpose) => this.#purposes.get(purpose) ?? 0;
    return {
      weights: of("weights"),
      adapter: of("adapter"),
      optimizer: of("optimizer"),
      reweighting: of("reweighting"),
      activations: of("activations"),
      workspace: of("workspace"),
    };
  }

  /** Bytes reserved in all. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Takes the memory from the device, zero-filled. */
  allocate(device: Device): void {
    if (this.#bytes > 0) this.#memory = device.alloc(this.#bytes, { place: this.place });
  }

  /** The base address. */
  get address(): bigint {
    if (!this.#memory) throw new Error("Cannot use a tensor: its arena is not allocated");
    return this.#memory.address;
  }

  [Symbol.dispose](): void {
    this.#memory?.close();
    this.#memory = undefined;
  }
}
