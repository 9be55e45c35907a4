/** Which training samples had the highest and the lowest weights so far. */
import type { BatchSample } from "../train/events.ts";
import type { UsefulSample, UsefulSamples } from "./schema.ts";

/** Samples told on either side. */
const SHOWN = 10;
/**
 * Samples kept on either side, texts included. A mean changes only when its sample is in a batch, and the batch brings the text: with
 * more kept than shown, one that falls back is replaced by the next.
 */
const KEPT = 64;
/** Characters of a text. */
const EXCERPT = 240;

/** Mean weights of all training samples, and texts of those at both ends. */
export class UsefulSamplesTracker {
  readonly #sums: Float64Array;
  readonly #seen: Uint32Array;
  readonly #most = new Map<number, UsefulSample>();
  readonly #least = new Map<number, UsefulSample>();
  readonly #clean: (text: string) => string;

  /**
   * @param count training samples
   * @param clean what to do with texts before they are told
   */
  constructor(count: number, clean: (text: string) => string) {
    this.#sums = new Float64Array(count);
    this.#seen = new Uint32Array(count);
    this.#clean = clean;
  }

  /** Notes the weighted samples of a training batch. */
  add(samples: readonly BatchSample[]): void {
    for (const sample of samples) {
      const { index, weight } = sample;
      if (weight === null || !Number.isFinite(weight) || index >= this.#sums.length) continue;
      this.#sums[index]! += weight * samples.length;
      this.#seen[index]!++;
      this.#keep(this.#most, sample, 1);
      this.#keep(this.#least, sample, -1);
    }
  }

  /** The ends as they are now. */
  get value(): Pick<UsefulSamples, "most" | "least"> {
    const most = [...this.#most.values()].sort((a, b) => b.weight - a.weight).slice(0, SHOWN);
    const shown = new Set(most.map(({ id }) => id));
    const least = [...this.#least.values()].filter(({ id }) => !shown.has(id)).sort((a, b) => a.weight - b.weight).slice(
      0,
      SHOWN,
    );
    return { most, least };
  }

  /** @param sign 1: high weights stay, -1: low ones */
  #keep(kept: Map<number, UsefulSample>, { index, id, source, prompt, response }: BatchSample, sign: 1 | -1): void {
    const seen = this.#seen[index]!;
    const weight = this.#sums[index]! / seen;
    const old = kept.get(index);
    if (old) {
      kept.set(index, { ...old, weight, seen });
      return;
    }
    if (kept.size >= KEPT) {
      let worst = -1, value = Infinity;
      for (const [other, { weight }] of kept) if (sign * weight < value) [worst, value] = [other, sign * weight];
      if (sign * weight <= value) return;
      kept.delete(worst);
    }
    const text = (value: string | undefined) => value === undefined ? null : excerpt(this.#clean(value));
    kept.set(index, { id: this.#clean(id), source, weight, seen, prompt: text(prompt), response: text(response) });
  }
}

/** The first characters, never half of one. */
function excerpt(text: string): string {
  const start = Array.from(text.slice(0, 2 * EXCERPT + 2)); // a character is one or two units
  return start.length <= EXCERPT ? text : `${start.slice(0, EXCERPT - 1).join("")}…`;
}
