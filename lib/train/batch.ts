/**
 * A batch is one flat stream of tokens with segment offsets, one segment a sample: no padding, no attention between
 * samples, and per-sample losses and gradients fall out of the offsets (design §4).
 */
import { type Device, Tensor } from "../../ffi/device.ts";
import type { Backend } from "../../ffi/native.ts";
import { upload } from "../../ffi/operators.ts";
import { IGNORED, type Sample } from "../data/encode.ts";
import type { DeviceBatch, Limits } from "../model/decoder.ts";
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
  const maxLength = samples.reduce((most, { ids }) => Math.max(most, ids.length), 0);
  const length = ({ ids }: Tokens) => padding ? maxLength : ids.length;
  const T = samples.reduce((sum, sample) => sum + length(sample), 0);
  const ids = new Int32Array(T).fill(padding?.id ?? 0);
  const positions = new Int32Array(T);
  const cuSeqlens = new Int32Array(S + 1);
  const kvLens = padding ? new Int32Array(S) : null;
  const rowOffsets = new Int32Array(S + 1);
  const R = samples.reduce((sum, sample) => sum + labelledTokens(sample), 0);
  const rows = new Int32Array(R), labels = new Int32Array(R);
  let at = 0;
  samples.forEach((sample, i) => {
    const start = cuSeqlens[i]!, n = length(sample);
    ids.set(sample.ids, start);
    for (let t = 0; t < n; t++) positions[start + t] = t;
    for (let t = 1; t < sample.ids.length; t++) {
      const label = sample.labels[t]!;
      if (label === IGNORED) continue;
      rows[at] = start + t - 1;
      labels[at++] = label;
    }
    if (kvLens) kvLens[i] = realLength(sample.ids, padding!.id);
    cuSeqlens[i + 1] = start + n;
    rowOffsets[i + 1] = at;
  });
  return {
    T,
    S,
    R,
    maxLength,
    ids,
    positions,
    cuSeqlens,
    kvLens,
    rows,
    labels,
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

/**
 * Elements to which tokens and labelled rows are rounded up. On CUDA a pass is recorded per shape (graphs.ts), so few shapes are
 * wanted: a sixteenth of the largest batch for models so small that launches are what a step waits for, else just whole tiles.
 */
export function shapeStep(backend: Backend, tokens: number, d: number): number {
  if (backend === "cpu") return 1;
  const TILE = 64, LAUNCH_BOUND = 2048;
  return d < LAUNCH_BOUND ? Math.max(TILE, Math.ceil(tokens / 16 / TILE) * TILE) : TILE;
}

const roundUp = (value: number, step: number) => Math.ceil(value / step) * step;

/** Device buffers that hold one batch at a time, side by side so that one copy brings all of them. */
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
  readonly #device: Tensor; // all of them
  /** Taken with the first batch: laying out takes no memory. */
  #host: Int32Array<ArrayBuffer> | null = null;
  readonly #limits: Limits;

  /** @param step what tokens and rows are rounded up to; the buffers of the model must have room for `padded` */
  constructor(arena: Arena, limits: Limits, readonly step: number) {
    this.#limits = BatchBuffers.padded(limits, step);
    const { tokens, rows, segments } = this.#limits;
    const sizes = [segments + 1, 2, segments + 1, segments, tokens, tokens, rows, rows, rows];
    const all = this.#device = arena.reserve("workspace", 1, sizes.reduce((a, b) => a + b, 0), { dtype: "i32" });
    let at = 0;
    const next = (dtype: "i32" | "f32" = "i32") => {
      const count = sizes.shift()!;
      const tensor = new Tensor(all.storage, all.byteOffset + 4 * at, 1, count, dtype);
      at += count;
      return tensor;
    };
    this.cu = next();
    this.cuWhole = next();
    this.rowOffsets = next();
    this.#kvLens = next();
    this.#ids = next();
    this.#positions = next();
    this.#rows = next();
    this.#labels = next();
    this.#seeds = next("f32");
  }

  /** What batches within `limits` become when tokens and rows are rounded up. */
  static padded(limits: Limits, step: number): Limits {
    return { ...limits, tokens: roundUp(limits.tokens, step), rows: roundUp(limits.rows, step) };
  }

  /**
   * Copies a packed batch to the device; the result is valid until the next upload. Rounded up, the stream ends in tokens of no
   * segment, and rows −1 lead nowhere.
   */
  upload(dev: Device, batch: PackedBatch, seeds: Float32Array<ArrayBuffer>): DeviceBatch {
    const { tokens, rows, segments, positions } = this.#limits;
    if (batch.T > tokens || batch.R > rows || batch.S > segments) {
      throw new RangeError(
        `Cannot hold a batch of ${batch.T} tokens, ${batch.R} labels, ${batch.S} samples: planned for ${tokens}, ${rows}, ${segments}`,
      );
    }
    const host = (this.#host ??= new Int32Array(this.#device.cols)).fill(0);
    const put = ({ byteOffset }: Tensor, values: Int32Array) => host.set(values, (byteOffset - this.#device.byteOffset) / 4);
    put(this.cu, batch.cuSeqlens);
    put(this.cuWhole, Int32Array.of(0, batch.T));
    put(this.rowOffsets, batch.rowOffsets);
    if (batch.kvLens) put(this.#kvLens, batch.kvLens);
    put(this.#ids, batch.ids);
    put(this.#positions, batch.positions);
    const rowsAt = (this.#rows.byteOffset - this.#device.byteOffset) / 4;
    host.fill(-1, rowsAt, rowsAt + this.#rows.cols);
    put(this.#rows, batch.rows);
    put(this.#labels, batch.labels);
    put(this.#seeds, new Int32Array(seeds.buffer, seeds.byteOffset, seeds.length));
    upload(dev, this.#device, host);
    const maxLength = Math.min(positions, roundUp(batch.maxLength, this.step));
    return {
      T: roundUp(batch.T, this.step),
      R: roundUp(batch.R, this.step),
      segments: { count: batch.S, maxLength, cu: this.cu, kvLens: batch.kvLens ? this.#kvLens : null },
      ids: this.#ids,
      positions: this.#positions,
      rows: this.#rows,
      labels: this.#labels,
      seeds: this.#seeds,
    };
  }
}
