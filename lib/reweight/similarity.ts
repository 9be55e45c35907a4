/**
 * How much a training sample's gradient points where the validation set's does (paper, equations 9–18; algorithms §1, §5).
 *
 * A similarity watches two kinds of backward passes through sinks, keeps the validation side between refreshes (with an
 * exponential moving average), and answers u [n] for the training samples of a batch.
 */
import type { Device, Tensor } from "../../ffi/device.ts";
import { adamPrecondition, combine, download, type Pieces, rowDots, segmentOuter, upload } from "../../ffi/operators.ts";
import type { Decoder, GradientSink } from "../model/decoder.ts";
import type { Linear } from "../model/linear.ts";
import type { Adam } from "../optim/adam.ts";
import type { Arena } from "../tensor/arena.ts";
import type { Gradients } from "../train/staging.ts";

/** The segments of the micro-batch that a sink observes. */
export interface Observed {
  readonly cu: Tensor; // i32 [S+1]
  readonly cuWhole: Tensor; // i32 [2]
  readonly samples: number; // S
  /** Index of the first sample of the micro-batch within the whole batch. */
  readonly first: number;
}

/** What training needs from any similarity. */
export interface Similarity {
  /** Watches a training micro-batch, seeded with unit per-sample losses; null when the staged gradients say it all. */
  observeTraining(observed: Observed): GradientSink | null;
  /** Watches one micro-batch of a validation batch. */
  observeValidation(observed: Observed): GradientSink | null;
  /** Ends a validation batch of `samples` samples whose summed gradient is the first row [P] of `gradient`. */
  refresh(gradient: Tensor | Pieces, samples: number): void;
  /** Similarities of the n staged samples. `tokens`: labelled tokens of each. */
  similarities(n: number, tokens: readonly number[]): Float64Array<ArrayBuffer>;
  /** Whether it is identically 0 while B = 0, so that the first step must be a plain one (algorithms §5.6). */
  readonly needsPlainStart: boolean;
  /** Whether a validation batch has been seen. */
  readonly ready: boolean;
  /** Copies of what it keeps between batches, by name, for a checkpoint; nothing before the first refresh. */
  save(): SimilarityState;
  /**
   * Continues from what `save` gave.
   * @returns false, unchanged, when that is of another kind or size
   */
  restore(state: SimilarityState): boolean;
}

/** What a similarity keeps between batches. */
export type SimilarityState = ReadonlyMap<string, Float32Array<ArrayBuffer>>;

/** Which matrices take part in the similarity; training is not restricted by it. */
export type Modules = "all" | "attention" | "mlp";

/** Columns of a flat vector that belong to the chosen modules: attention comes first in it. */
function moduleColumns(modules: Modules, attention: number, total: number): { first: number; count: number } {
  if (modules === "attention") return { first: 0, count: attention };
  if (modules === "mlp") return { first: attention, count: total - attention };
  return { first: 0, count: total };
}

/** Inner products divided by both norms. */
function cosines(dots: Float64Array<ArrayBuffer>, squares: Float64Array, square: number): Float64Array<ArrayBuffer> {
  return dots.map((dot, i) => dot === 0 ? 0 : dot / (Math.sqrt(squares[i]!) * Math.sqrt(square)));
}

/** u = ⟨V, f_i⟩ over feature rows f [n, F] against the cached validation feature V [F] (an EMA over refreshes). */
class CachedFeature {
  readonly V: Tensor; // [1,F]
  readonly #one: Tensor;
  readonly #sums: Tensor; // f64 [n]
  ready = false;

  constructor(readonly dev: Device, arena: Arena, size: number, samples: number, readonly ema: number) {
    this.V = arena.reserve("reweighting", 1, size);
    this.#one = arena.reserve("workspace", 1, 1);
    this.#sums = arena.reserve("workspace", 1, samples, { dtype: "f64" });
  }

  /** V ← ema · V + (1 − ema) · feature; the first one is taken whole. */
  update(feature: Tensor | Pieces): void {
    const keep = this.ready ? this.ema : 0;
    upload(this.dev, this.#one, Float32Array.of(1 - keep));
    combine(this.dev, 1, { weights: this.#one, x: feature, y: this.V, beta: keep });
    this.ready = true;
  }

  save(): SimilarityState {
    const V = new Float32Array(this.V.cols);
    if (this.ready) download(this.dev, V, this.V);
    return new Map(this.ready ? [["V", V]] : []);
  }

  restore(state: SimilarityState): boolean {
    const V = state.get("V");
    if (V && V.length !== this.V.cols || !V && state.size > 0) return false;
    if (V) upload(this.dev, this.V, V);
    this.ready = V !== undefined;
    return true;
  }

  /** Inner products of n rows with `direction`, divided by both norms for `cosine`. */
  dots(n: number, rows: Tensor, direction: Tensor, normalize: "none" | "cosine"): Float64Array<ArrayBuffer> {
    const dots = rowDots(this.dev, n, { a: rows, b: direction, out: this.#sums });
    if (normalize === "none") return dots;
    return cosines(dots, rowDots(this.dev, n, { a: rows, b: null, out: this.#sums }), this.square(direction));
  }

  /** Squared norm of a vector. */
  square(vector: Tensor): number {
    return rowDots(this.dev, 1, { a: vector, b: null, out: this.#sums })[0]!;
  }
}

/**
 * `exact` and `exact-adam`: u_i = ⟨V, ∇ℓ_i⟩ over all adapter parameters, from the staged per-sample gradients;
 * for exact-adam V is divided by √v̂ + ε of the optimizer at each use (algorithms §5.1).
 */
export class ExactSimilarity implements Similarity {
  readonly needsPlainStart = false;
  readonly #feature: CachedFeature;
  readonly #preconditioned: { out: Tensor; v: Tensor } | null;
  readonly #columns: { first: number; count: number };

  constructor(
    readonly dev: Device,
    arena: Arena,
    model: Decoder,
    readonly options: {
      staging: Gradients;
      ema: number;
      modules: Modules;
      normalize: "none" | "cosine";
      adam: Adam | null;
    },
  ) {
    const P = model.parameters;
    this.#feature = new CachedFeature(dev, arena, P, options.staging.samples, options.ema);
    this.#columns = moduleColumns(options.modules, model.attentionParameters, P);
    const direction = () => arena.reserve("reweighting", 1, P);
    const out = options.adam ? direction() : null;
    this.#preconditioned = out ? { out, v: options.adam!.options.placement === "host" ? direction() : out } : null;
  }

  get ready(): boolean {
    return this.#feature.ready;
  }

  /** The cached validation gradient V [1,P]. */
  get validationGradient(): Tensor {
    return this.#feature.V;
  }

  observeTraining(): null {
    return null;
  }

  observeValidation(): null {
    return null;
  }

  refresh(gradient: Tensor | Pieces): void {
    this.#feature.update(gradient);
  }

  similarities(n: number): Float64Array<ArrayBuffer> {
    const { first, count } = this.#columns;
    const { staging, normalize } = this.options;
    const direction = this.#direction();
    const dots = staging.dots(n, direction, this.#columns);
    if (normalize === "none") return dots;
    return cosines(dots, staging.squares(n, this.#columns), this.#feature.square(direction.columns(first, count)));
  }

  save(): SimilarityState {
    return this.#feature.save();
  }

  restore(state: SimilarityState): boolean {
    return this.#feature.restore(state);
  }

  #direction(): Tensor {
    const { adam } = this.options;
    const V = this.#feature.V;
    if (!adam || adam.step === 0 || !this.#preconditioned) return V;
    const { out, v } = this.#preconditioned;
    adamPrecondition(this.dev, { g: V, v: adam.secondMoment(v), bias2: adam.bias2, eps: adam.options.eps, out });
    return out;
  }
}

/**
 * `core`: the gradient of a hypothetical identity C [r,r] between A and B, dℓ/dC = (dℓ/dh)ᵀ h per adapted matrix:
 * the token-exact form of what the paper pools (algorithms §1.3, §5.2). 0 while B = 0.
 */
export class CoreSimilarity implements Similarity {
  readonly needsPlainStart = true;
  readonly #feature: CachedFeature;
  readonly #staging: Tensor; // [n,F]
  readonly #validation: Tensor; // [1,F]
  readonly #offsets = new Map<Linear, number>();
  readonly #columns: { first: number; count: number };

  constructor(
    readonly dev: Device,
    arena: Arena,
    model: Decoder,
    readonly options: { samples: number; ema: number; modules: Modules; normalize: "none" | "cosine" },
  ) {
    let size = 0, attention = 0;
    for (const linear of model.linears()) {
      this.#offsets.set(linear, size);
      for (const { rank } of linear.adapters) size += rank * rank;
      if (linear.kind === "attention") attention = size;
    }
    this.#staging = arena.reserve("reweighting", options.samples, size);
    this.#validation = arena.reserve("reweighting", 1, size);
    this.#feature = new CachedFeature(dev, arena, size, options.samples, options.ema);
    this.#columns = moduleColumns(options.modules, attention, size);
  }

  get ready(): boolean {
    return this.#feature.ready;
  }

  observeTraining({ cu, samples, first }: Observed): GradientSink {
    return this.#sink({ out: this.#staging.rowRange(first, samples), cu, segments: samples, beta: 0 });
  }

  observeValidation({ cuWhole, first }: Observed): GradientSink {
    return this.#sink({ out: this.#validation, cu: cuWhole, segments: 1, beta: first === 0 ? 0 : 1 });
  }

  refresh(): void {
    this.#feature.update(this.#validation);
  }

  similarities(n: number): Float64Array<ArrayBuffer> {
    const { first, count } = this.#columns;
    return this.#feature.dots(
      n,
      this.#staging.columns(first, count),
      this.#feature.V.columns(first, count),
      this.options.normalize,
    );
  }

  save(): SimilarityState {
    return this.#feature.save();
  }

  restore(state: SimilarityState): boolean {
    return this.#feature.restore(state);
  }

  #sink({ out, cu, segments, beta }: { out: Tensor; cu: Tensor; segments: number; beta: 0 | 1 }): GradientSink {
    return {
      linear: (linear, _T, { h, gh }) => {
        let offset = this.#offsets.get(linear)!, column = 0;
        for (const { rank } of linear.adapters) {
          const target = { out: out.columns(offset, 1), stride: out.ld, beta };
          const [a, b] = [gh.columns(column, rank), h!.columns(column, rank)];
          segmentOuter(this.dev, segments, { cu, p: rank, q: rank, a, b, ...target });
          offset += rank * rank;
          column += rank;
        }
      },
    };
  }
}
