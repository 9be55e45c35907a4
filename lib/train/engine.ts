/**
 * A model with its adapters θ [P] and the passes that training is made of: evaluate, sum gradients over a batch, stage one
 * gradient per sample. It knows nothing of methods or schedules; `trainer.ts` does.
 */
import type { Device, Place, Tensor } from "../../ffi/device.ts";
import { download, segmentSum, upload } from "../../ffi/operators.ts";
import type { ModelConfig } from "../model/config.ts";
import type { AdaptedMatrix, AdapterOf } from "../model/linear.ts";
import { KEEP_ALL, type Recompute } from "../model/activations.ts";
import { Decoder, type DeviceBatch, type GradientSink, type Limits } from "../model/decoder.ts";
import type { Observed } from "../reweight/similarity.ts";
import { Arena } from "../tensor/arena.ts";
import {
  BatchBuffers,
  labelledTokens,
  type Normalisation,
  packBatch,
  type PackedBatch,
  rowSeeds,
  shapeStep,
  type Tokens,
} from "./batch.ts";
import { AdapterGradients, type GradientTarget } from "./gradients.ts";
import { Graphs } from "./graphs.ts";
import { Gradients } from "./staging.ts";

/** What a pass tells about its samples. */
export interface SampleLosses {
  /** Sum of the losses of each sample's labelled tokens, in nats [S]. */
  readonly sums: Float64Array<ArrayBuffer>;
  /** Labelled tokens of each sample [S]. */
  readonly tokens: number[];
  /** Whether every labelled token of the sample is the model's first choice [S]: what greedy decoding would produce. */
  readonly exact: boolean[];
}

/** Makes a sink that watches a micro-batch beside the gradients. */
export type Observer = (observed: Observed) => GradientSink | null;

/** How an engine is laid out. */
export interface EngineOptions {
  readonly adapterOf: AdapterOf;
  readonly weightDtype: "f32" | "bf16";
  readonly limits: Limits;
  readonly purpose: "train" | "evaluate";
  /** Training samples whose gradients are staged at once; 0 stages none. */
  readonly staged: number;
  /** Whether gradients may lie where activations were: only if those of a step's samples come from one backward pass. */
  readonly gradients?: "whole" | "reuse";
  /** Whether a sum, of a validation batch, may take several backward passes nevertheless: it needs a place that they leave alone. */
  readonly sumsPasses?: boolean;
  /** What the backward pass computes again instead of keeping it. */
  readonly recompute?: Recompute;
  /** Where the embedding is, unless it is the head as well. */
  readonly embedding?: Place;
  /** Runs samples with right padding of this id; only the reference preset does. */
  readonly padding?: { id: number } | null;
}

/** How much is computed again, of how many layers, and where the embedding lies. */
export interface EngineLayout {
  readonly recompute: Recompute;
  readonly layers: number;
  readonly embedding: Place;
}

/** A model, its adapters and its buffers on one device. */
export class Engine implements Disposable {
  readonly arena = new Arena();
  /** The embedding, where it does not lie in `arena`. */
  readonly hostArena = new Arena("host");
  readonly model: Decoder;
  /** Adapter parameters θ [1,P]: master copies in f32. */
  readonly theta: Tensor;
  /** The gradient of the current step, in the first row; null when laid out to evaluate. */
  readonly grad: Gradients | null;
  /** Per-sample gradients of a step; the first may give its place to `grad`. */
  readonly staging: Gradients | null;
  readonly #batch: BatchBuffers;
  readonly #weights: Tensor; // f32 [n]
  readonly #sums: Tensor; // f64 [S]
  readonly #graphs: Graphs;
  /** Called before every micro-batch; it may throw to end a pass between two of them. */
  beforePass: () => void = () => {};

  constructor(readonly dev: Device, config: ModelConfig, readonly options: EngineOptions) {
    const { adapterOf, weightDtype, purpose, staged, gradients = "whole", sumsPasses = false, recompute, embedding = "device" } =
      options;
    const step = shapeStep(dev.backend, options.limits.tokens, config.d);
    const limits = BatchBuffers.padded(options.limits, step);
    this.model = new Decoder(dev, config, {
      arena: this.arena,
      embeddingArena: embedding === "host" ? this.hostArena : this.arena,
      limits,
      adapterOf,
      weightDtype,
      purpose,
      ...(recompute ? { recompute } : {}),
    });
    this.#graphs = new Graphs(dev, dev.replays);
    const P = Math.max(1, this.model.parameters);
    this.theta = this.arena.reserve("adapter", 1, P);
    const rows = (options: ConstructorParameters<typeof Gradients>[3]) => new Gradients(dev, this.arena, this.model, options);
    const own = sumsPasses && gradients === "reuse";
    this.staging = staged > 0 ? rows({ samples: staged, purpose: "reweighting", layout: gradients }) : null;
    if (purpose === "evaluate") this.grad = null;
    else if (this.staging && !own) this.grad = this.staging;
    else this.grad = rows({ samples: 1, purpose: "adapter", layout: own ? "whole" : gradients });
    this.#batch = new BatchBuffers(this.arena, options.limits, step);
    this.#weights = this.arena.reserve("workspace", 1, Math.max(1, staged));
    this.#sums = this.arena.reserve("workspace", 1, limits.segments, { dtype: "f64" });
  }

  /** Takes the memory. Everything else that shares the arena must be laid out before. */
  allocate(): void {
    this.arena.allocate(this.dev);
    this.hostArena.allocate(this.dev);
    this.model.bind(this.theta);
  }

  /** What trades time for memory, as it was laid out. */
  get layout(): EngineLayout {
    const { recompute = KEEP_ALL, embedding = "device" } = this.options;
    return { recompute, layers: this.model.config.L, embedding };
  }

  /** Adapter parameters, P. */
  get parameters(): number {
    return this.model.parameters;
  }

  /** The adapted matrices in the order of θ. */
  get adapters(): AdaptedMatrix[] {
    return this.model.linears().flatMap(({ adapters }) => adapters);
  }

  /** Sets θ. */
  setAdapters(theta: Float32Array<ArrayBuffer>): void {
    if (theta.length !== this.parameters) {
      throw new RangeError(`Cannot set adapters: ${theta.length} numbers for P = ${this.parameters}`);
    }
    if (theta.length > 0) upload(this.dev, this.theta, theta);
    this.refresh();
  }

  /** Carries a changed θ into the weights that the products read. */
  refresh(): void {
    this.#graphs.run("refresh", () => this.model.refresh());
  }

  /** A copy of θ. */
  getAdapters(): Float32Array<ArrayBuffer> {
    const theta = new Float32Array(this.parameters);
    if (theta.length > 0) download(this.dev, theta, this.theta);
    return theta;
  }

  /** Losses of samples in evaluation: no gradients. Micro-batches are as large as the buffers allow. */
  evaluate(samples: readonly Tokens[]): SampleLosses {
    const all: SampleLosses = { sums: new Float64Array(samples.length), tokens: [], exact: [] };
    for (const { first, part } of microBatches(samples, this.options.limits)) {
      const losses = this.#pass(part, { per: "sample", samples: 1 }, null);
      all.sums.set(losses.sums, first);
      for (const tokens of losses.tokens) all.tokens.push(tokens);
      for (const exact of losses.exact) all.exact.push(exact);
    }
    return all;
  }

  /** Writes the gradient of the samples' normalised loss to `grad`, or with `accumulate` adds it. */
  sumGradients(
    samples: readonly Tokens[],
    normalisation: Normalisation,
    { accumulate = false, observe = () => null }: { accumulate?: boolean; observe?: Observer } = {},
  ): SampleLosses {
    const all: SampleLosses = { sums: new Float64Array(samples.length), tokens: [], exact: [] };
    for (const { first, part } of microBatches(samples, this.options.limits, this.options.padding ?? null)) {
      const beta = accumulate || first > 0 ? 1 : 0;
      const target = this.grad!.target(this.#batch.cuWhole, { first: 0, count: 1, beta });
      const losses = this.#pass(part, normalisation, { target, key: `sum ${beta}`, first, observe });
      all.sums.set(losses.sums, first);
      for (const tokens of losses.tokens) all.tokens.push(tokens);
      for (const exact of losses.exact) all.exact.push(exact);
    }
    return all;
  }

  /** Stages ∇ℓ_i of every sample, ℓ_i the mean over its labelled tokens, in rows first .. of `staging`. */
  stageGradients(samples: readonly Tokens[], { first, observe }: { first: number; observe: Observer }): SampleLosses {
    const target = this.staging!.target(this.#batch.cu, { first, count: samples.length, beta: 0 });
    return this.#pass(samples, { per: "sample", samples: 1 }, { target, key: `stage ${first}`, first, observe });
  }

  /** grad = Σ w_i ∇ℓ_i over the n staged samples, of which the first may be lost. */
  combineStaged(weights: Float64Array<ArrayBuffer>): void {
    upload(this.dev, this.#weights, Float32Array.from(weights));
    this.staging!.combine(weights.length, this.#weights, this.grad!);
  }

  #pass(
    samples: readonly Tokens[],
    normalisation: Normalisation,
    backward:
      | null
      | { target: GradientTarget; key: string; first: number; observe: Observer },
  ): SampleLosses {
    this.beforePass();
    const packed = packBatch(samples, { padding: this.options.padding ?? null });
    const batch = this.#batch.upload(this.dev, packed, rowSeeds(packed, normalisation));
    const { cu, cuWhole } = this.#batch;
    const observer = backward?.observe({ cu, cuWhole, samples: packed.S, first: backward.first }) ?? null;
    const work = () => {
      this.model.forward(batch);
      this.model.loss(batch, { backward: backward !== null });
      if (backward) this.model.backward(batch, new AdapterGradients(this.dev, backward.target), observer);
    };
    // An observer may keep books of its own, which a replay would not.
    if (observer) work();
    else this.#graphs.run(shapeKey(backward?.key ?? "evaluate", batch), work);
    return this.#losses(packed);
  }

  #losses(packed: PackedBatch): SampleLosses {
    const { S, R, rowOffsets, labels } = packed;
    segmentSum(this.dev, S, { rowOffsets: this.#batch.rowOffsets, values: this.model.losses, out: this.#sums });
    const sums = new Float64Array(S);
    download(this.dev, sums, this.#sums);
    const argmax = new Int32Array(R);
    if (R > 0) download(this.dev, argmax, this.model.argmax);
    const tokens: number[] = [], exact: boolean[] = [];
    for (let i = 0; i < S; i++) {
      const from = rowOffsets[i]!, to = rowOffsets[i + 1]!;
      tokens.push(to - from);
      let all = true;
      for (let row = from; row < to; row++) all &&= argmax[row] === labels[row];
      exact.push(all);
    }
    return { sums, tokens, exact };
  }

  [Symbol.dispose](): void {
    this.#graphs[Symbol.dispose]();
    this.arena[Symbol.dispose]();
    this.hostArena[Symbol.dispose]();
  }
}

/** What the operators of a pass depend on beside the contents of device memory. */
function shapeKey(kind: string, { T, R, segments: { count, maxLength, kvLens } }: DeviceBatch): string {
  return `${kind} ${T} ${R} ${count} ${maxLength} ${kvLens !== null}`;
}

/** Splits samples, in order, into micro-batches that the limits can hold. */
export function* microBatches<Sample extends Tokens>(
  samples: readonly Sample[],
  limits: Limits,
  padding: { id: number } | null = null,
): Generator<{ first: number; part: readonly Sample[] }> {
  let first = 0;
  while (first < samples.length) {
    let end = first, tokens = 0, rows = 0, longest = 0;
    for (; end < samples.length && end - first < limits.segments; end++) {
      const { ids } = samples[end]!;
      longest = Math.max(longest, ids.length);
      tokens = padding ? longest * (end - first + 1) : tokens + ids.length;
      rows += labelledTokens(samples[end]!);
      if (end > first && (tokens > limits.tokens || rows > limits.rows)) break;
    }
    yield { first, part: samples.slice(first, end) };
    first = end;
  }
}

/** Whether any batch that a BatchCursor can make of the samples goes through the model at once. */
export function fitsOnePass(
  samples: readonly Tokens[],
  limits: Limits,
  batches: { batchSize: number; padded: boolean },
): boolean {
  const { tokens, rows, segments } = limitsFor(samples, [], batches);
  return tokens <= limits.tokens && rows <= limits.rows && segments <= limits.segments;
}

/**
 * Limits that hold any batch that a BatchCursor can make of the training samples, and any single one of the others. A batch that
 * the end of an epoch falls into is completed from the next epoch, so a sample may be in it twice, or more often when there
 * are fewer samples than a batch has.
 * @param length tokens of the longest sample when every sample is padded to it, else null
 */
export function limitsFor(
  training: readonly Tokens[],
  others: readonly Tokens[],
  { batchSize, padded }: { batchSize: number; padded: boolean },
): Limits {
  const repeats = training.length % batchSize === 0 ? 1 : 1 + Math.ceil(batchSize / training.length);
  const largest = (values: number[], count: number) => {
    let sum = 0, left = count;
    for (const value of values.sort((a, b) => b - a)) {
      const times = Math.min(repeats, left);
      sum += times * value;
      left -= times;
    }
    return sum;
  };
  const longest = (samples: readonly Tokens[]) => samples.reduce((max, { ids }) => Math.max(max, ids.length), 1);
  const all = Math.max(longest(training), longest(others));
  const tokens = padded ? batchSize * all : largest(training.map(({ ids }) => ids.length), batchSize);
  return {
    tokens: Math.max(tokens, all),
    rows: others.reduce(
      (most, sample) => Math.max(most, labelledTokens(sample)),
      Math.max(1, largest(training.map(labelledTokens), batchSize)),
    ),
    segments: batchSize,
    positions: all,
  };
}
