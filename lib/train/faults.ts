/** Batches that cannot be right: losses and gradients that are no numbers, and losses far above all others. */

/** When a batch is faulty, and when a run gives up. */
export interface FaultOptions {
  /** A training loss above mean + spike · max(σ, 0.5 nats) of the last batches is one; 0 looks for none. */
  readonly spike: number;
  /** Faulty batches in a row that end a run. */
  readonly giveUp: number;
}

/** What a checkpoint keeps of the watch. */
export interface FaultState {
  /** Losses of the last sound training batches, oldest first. */
  readonly losses: readonly number[];
  /** Faulty batches since the last sound one. */
  readonly row: number;
  /** What was wrong with the first of them. */
  readonly first: string | null;
}

const WINDOW = 50; // batches that mean and deviation are taken over
const FEWEST = 20; // before that many nobody knows what is usual
/** Memorised data has a deviation near 0, and a batch with one hard sample is no fault. */
const LEAST_DEVIATION = 0.5;

/** Watches the losses of a run, batch by batch. */
export class FaultWatch {
  #losses: number[] = [];
  #row = 0;
  #first: string | null = null;

  constructor(readonly options: FaultOptions) {}

  /** Says what is wrong when the mean loss of a training batch is far above those before it; null when it is not. */
  spike(loss: number): string | null {
    const { spike } = this.options;
    if (spike === 0 || this.#losses.length < FEWEST) return null;
    const mean = this.#losses.reduce((a, b) => a + b, 0) / this.#losses.length;
    const variance = this.#losses.reduce((sum, value) => sum + (value - mean) ** 2, 0) / this.#losses.length;
    const limit = mean + spike * Math.max(Math.sqrt(variance), LEAST_DEVIATION);
    if (loss <= limit) return null;
    return `the loss of the training batch is ${loss.toFixed(4)}, far above the ${mean.toFixed(4)} of the batches before it`;
  }

  /** Notes a sound batch; `loss` is that of a training batch. */
  sound(loss: number | null): void {
    this.#row = 0;
    this.#first = null;
    if (loss === null) return;
    this.#losses.push(loss);
    if (this.#losses.length > WINDOW) this.#losses.shift();
  }

  /**
   * Notes a faulty batch.
   * @returns what was wrong with the first of the row when there are too many; null to go on
   */
  faulty(what: string): string | null {
    this.#row++;
    this.#first ??= what;
    return this.#row >= this.options.giveUp ? this.#first : null;
  }

  get state(): FaultState {
    return { losses: [...this.#losses], row: this.#row, first: this.#first };
  }

  /** Continues from a saved state. */
  restore({ losses, row, first }: FaultState): void {
    this.#losses = [...losses];
    this.#row = row;
    this.#first = first;
  }
}
