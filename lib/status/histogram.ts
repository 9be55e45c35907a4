/** Weights of samples, counted in bins. */
import type { BatchSample } from "../train/events.ts";
import type { WeightHistogram } from "./schema.ts";

/** Upper edges of the bins, in multiples of the even share 1/n: 1/8, 2/8, … 3. Weights of meta-lora lie around 1, rarely beyond 3. */
export const EDGES: readonly number[] = Array.from({ length: 24 }, (_, i) => (i + 1) / 8);
/** Samples that the recent histogram is made of. */
export const RECENT = 1024;

/** Counts of weights, since the beginning and of the last {@link RECENT} samples. */
export class WeightCounts {
  readonly #counts = new Array<number>(EDGES.length + 1).fill(0);
  readonly #recent = new Array<number>(EDGES.length + 1).fill(0);
  readonly #bins = new Uint8Array(RECENT); // bins of the last samples, a ring
  #zeros = 0;
  #total = 0;
  #sum = 0;

  /** Counts the samples of a batch that have a weight. */
  add(samples: readonly BatchSample[]): void {
    for (const { weight } of samples) {
      if (weight === null || !Number.isFinite(weight)) continue;
      const share = weight * samples.length;
      const bin = binOf(share);
      const place = this.#total % RECENT;
      if (this.#total >= RECENT) this.#recent[this.#bins[place]!]!--;
      this.#bins[place] = bin;
      this.#recent[bin]!++;
      this.#counts[bin]!++;
      this.#total++;
      this.#sum += share;
      if (weight === 0) this.#zeros++;
    }
  }

  /** The histogram; null before the first weight. */
  get value(): WeightHistogram | null {
    if (this.#total === 0) return null;
    return {
      edges: [...EDGES],
      counts: [...this.#counts],
      recent: [...this.#recent],
      zeros: this.#zeros,
      total: this.#total,
      sum: this.#sum,
    };
  }
}

/** The first bin whose upper edge is not below the weight; rounding of 1/n × n does not move a weight into the next bin. */
function binOf(share: number): number {
  const bin = Math.ceil(share * 8 - 1e-6) - 1;
  return Math.min(Math.max(bin, 0), EDGES.length);
}
