/**
 * Which samples form which batch.
 *
 * @module
 */

import { permutation, Rng } from "./random.ts";

/** Where a {@linkcode BatchCursor} stands: `position` samples of epoch `epoch` (from 0) have been given out. */
export interface CursorState {
  readonly epoch: number;
  readonly position: number;
}

/** How a {@linkcode BatchCursor} walks. */
export interface CursorOptions {
  /** Number of samples, at least 1. */
  readonly samples: number;
  /** Samples a batch, at least 1. */
  readonly batchSize: number;
  /** "shuffled": a new order every epoch, drawn from the seed, the stream and the epoch; "sequential": file order. */
  readonly order: "shuffled" | "sequential";
  readonly seed: number;
  /** Names the random stream, so that training and validation data are shuffled independently. */
  readonly stream: string;
  /** Start here instead of at the beginning. */
  readonly state?: CursorState;
}

/**
 * Gives out batches of sample indices for ever, each sample exactly once an epoch.
 *
 * Every batch is full: where an epoch ends inside a batch, the batch is completed with the first samples of the next epoch.
 * No row is dropped, and all steps weigh the same. With fewer samples than the batch size a batch spans several epochs and
 * has samples twice.
 */
export class BatchCursor {
  readonly #options: CursorOptions;
  #epoch: number;
  #position: number;
  #order: Uint32Array; // [samples] of the current epoch

  constructor(options: CursorOptions) {
    const { samples, batchSize, state = { epoch: 0, position: 0 } } = options;
    for (const [name, value, least] of [["samples", samples, 1], ["batchSize", batchSize, 1]] as const) {
      if (!Number.isSafeInteger(value) || value < least) throw new RangeError(`Cannot make batches: ${name} is ${value}`);
    }
    this.#options = options;
    this.#requireInside(state);
    this.#epoch = state.epoch;
    this.#position = state.position;
    this.#order = this.#drawOrder();
  }

  /**
   * Goes to where a cursor of the same options stood.
   * @throws {RangeError} when there is no such place
   */
  restore(state: CursorState): void {
    this.#requireInside(state);
    const redraw = state.epoch !== this.#epoch;
    this.#epoch = state.epoch;
    this.#position = state.position;
    if (redraw) this.#order = this.#drawOrder();
  }

  #requireInside({ epoch, position }: CursorState): void {
    const { samples } = this.#options;
    const whole = (value: number) => Number.isSafeInteger(value) && value >= 0;
    if (whole(epoch) && whole(position) && position < samples) return;
    throw new RangeError(`Cannot continue at epoch ${epoch}, position ${position}: there are ${samples} samples`);
  }

  /** Indices of the next batch, [batchSize]. */
  next(): Uint32Array<ArrayBuffer> {
    const batch = new Uint32Array(this.#options.batchSize);
    for (let i = 0; i < batch.length; i++) {
      batch[i] = this.#order[this.#position++]!;
      if (this.#position === this.#order.length) {
        this.#epoch++;
        this.#position = 0;
        this.#order = this.#drawOrder();
      }
    }
    return batch;
  }

  /** Where the next batch starts; a cursor made with it gives the same batches. */
  get state(): CursorState {
    return { epoch: this.#epoch, position: this.#position };
  }

  #drawOrder(): Uint32Array {
    const { samples, order, seed, stream } = this.#options;
    if (order === "sequential") return Uint32Array.from({ length: samples }, (_, i) => i);
    return permutation(new Rng(seed, `${stream}, epoch ${this.#epoch}`), samples);
  }
}
