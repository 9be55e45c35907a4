/**
 * The Llama family: a forward and a backward pass over one packed stream, written out in full.
 *
 *   x = embedding[ids]
 *   L times:  x += o(attention(rope(q(n), k(n)), v(n))),  n = rmsnorm(x)
 *             x += down(silu(gate(n)) · up(n)),           n = rmsnorm(x)
 *   loss = cross-entropy(head · rmsnorm(x)) on the rows that carry a label
 *
 * Letters: T rows of the stream, R labelled rows, d width, f MLP width, H query heads, K key/value heads, D head size,
 * V vocabulary, L layers, r rank. The base is frozen: the backward pass yields dL/dh and dL/dy of every linear layer and
 * hands them to a sink, which forms adapter gradients (summed, or one per sample).
 */
import { type Device, Tensor } from "../../ffi/device.ts";
import * as op from "../../ffi/operators.ts";
import type { Arena } from "../tensor/arena.ts";
import { KEEP_ALL, keepH, type LayerActivations, putH, type Recompute, reserveActivations } from "./activations.ts";
import { type AdapterOf, Linear, paddedWidth, roomBehind } from "./linear.ts";
import type { LlamaConfig } from "./config.ts";

/** The largest batch that the buffers must hold. */
export interface Limits {
  readonly tokens: number; // T
  readonly rows: number; // R
  readonly segments: number; // S
  readonly positions: number; // longest segment
}

interface Layer {
  norm1: Tensor; // [d]
  qkv: Linear;
  o: Linear;
  norm2: Tensor; // [d]
  gateUp: Linear;
  down: Linear;
}

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

/** Receives, layer by layer and last layer first, what adapter gradients are made of. */
export interface GradientSink {
  /** xh [T,dIn+r] = (x, h); dy [T,dOut]; gxh [T,dIn+r] = (dL/dx, dL/dh). */
  linear(linear: Linear, T: number, tensors: { xh: Tensor; dy: Tensor; gxh: Tensor }): void;
}

const HEAD_WORK_BYTES = 48 * 2 ** 20; // logits of one chunk of rows; every chunk packs the head's weights anew

/** A Llama model with LoRA adapters, its weights and its activation buffers in one arena. */
export class Llama {
  readonly layers: Layer[] = [];
  readonly embedding: Tensor; // [V,d]
  readonly head: Tensor; // [V,d]; the embedding itself when tied
  readonly finalNorm: Tensor; // [d]
  readonly cos: Tensor; // [positions,D/2]
  readonly sin: Tensor;
  readonly losses: Tensor; // f32 [R]
  readonly argmax: Tensor; // i32 [R]
  /** Number of adapter parameters, P. */
  readonly parameters: number;
  /** Parameters before this index belong to attention matrices, the others to MLP matrices. */
  readonly attentionParameters: number;

  readonly #saved: readonly LayerActivations[];
  readonly #delta: Tensor; // [T,d] what a block adds to the residual stream
  readonly #last: Tensor; // [T,d] residual stream after the last block
  readonly #rstd: Tensor; // [T]
  readonly #normed: Tensor; // [T,d]
  readonly #hidden: Tensor; // [R,d] labelled rows
  readonly #headWork: Tensor;
  readonly #backward: { dx: Tensor; gxh: Tensor; dqkv: Tensor; work: Tensor; dhidden: Tensor } | null;

  /**
   * @param arena where weights and buffers are reserved; it may be allocated later, or never (a dry run)
   * @param purpose "train" keeps every layer's activations, "evaluate" reuses one layer's
   * @param recompute what "train" does not keep but computes again
   */
  constructor(
    readonly dev: Device,
    readonly config: LlamaConfig,
    { arena, limits, adapterOf, weightDtype, purpose, recompute = KEEP_ALL }: {
      arena: Arena;
      limits: Limits;
      adapterOf: AdapterOf;
      weightDtype: "f32" | "bf16";
      purpose: "train" | "evaluate";
      recompute?: Recompute;
    },
  ) {
    const { d, f, L, H, K, D, V } = config;
    const { tokens: T, rows: R } = limits;
    const dtype = dev.activationDtype;
    const train = purpose === "train";

    // Weights. θ holds all attention adapters first, so that each half is one range of it.
    this.embedding = arena.reserve("weights", V, d, { dtype: weightDtype });
    this.head = config.tied ? this.embedding : arena.reserve("weights", V, d, { dtype: weightDtype });
    this.finalNorm = arena.reserve("weights", 1, d);
    let theta = 0;
    const linear = (kind: "attention" | "mlp", dIn: number, matrices: { name: string; dOut: number }[], hasBias: boolean) => {
      const options = { arena, adapterOf, thetaOffset: theta, weightDtype, activationDtype: dtype, hasBias };
      const layer = new Linear(kind, dIn, matrices, options);
      theta += layer.thetaLength;
      return layer;
    };
    const attention = Array.from({ length: L }, (_, l) => {
      const name = (matrix: string) => `model.layers.${l}.self_attn.${matrix}`;
      const qkv = [
        { name: name("q_proj"), dOut: H * D },
        { name: name("k_proj"), dOut: K * D },
        { name: name("v_proj"), dOut: K * D },
      ];
      return {
        qkv: linear("attention", d, qkv, config.qkvBias),
        o: linear("attention", H * D, [{ name: name("o_proj"), dOut: d }], config.outputBias),
      };
    });
    this.attentionParameters = theta;
    for (let l = 0; l < L; l++) {
      const name = (matrix: string) => `model.layers.${l}.mlp.${matrix}`;
      this.layers.push({
        norm1: arena.reserve("weights", 1, d),
        norm2: arena.reserve("weights", 1, d),
        ...attention[l]!,
        gateUp: linear("mlp", d, [{ name: name("gate_proj"), dOut: f }, { name: name("up_proj"), dOut: f }], config.mlpBias),
        down: linear("mlp", f, [{ name: name("down_proj"), dOut: d }], config.mlpBias),
      });
    }
    this.parameters = theta;

    // Activations: kept per layer to train, one set for all layers to evaluate.
    const buffer = (rows: number, cols: number) => arena.reserve("activations", rows, cols, { dtype });
    const perRow = (cols = 1) => arena.reserve("activations", T, cols);
    const kept = train ? this.layers : this.layers.slice(0, 1);
    this.#saved = reserveActivations(arena, kept, { T, d, f, H, K, D, dtype }, train ? recompute : KEEP_ALL);
    this.#last = buffer(T, d);
    this.#rstd = perRow();
    this.#hidden = buffer(R, d);
    this.losses = arena.reserve("activations", 1, R);
    this.argmax = arena.reserve("activations", 1, R, { dtype: "i32" });

    // Scratch. The forward pass is done with `delta` and `normed` when the backward pass needs `dx` and `gxh`.
    const width = Math.max(...this.layers.flatMap(({ qkv, o, gateUp, down }) => [qkv, o, gateUp, down].map((l) => l.width)));
    const scratch = (rows: number, cols: number) => arena.reserve("workspace", rows, cols, { dtype });
    const behind = (cols: number, layers: readonly Linear[]) =>
      arena.reserve("workspace", T, cols, { dtype, ld: roomBehind(cols, Math.max(...layers.map(({ rank }) => rank)), dtype) });
    const dx = behind(d, this.layers.flatMap(({ o, down }) => [o, down]));
    this.#delta = new Tensor(arena, dx.byteOffset, T, d, dtype);
    this.#normed = scratch(T, d);
    const chunk = Math.min(R, Math.max(16, Math.floor(HEAD_WORK_BYTES / op.headWorkBytes(dev, 1, V))));
    this.#headWork = arena.reserve("workspace", 1, Math.ceil(op.headWorkBytes(dev, chunk, V) / 4));
    this.#backward = train
      ? {
        dx,
        gxh: scratch(T, paddedWidth(width, dtype)),
        dqkv: behind((H + 2 * K) * D, this.layers.map(({ qkv }) => qkv)),
        work: arena.reserve("workspace", T, H),
        dhidden: buffer(R, d),
      }
      : null;
    this.cos = arena.reserve("weights", limits.positions, D / 2);
    this.sin = arena.reserve("weights", limits.positions, D / 2);
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
    for (const layer of this.linears()) layer.refresh(this.dev, this.dev.activationDtype);
  }

  /** Where layer l's own activations lie in the arena; free once the backward pass is past the layer. */
  region(l: number): { from: number; to: number } {
    return this.#saved[l]!;
  }

  #activations(l: number): LayerActivations {
    return this.#saved[this.#saved.length === 1 ? 0 : l]!;
  }

  /** Runs the blocks over a batch and leaves the normed labelled rows ready for `loss`. */
  forward(batch: DeviceBatch): void {
    const { dev, config } = this;
    const { T } = batch;
    const { f, eps } = config;
    op.embeddingForward(dev, T, { table: this.embedding, ids: batch.ids, out: this.#activations(0).x });
    this.layers.forEach((layer, l) => {
      const a = this.#activations(l);
      // x += o(attention(rope(q), rope(k), v))
      const before = l === 0 ? a.x : this.#activations(l - 1).mid;
      const add = l === 0 ? { delta: null, sum: null } : { delta: this.#delta, sum: a.x };
      op.rmsnormForward(dev, T, { x: before, ...add, weight: layer.norm1, eps, y: a.n1, rstd: a.rstd1 });
      this.#attention(batch, layer, a, this.#delta);
      keepH(dev, T, layer.qkv, a.n1, a.h.qkv);
      // x += down(silu(gate) · up)
      op.rmsnormForward(dev, T, { x: a.x, delta: this.#delta, sum: a.mid, weight: layer.norm2, eps, y: a.n2, rstd: a.rstd2 });
      layer.gateUp.forward(dev, T, a.n2, a.gateUp);
      keepH(dev, T, layer.gateUp, a.n2, a.h.gateUp);
      op.swigluForward(dev, T, { f, gateUp: a.gateUp, y: a.act });
      layer.down.forward(dev, T, a.act, this.#delta);
      keepH(dev, T, layer.down, a.act, a.h.down);
    });
    const x = this.#activations(config.L - 1).mid;
    op.rmsnormForward(dev, T, {
      x,
      delta: this.#delta,
      sum: this.#last,
      weight: this.finalNorm,
      eps,
      y: this.#normed,
      rstd: this.#rstd,
    });
    op.gatherRows(dev, batch.R, { x: this.#normed, rows: batch.rows, out: this.#hidden });
  }

  /** q, k, v of the normed input in n1, rotated; attention; its output projection [T,d] into `out`. */
  #attention(batch: DeviceBatch, layer: Layer, a: LayerActivations, out: Tensor): void {
    const { dev } = this;
    const { T } = batch;
    const { H, K, D } = this.config;
    const { cos, sin } = this;
    layer.qkv.forward(dev, T, a.n1, a.qkv);
    // The query and key heads lie side by side in [T,(H+2K)D].
    op.rope(dev, T, { heads: H + K, D, x: a.qkv, cos, sin, positions: batch.positions });
    const { q, k, v } = this.#split(a.qkv);
    const scale = 1 / Math.sqrt(D);
    op.attentionForward(dev, T, batch.segments, { H, K, D, scale, q, k, v, out: a.attention, lse: a.lse });
    layer.o.forward(dev, T, a.attention, out);
  }

  /** Computes again what layer l did not keep, in the buffers that all layers share. */
  #restore(batch: DeviceBatch, layer: Layer, a: LayerActivations): void {
    const { dev } = this;
    const { T } = batch;
    const { f, eps } = this.config;
    op.rmsnormForward(dev, T, { x: a.x, delta: null, sum: null, weight: layer.norm1, eps, y: a.n1, rstd: a.rstd1 });
    if (a.rung === "block") this.#attention(batch, layer, a, this.#normed);
    else putH(dev, T, layer.qkv, a.n1, a.h.qkv);
    const second = a.rung === "block" ? { x: a.x, delta: this.#normed, sum: a.mid } : { x: a.mid, delta: null, sum: null };
    op.rmsnormForward(dev, T, { ...second, weight: layer.norm2, eps, y: a.n2, rstd: a.rstd2 });
    if (a.rung === "norms") putH(dev, T, layer.gateUp, a.n2, a.h.gateUp);
    else layer.gateUp.forward(dev, T, a.n2, a.gateUp);
    op.swigluForward(dev, T, { f, gateUp: a.gateUp, y: a.act });
    putH(dev, T, layer.down, a.act, a.h.down);
  }

  /** Per-row losses into `losses`, predictions into `argmax`; with `backward`, also the gradient that `backward` starts from. */
  loss(batch: DeviceBatch, { backward = false }: { backward?: boolean } = {}): void {
    op.headCrossEntropy(this.dev, batch.R, {
      x: this.#hidden,
      W: this.head,
      labels: batch.labels,
      seeds: batch.seeds,
      losses: this.losses,
      argmax: this.argmax,
      dx: backward ? this.#training.dhidden : null,
      work: this.#headWork,
    });
  }

  get #training() {
    if (!this.#backward) throw new Error("Cannot run a backward pass: the model was laid out to evaluate");
    return this.#backward;
  }

  /** Walks back through the blocks after `loss(batch, { backward: true })`, handing every linear layer to the sink. */
  backward(batch: DeviceBatch, sink: GradientSink): void {
    const { dev, config } = this;
    const { T, R } = batch;
    const { f, H, K, D } = config;
    const { cos, sin } = this;
    const scale = 1 / Math.sqrt(D);
    const { dx, gxh, dqkv, work, dhidden } = this.#training; // dx: gradient of the residual stream
    op.scatterRows(dev, R, T, { x: dhidden, rows: batch.rows, out: this.#normed });
    op.zero(dev, dx, T);
    op.rmsnormBackward(dev, T, { x: this.#last, weight: this.finalNorm, rstd: this.#rstd, dy: this.#normed, dx });
    for (let l = config.L - 1; l >= 0; l--) {
      const layer = this.layers[l]!;
      const a = this.#activations(l);
      // The shared buffers still hold what the forward pass left there: the last layer.
      if (a.rung !== "none" && l < config.L - 1) this.#restore(batch, layer, a);
      // x += down(silu(gate) · up)
      layer.down.backward(dev, T, dx, gxh);
      sink.linear(layer.down, T, { xh: a.act, dy: dx, gxh });
      op.swigluBackward(dev, T, { f, gateUp: a.gateUp, dy: gxh, dGateUp: a.gateUp });
      layer.gateUp.backward(dev, T, a.gateUp, gxh);
      sink.linear(layer.gateUp, T, { xh: a.n2, dy: a.gateUp, gxh });
      op.rmsnormBackward(dev, T, { x: a.mid, weight: layer.norm2, rstd: a.rstd2, dy: gxh, dx });
      // x += o(attention(rope(q), rope(k), v))
      layer.o.backward(dev, T, dx, gxh);
      sink.linear(layer.o, T, { xh: a.attention, dy: dx, gxh });
      const { q, k, v } = this.#split(a.qkv);
      const { q: dq, k: dk, v: dv } = this.#split(dqkv);
      const rope = { cos, sin, positions: batch.positions };
      const gradients = { dout: gxh, dq, dk, dv, work, rope };
      op.attentionBackward(dev, T, batch.segments, { H, K, D, scale, q, k, v, out: a.attention, lse: a.lse, ...gradients });
      layer.qkv.backward(dev, T, dqkv, gxh, { needDx: l > 0 });
      sink.linear(layer.qkv, T, { xh: a.n1, dy: dqkv, gxh });
      if (l > 0) op.rmsnormBackward(dev, T, { x: a.x, weight: layer.norm1, rstd: a.rstd1, dy: gxh, dx });
    }
  }

  #split(qkv: Tensor): { q: Tensor; k: Tensor; v: Tensor } {
    const { H, K, D } = this.config;
    return { q: qkv.columns(0, H * D), k: qkv.columns(H * D, K * D), v: qkv.columns((H + K) * D, K * D) };
  }
}
