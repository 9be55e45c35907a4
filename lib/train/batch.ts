/**
 * A batch is one flat stream of tokens with segment offsets, one segment a sample: no padding, no attention between
 * samples, and per-sample losses and gradients fall out of the offsets (design §4).
 */
import type { Device, Tensor } from "../../ffi/device.ts";
import { upload } from "../../ffi/operators.ts";
import { IGNORED, type Sample } from "../data/encode.ts";
import type { DeviceBatch, Limits } from "../model/llama.ts";
import type { Arena } from "../tensor/arena.ts";

/** What packing needs of a sample. */
export type Tokens = Pick<Sample, "ids" | "labels">;

/** A packed batch in host memory. */
export interface PackedBatch {
  readonly T: number;
  readonly S: number;
  /** Rows that carry a label. */
  readonly R: number;
  readonly maxLength: number;
  readonly ids: Int32Array<ArrayBuffer>; // [T]
  readonly positions: Int32Array<ArrayBuffer>; // [T]
  readonly cuSeqlens: Int32Array<ArrayBuffer>; // [S+1]
  /** Tokens of each segment that are not right padding [S]; null without padding. */
  readonly kvLens: Int32Array<ArrayBuffer> | null;
  readonly rows: Int32Array<ArrayBuffer>; // [R]: row t predicts the label of row t + 1
  readonly labels: Int32Array<ArrayBuffer>; // [R]
  /** Labelled rows of sample i: rowOffsets[i] .. rowOffsets[i+1]-1. */
  readonly rowOffsets: Int32Array<ArrayBuffer>; // [S+1]
}

/** Labelled tokens of a sample: those that some earlier token predicts (n_i in the loss of sample i). */
export function labelledTokens({ labels }: Tokens): number {
  let count = 0;
  for (let t = 1; t < labels.length; t++) if (labels[t] !== IGNORED) count++;
  return count;
}

/**
 * Packs samples into one stream.
 * @param padding runs every sample at the length of the longest, the rest filled with `padding.id` on the right: only the
 *   reference preset needs it, whose pooled similarity averages over pads (algorithms §1.3)
 */
export function packBatch(samples: readonly Tokens[], { padding = null }: { padding?: { id: number } | null } = {}): PackedBatch {
  const S = samples.length;
  const maxLength = Math.max(0, ...samples.map(({ ids }) => ids.length));
  const length = ({ ids }: Tokens) => padding ? maxLength : ids.length;
  const T = samples.reduce((sum, sample) => sum + length(sample), 0);
  const ids = new Int32Array(T).fill(padding?.id ?? 0);
  const positions = new Int32Array(T);
  const cuSeqlens = new Int32Array(S + 1);
  const kvLens = padding ? new Int32Array(S) : null;
  const rowOffsets = new Int32Array(S + 1);
  const rows: number[] = [], labels: number[] = [];
  samples.forEach((sample, i) => {
    const start = cuSeqlens[i]!, n = length(sample);
    ids.set(sample.ids, start);
    for (let t = 0; t < n; t++) positions[start + t] = t;
    for (let t = 1; t < sample.ids.length; t++) {
      const label = sample.labels[t]!;
      if (label === IGNORED) continue;
      rows.push(start + t - 1);
      labels.push(label);
    }
    if (kvLens) kvLens[i] = realLength(sample.ids, padding!.id);
    cuSeqlens[i + 1] = start + n;
    rowOffsets[i + 1] = rows.length;
  });
  return {
    T,
    S,
    R: rows.length,
    maxLength,
    ids,
    positions,
    cuSeqlens,
    kvLens,
    rows: Int32Array.from(rows),
    labels: Int32Array.from(labels),
    rowOffsets,
  };
}

/** The authors' attention mask is (id != pad id), so trailing tokens equal to the pad id serve no key either. */
function realLength(ids: Int32Array, pad: number): number {
  let n = ids.length;
  while (n > 1 && ids[n - 1] === pad) n--;
  return n;
}

/** How the losses of labelled rows are weighed into the loss that is differentiated. */
export type Normalisation =
  /** Every sample's loss is the mean over its own labelled rows: dL_i/d(row) = 1/n_i; `samples` divides further. */
  | { per: "sample"; samples: number }
  /** One mean over all labelled rows of the whole (accumulated) batch, as Hugging Face does: 1/`tokens`. */
  | { per: "token"; tokens: number };

/** The seeds dL/d(loss of a row), [R]. */
export function rowSeeds(batch: PackedBatch, normalisation: Normalisation): Float32Array<ArrayBuffer> {
  const seeds = new Float32Array(batch.R);
  for (let i = 0; i < batch.S; i++) {
    const from = batch.rowOffsets[i]!, to = batch.rowOffsets[i + 1]!;
    seeds.fill(normalisation.per === "token" ? 1 / normalisation.tokens : 1 / ((to - from) * normalisation.samples), from, to);
  }
  return seeds;
}

/** Device buffers that hold one batch at a time. */
export class BatchBuffers {
  readonly rowOffsets: Tensor; // i32 [S+1]
  readonly cu: Tensor; // i32 [S+1]
  /** The whole stream as one segment, (0, T): sums gradients over all samples. */
  readonly cuWhole: Tensor; // i32 [2]
  readonly #ids: Tensor;
  readonly #positions: Tensor;
  readonly #rows: Tensor;
  readonly #labels: Tensor;
  readonly #seeds: Tensor;
  readonly #kvLens: Tensor;

  constructor(arena: Arena, readonly limits: Limits) {
    const ints = (count: number) => arena.reserve("workspace", 1, count, { dtype: "i32" });
    this.cu = ints(limits.segments + 1);
    this.cuWhole = ints(2);
    this.rowOffsets = ints(limits.segments + 1);
    this.#kvLens = ints(limits.segments);
    this.#ids = ints(limits.tokens);
    this.#positions = ints(limits.tokens);
    this.#rows = ints(limits.rows);
    this.#labels = ints(limits.rows);
    this.#seeds = arena.reserve("workspace", 1, limits.rows);
  }

  /** Copies a packed batch to the device; the result is valid until the next upload. */
  upload(dev: Device, batch: PackedBatch, seeds: Float32Array<ArrayBuffer>): DeviceBatch {
    const { tokens, rows, segments } = this.limits;
    if (batch.T > tokens || batch.R > rows || batch.S > segments) {
      throw new RangeError(
        `Cannot hold a batch of ${batch.T} tokens, ${batch.R} labels, ${batch.S} samples: planned for ${tokens}, ${rows}, ${segments}`,
      );
    }
    upload(dev, this.#ids, batch.ids);
    upload(dev, this.#positions, batch.positions);
    upload(dev, this.cu, batch.cuSeqlens);
    upload(dev, this.cuWhole, Int32Array.of(0, batch.T));
    upload(dev, this.rowOffsets, batch.rowOffsets);
    upload(dev, this.#rows, batch.rows);
    upload(dev, this.#labels, batch.labels);
    upload(dev, this.#seeds, seeds);
    if (batch.kvLens) upload(dev, this.#kvLens, batch.kvLens);
    return {
      T: batch.T,
      R: batch.R,
      segments: { count: batch.S, maxLength: batch.maxLength, cu: this.cu, kvLens: batch.kvLens ? this.#kvLens : null },
      ids: this.#ids,
      positions: this.#positions,
      rows: this.#rows,
      labels: this.#labels,
      seeds: this.#seeds,
    };
  }
}
