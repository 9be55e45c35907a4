/**
 * The Llama family, and OPT: a forward and a backward pass over one packed stream, written out in full.
 *
 *   x = embedding[ids]                                                        OPT: + places[positions]
 *   L times:  x += o(attention(rope(q(n), k(n)), v(n))),  n = norm(x)         OPT: no rope
 *             x += down(silu(gate(n)) · up(n)),           n = norm(x)         OPT: down(relu(up(n)))
 *   loss = cross-entropy(head · norm(x)) on the rows that carry a label
 *
 * norm is RMSNorm; in OPT LayerNorm (norms.ts). Biases, ReLU and what is added to x are part of the products.
 * Letters: T rows of the stream, R labelled rows, d width, f MLP width, H query heads, K key/value heads, D head size,
 * V vocabulary, L layers, r rank. The base is frozen: the backward pass hands what adapter gradients are made of to a sink, which
 * forms them (summed, or one per sample).
 */
import { type Device, Tensor } from "../../ffi/device.ts";
import * as op from "../../ffi/operators.ts";
import type { Arena } from "../tensor/arena.ts";
import { KEEP_ALL, keepH, type LayerActivations, type Recompute, reserveActivations } from "./activations.ts";
import { type AdapterOf, Linear, paddedWidth, roomBehind } from "./linear.ts";
import type { ModelConfig } from "./config.ts";
import { NAMES } from "./names.ts";
import { LayerNorm, type Norm, type NormedInput, RmsNorm } from "./norms.ts";

/** The largest batch that the buffers must hold. */
export interface Limits {
  readonly tokens: number; // T
  readonly rows: number; // R
  readonly segments: number; // S
  readonly positions: number; // longest segment
}

interface Layer {
  norm1: Norm;
  qkv: Linear;
  o: Linear;
  norm2: Norm;
  gateUp: Linear; // gate and up; in OPT fc1
  down: Linear; // in OPT fc2
}

/** Rows of OPT's table of positions before that of the first one; no position reads them. */
const POSITION_OFFSET = 2;

/** A packed batch in device memory. */
export interface DeviceBatch {
  readonly T: number;
  readonly R: number;
  readonly segments: op.Segments;
  readonly ids: Tensor; // i32 [T]
  readonly positions: Tensor; // i32 [T]
  readonly rows: Tensor; // i32 [R] rows of the stream that carry a label
  readonly labels: Tensor; // i32 [R]
  readonly seeds: Tensor; // f32 [R] dL/d(loss of the row)
}

/** What the gradients of a linear layer's adapters are made of. */
export interface LinearTensors {
  /** The layer's input [T,dIn], or with `norm` what its norm makes that input of; null when dL/dA is formed already. */
  readonly x: NormedInput | null;
  readonly h: Tensor | null; // [T,r] = x Aᵀ
  readonly dy: Tensor | null; // [T,dOut] dL/dy; null when dL/dB is formed already
  readonly gh: Tensor; // [T,r] dL/dh
}

/** Receives, layer by layer and last layer first, what adapter gradients are made of. */
export interface GradientSink {
  linear(linear: Linear, T: number, tensors: LinearTensors): void;
}

/** A sink that forms the gradients of the adapters. */
export interface AdapterSink extends GradientSink {
  /**
   * The backward pass of y = silu(gate) · up, in place on gateUp [T,2f] from dy [T,f], which may be lost, together with dL/dA of
   * `down`, whose input is y, and dL/dB of `gateUp`.
   */
  swiglu(
    layer: { readonly gateUp: Linear; readonly down: Linear },
    T: number,
    tensors: { f: number; gateUp: Tensor; dy: Tensor; gh: Tensor; h: Tensor | null },
  ): void;
  /** The same of y = relu(x): dL/dx takes the place of y [T,f], and `gateUp` is the layer that made x. */
  relu(
    layer: { readonly gateUp: Linear; readonly down: Linear },
    T: number,
    tensors: { f: number; y: Tensor; dy: Tensor; gh: Tensor; h: Tensor | null },
  ): void;
}

/**
 * Bytes for the logits of one chunk of the head's rows: as many as have room in `free` bytes of scratch, or a number of rows that is
 * worth memory of its own. On the CPU every chunk packs the head's weights anew. On a GPU a chunk reads them twice, which below 256 rows
 * takes longer than its products: in chunks of 100 rows the head of Baichuan2-7B took 12.8 ms of a step of 4 x 400 tokens, in chunks of
 * 400 5.2 (H100, `bench --parts`).
 */
function headWork(dev: Device, { R, V, free }: { R: number; V: number; free: number }): number {
  const row = op.headWorkBytes(dev, 1, V);
  const worthwhile = dev.backend === "cuda" ? 512 : Math.max(16, Math.floor(48 * 2 ** 20 / row));
  return row * Math.ceil(R / Math.ceil(R / Math.max(worthwhile, Math.floor(free / row))));
}

/** A decoder with LoRA adapters, its weights and its activation buffers in one arena. */
export class Decoder {
  readonly layers: Layer[] = [];
  readonly embedding: Tensor; // [V,d]
  readonly head: Tensor; // [V,d]; the embedding itself when tied
  readonly positionEmbedding: Tensor | null; // [maxPositions + POSITION_OFFSET,d] learned positions; null where they are rotary
  readonly finalNorm: Norm;
  readonly rope: { readonly cos: Tensor; readonly sin: Tensor } | null; // [positions,D/2] each; null where positions are learned
  readonly losses: Tensor; // f32 [R]
  readonly argmax: Tensor; // i32 [R]
  /** Number of adapter parameters, P. */
  readonly parameters: number;
  /** Parameters before this index belong to attention matrices, the others to MLP matrices. */
  readonly attentionParameters: number;

  readonly #saved: readonly LayerActivations[];
  readonly #behind: { from: number; to: number };
  readonly #last: Tensor; // [T,d] residual stream after the last block
  readonly #stats: Tensor; // [T,1 or 2] of the last norm
  readonly #normed: Tensor; // [T,d+r] output of a norm, then h
  readonly #act: Tensor; // [T,f+r] silu(gate)·up, then h of down
  readonly #hidden: Tensor; // [R,d] labelled rows, then their gradient
  readonly #headWork: Tensor;
  readonly #backward: { dx: Tensor; gxh: Tensor; dqkv: readonly Tensor[]; work: Tensor } | null;

  /**
   * @param arena where weights and buffers are reserved; it may be allocated later, or never (a dry run)
   * @param embeddingArena where the embedding is, unless it is the head as well
   * @param purpose "train" keeps every layer's activations, "evaluate" reuses one layer's
   * @param recompute what "train" does not keep but computes again
   */
  constructor(
    readonly dev: Device,
    readonly config: ModelConfig,
    { arena, embeddingArena = arena, limits, adapterOf, weightDtype, purpose, recompute = KEEP_ALL }: {
      arena: Arena;
      embeddingArena?: Arena;
      limits: Limits;
      adapterOf: AdapterOf;
      weightDtype: "f32" | "bf16";
      purpose: "train" | "evaluate";
      recompute?: Recompute;
    },
  ) {
    const { family, d, f, L, H, K, D, V } = config;
    const { tokens: T, rows: R } = limits;
    const dtype = dev.activationDtype;
    const train = purpose === "train";
    const names = NAMES[family];
    const SomeNorm = family === "opt" ? LayerNorm : RmsNorm;

    // Weights. θ holds all attention adapters first, so that each half is one range of it.
    this.embedding = (config.tied ? arena : embeddingArena).reserve("weights", V, d, { dtype: weightDtype });
    this.head = config.tied ? this.embedding : arena.reserve("weights", V, d, { dtype: weightDtype });
    if (names.positions && limits.positions > config.maxPositions) {
      throw new RangeError(`Cannot hold ${limits.positions} positions: the model has learned ${config.maxPositions}`);
    }
    this.positionEmbedding = names.positions
      ? arena.reserve("weights", config.maxPositions + POSITION_OFFSET, d, { dtype: weightDtype })
      : null;
    this.finalNorm = new SomeNorm(arena, d);
    let theta = 0;
    const linear = (
      kind: "attention" | "mlp",
      dIn: number,
      matrices: { name: string; dOut: number }[],
      { hasBias, relu = false }: { hasBias: boolean; relu?: boolean },
    ) => {
      const options = { arena, adapterOf, thetaOffset: theta, weightDtype, activationDtype: dtype, hasBias, relu };
      const layer = new Linear(kind, dIn, matrices, options);
      theta += layer.thetaLength;
      return layer;
    };
    const attention = Array.from({ length: L }, (_, l) => {
      const name = (matrix: string) => `${names.block(l)}.${matrix}`;
      const [q, k, v] = names.qkv;
      const qkv = [{ name: name(q), dOut: H * D }, { name: name(k), dOut: K * D }, { name: name(v), dOut: K * D }];
      return {
        qkv: linear("attention", d, qkv, { hasBias: config.qkvBias }),
        o: linear("attention", H * D, [{ name: name(names.o), dOut: d }], { hasBias: config.outputBias }),
      };
    });
    this.attentionParameters = theta;
    for (let l = 0; l < L; l++) {
      const named = (matrix: string, dOut: number) => ({ name: `${names.block(l)}.${matrix}`, dOut });
      const hasBias = config.mlpBias;
      this.layers.push({
        norm1: new SomeNorm(arena, d),
        norm2: new SomeNorm(arena, d),
        ...attention[l]!,
        gateUp: linear("mlp", d, names.up.map((matrix) => named(matrix, f)), { hasBias, relu: family === "opt" }),
        down: linear("mlp", f, [named(names.down, d)], { hasBias }),
      });
    }
    this.parameters = theta;

    // Activations: kept per layer to train, one set for all layers to evaluate.
    const buffer = (rows: number, cols: number) => arena.reserve("activations", rows, cols, { dtype });
    const perRow = (cols = 1) => arena.reserve("activations", T, cols);
    const widestOf = (name: "qkv" | "o" | "gateUp" | "down") =>
      this.layers.reduce((most, each) => each[name].rank > most[name].rank ? each : most)[name];
    const widestLayer = { qkv: widestOf("qkv"), o: widestOf("o"), gateUp: widestOf("gateUp"), down: widestOf("down") };
    const kept = train ? this.layers : [widestLayer];
    const shape = { T, d, f, H, K, D, stats: SomeNorm.STATS, gated: family === "llama", dtype };
    this.#saved = reserveActivations(arena, kept, shape, { recompute: train ? recompute : KEEP_ALL, keepH: train });
    this.losses = arena.reserve("activations", 1, R);
    this.argmax = arena.reserve("activations", 1, R, { dtype: "i32" });
    const from = arena.bytes;
    this.#last = buffer(T, d);
    this.#stats = perRow(SomeNorm.STATS);

    // Scratch. `act` and `gxh` are the same memory, and the logits lie over all of it: each is done with when the other is needed. So is
    // the head's input when its gradient is written over it.
    const widest = (pick: (layer: Layer) => Linear[]) =>
      Math.max(...this.layers.flatMap((layer) => pick(layer).map((l) => l.width)));
    const beside = (width: number) => arena.reserve("workspace", T, width, { dtype, ld: paddedWidth(width, dtype) });
    const behind = (cols: number, layers: readonly Linear[]) =>
      roomBehind(cols, Math.max(...layers.map(({ rank }) => rank)), dtype);
    const lddx = behind(d, this.layers.flatMap(({ o, down }) => [o, down]));
    const gradient = () => train ? arena.reserve("workspace", T, d, { dtype, ld: lddx }) : null;
    // Where memory counts more than time, the labelled rows lie where dL/dx will.
    const recomputes = this.#saved.some(({ again }) => again.mlp);
    const end = arena.bytes;
    const early = recomputes && R <= T ? gradient() : null;
    this.#hidden = early ? new Tensor(arena, early.byteOffset, R, d, dtype) : buffer(R, d);
    this.#normed = beside(widest(({ qkv, gateUp }) => [qkv, gateUp]));
    // The backward pass needs `normed` only to form a norm again.
    const formsNorms = family === "opt" || recomputes;
    this.#behind = { from, to: early ? end : formsNorms ? this.#normed.byteOffset : arena.bytes };
    const dx = early ?? gradient();
    const gxh = beside(widest(({ qkv, o, gateUp, down }) => train ? [qkv, o, gateUp, down] : [down]));
    this.#act = gxh;
    // dL/d(q, k, v) lies over gate and up, which are done with by then, if it has room there.
    const width = (H + 2 * K) * D, ld = behind(width, this.layers.map(({ qkv }) => qkv));
    const fits = this.#saved.every(({ gateUp }) => gateUp.ld >= ld);
    const own = train && !fits ? arena.reserve("workspace", T, width, { dtype, ld }) : null;
    const dqkv = this.#saved.map(({ gateUp }) => own ?? new Tensor(arena, gateUp.byteOffset, T, width, dtype, ld));
    const { byteOffset } = this.#normed;
    // Logits of as many rows on every rung, so that every rung gives the same bits: as if dL/dx always had room for some.
    const bytes = (tensor: Tensor | null) => tensor ? arena.alignedBytes(tensor.rows, tensor.ld, dtype) : 0;
    const work = headWork(dev, { R, V, free: bytes(this.#normed) + bytes(dx) + bytes(gxh) });
    const room = arena.bytes - byteOffset;
    if (work > room) arena.reserve("workspace", 1, Math.ceil((work - room) / 4));
    this.#headWork = arena.overlay(byteOffset, 1, Math.ceil(work / 4));
    this.#backward = dx && { dx, gxh, dqkv, work: arena.reserve("workspace", T, H) };
    const angles = () => arena.reserve("weights", limits.positions, D / 2);
    this.rope = names.positions ? null : { cos: angles(), sin: angles() };
  }

  /** Every linear layer, in the order of θ. */
  linears(): Linear[] {
    return [...this.layers.flatMap(({ qkv, o }) => [qkv, o]), ...this.layers.flatMap(({ gateUp, down }) => [gateUp, down])];
  }

  /** Makes θ [P] the adapters' storage. */
  bind(theta: Tensor): void {
    for (const layer of this.linears()) layer.bind(theta);
  }

  /** Carries a changed θ into the weights that the products read. */
  refresh(): void {
    op.loraRefresh(this.dev, this.linears().flatMap(({ lora }) => lora ?? []), this.dev.activationDtype);
  }

  /**
   * Where layer l's own activations lie in the arena; free once the backward pass is past the layer. Behind the last layer: what the
   * final norm and the head leave.
   */
  region(l: number): { from: number; to: number } {
    return this.#saved[l] ?? this.#behind;
  }

  #activations(l: number): LayerActivations {
    return this.#saved[this.#saved.length === 1 ? 0 : l]!;
  }

  /** Runs the blocks over a batch and leaves the normed labelled rows ready for `loss`. */
  forward(batch: DeviceBatch): void {
    const { dev, config } = this;
    const { T, positions } = batch;
    const places = this.positionEmbedding &&
      { table: this.positionEmbedding.rowRange(POSITION_OFFSET, config.maxPositions), positions };
    op.embeddingForward(dev, T, { table: this.embedding, ids: batch.ids, places, out: this.#activations(0).x });
    this.layers.forEach((layer, l) => {
      const a = this.#activations(l);
      this.#norm(T, layer.norm1, a.x, a.stats1);
      this.#qkv(batch, layer, a, { keep: !a.again.qkv });
      this.#attention(batch, layer, a);
      this.#norm(T, layer.norm2, a.mid, a.stats2);
      this.#gateUp(T, layer, a, { keep: !a.again.mlp });
      const act = this.#activate(T, a);
      const next = l + 1 < this.layers.length ? this.#activations(l + 1).x : this.#last;
      layer.down.forward(dev, T, act, next, a.mid);
      keepH(dev, T, layer.down, act, a.h.down);
    });
    this.#norm(T, this.finalNorm, this.#last, this.#stats);
    op.gatherRows(dev, batch.R, { x: this.#normed, rows: batch.rows, out: this.#hidden });
  }

  /** norm(x) into `normed`. */
  #norm(T: number, norm: Norm, x: Tensor, stats: Tensor): void {
    norm.forward(this.dev, T, { x, eps: this.config.eps, y: this.#normed, stats });
  }

  /** rope(q), rope(k) and v of `normed`; `keep`: also their h. */
  #qkv({ T, positions }: DeviceBatch, layer: Layer, a: LayerActivations, { keep }: { keep: boolean }): void {
    const { dev } = this;
    const { H, K, D } = this.config;
    layer.qkv.forward(dev, T, this.#normed, a.qkv);
    if (keep) keepH(dev, T, layer.qkv, this.#normed, a.h.qkv);
    // The query and key heads lie side by side in [T,(H+2K)D].
    if (this.rope) op.rope(dev, T, { heads: H + K, D, x: a.qkv, ...this.rope, positions });
  }

  /** mid = x + o(attention(q, k, v)). */
  #attention(batch: DeviceBatch, layer: Layer, a: LayerActivations): void {
    const { dev } = this;
    const { T } = batch;
    const { H, K, D } = this.config;
    const { q, k, v } = this.#split(a.qkv);
    const scale = 1 / Math.sqrt(D);
    op.attentionForward(dev, T, batch.segments, { H, K, D, scale, q, k, v, out: a.attention, lse: a.lse });
    layer.o.forward(dev, T, a.attention, a.mid, a.x);
  }

  /** gate and up of `normed`, or ReLU of up; `keep`: also their h. */
  #gateUp(T: number, layer: Layer, a: LayerActivations, { keep }: { keep: boolean }): void {
    layer.gateUp.forward(this.dev, T, this.#normed, a.gateUp);
    if (keep) keepH(this.dev, T, layer.gateUp, this.#normed, a.h.gateUp);
  }

  /** The input of down: silu(gate) · up, or ReLU of up, which is there already. */
  #activate(T: number, a: LayerActivations): Tensor {
    if (!this.#gated) return a.gateUp;
    op.swigluForward(this.dev, T, { f: this.config.f, gateUp: a.gateUp, y: this.#act });
    return this.#act;
  }

  get #gated(): boolean {
    return this.config.family === "llama";
  }

  /** Computes again what layer l did not keep, in the buffers that all layers share. */
  #restore(batch: DeviceBatch, layer: Layer, a: LayerActivations): void {
    const { T } = batch;
    if (a.again.qkv) {
      this.#norm(T, layer.norm1, a.x, a.stats1);
      this.#qkv(batch, layer, a, { keep: true });
    }
    if (a.again.attention) this.#attention(batch, layer, a);
    this.#norm(T, layer.norm2, a.mid, a.stats2);
    this.#gateUp(T, layer, a, { keep: true });
  }

  /**
   * Per-row losses into `losses`, predictions into `argmax`; with `backward`, also the gradient that `backward` starts from, over
   * what `forward` has left: once a forward pass.
   */
  loss(batch: DeviceBatch, { backward = false }: { backward?: boolean } = {}): void {
    op.headCrossEntropy(this.dev, batch.R, {
      x: this.#hidden,
      W: this.head,
      labels: batch.labels,
      seeds: batch.seeds,
      losses: this.losses,
      argmax: this.argmax,
      dx: backward ? this.#hidden : null,
      work: this.#headWork,
    });
  }

  get #training() {
    if (!this.#backward) throw new Error("Cannot run a backward pass: the model was laid out to evaluate");
    return this.#backward;
  }

  /**
   * Walks back through the blocks after `loss(batch, { backward: true })`.
   * @param adapters is handed every linear layer, to form the gradients
   * @param observer is handed every linear layer behind it
   */
  backward(batch: DeviceBatch, adapters: AdapterSink, observer: GradientSink | null = null): void {
    const { dev, config } = this;
    const { T, R } = batch;
    const { f, H, K, D } = config;
    const scale = 1 / Math.sqrt(D);
    const { dx, gxh, work } = this.#training; // dx: gradient of the residual stream
    const rope = this.rope && { ...this.rope, positions: batch.positions };
    const scratch = this.#normed;
    const hand = (linear: Linear, tensors: LinearTensors) => {
      adapters.linear(linear, T, tensors);
      observer?.linear(linear, T, tensors);
    };
    op.scatterRows(dev, R, T, { x: this.#hidden, rows: batch.rows, out: this.#normed });
    op.zero(dev, dx, T);
    this.finalNorm.backward(dev, T, { x: this.#last, stats: this.#stats, dy: this.#normed, dx, scratch: null });
    for (let l = config.L - 1; l >= 0; l--) {
      const layer = this.layers[l]!;
      const a = this.#activations(l);
      if (a.again.mlp) this.#restore(batch, layer, a);
      // x += down(silu(gate) · up), or down(relu(up))
      const ghDown = layer.down.backward(dev, T, dx, gxh);
      const sides = { f, dy: gxh.columns(0, f), gh: ghDown, h: a.h.gateUp };
      if (this.#gated) adapters.swiglu(layer, T, { gateUp: a.gateUp, ...sides });
      else adapters.relu(layer, T, { y: a.gateUp, ...sides });
      hand(layer.down, { x: null, h: a.h.down, dy: dx, gh: ghDown });
      const ghUp = layer.gateUp.backward(dev, T, a.gateUp, gxh);
      const normed2 = layer.norm2.backward(dev, T, { x: a.mid, stats: a.stats2, dy: gxh, dx, scratch });
      hand(layer.gateUp, { x: normed2, h: a.h.gateUp, dy: null, gh: ghUp });
      // x += o(attention(rope(q), rope(k), v))
      const ghO = layer.o.backward(dev, T, dx, gxh);
      const hO = a.attention.columns(layer.o.dIn, layer.o.rank);
      hand(layer.o, { x: { rows: a.attention, norm: null }, h: hO, dy: dx, gh: ghO });
      const { q, k, v } = this.#split(a.qkv);
      const dqkv = this.#training.dqkv[l]!;
      const { q: dq, k: dk, v: dv } = this.#split(dqkv);
      const gradients = { dout: gxh, dq, dk, dv, work, rope };
      op.attentionBackward(dev, T, batch.segments, { H, K, D, scale, q, k, v, out: a.attention, lse: a.lse, ...gradients });
      const ghQkv = layer.qkv.backward(dev, T, dqkv, gxh, { needDx: l > 0 });
      const normed1 = layer.norm1.backward(dev, T, { x: a.x, stats: a.stats1, dy: gxh, dx: l > 0 ? dx : null, scratch });
      hand(layer.qkv, { x: normed1, h: a.h.qkv, dy: dqkv, gh: ghQkv });
    }
  }

  #split(qkv: Tensor): { q: Tensor; k: Tensor; v: Tensor } {
    const { H, K, D } = this.config;
    return { q: qkv.columns(0, H * D), k: qkv.columns(H * D, K * D), v: qkv.columns((H + K) * D, K * D) };
  }
}
