/**
 * The operators of `metalora.h` on tensors. One function an operator, in the header's order; leading dimensions and types
 * come from the tensors, `T` says how many of the rows that a buffer has room for are in use.
 */
import { type Device, dtypeCode, type Tensor } from "./device.ts";

type Host = Uint8Array<ArrayBuffer> | Float32Array<ArrayBuffer> | Float64Array<ArrayBuffer> | Int32Array<ArrayBuffer>;

const pointer = (tensor: Tensor | null): Deno.PointerValue => tensor === null ? null : tensor.pointer;

/** The matrices that read one input: see metalora.h. `table` is [G, 2] = (d_out, r). */
export interface Groups {
  readonly count: number;
  readonly table: Int32Array<ArrayBuffer>;
  readonly scales: Float32Array<ArrayBuffer>;
}

// ---- memory ----

/** Host array → device, as many bytes as the array has. */
export function upload(dev: Device, dst: Tensor, src: Host): void {
  dev.check(dev.symbols.ml_upload(dev.ctx, dst.pointer, bytesOf(src), BigInt(src.byteLength)));
}

/** Device → host array, as many bytes as the array has. */
export function download(dev: Device, dst: Host, src: Tensor): void {
  dev.check(dev.symbols.ml_download(dev.ctx, bytesOf(dst), src.pointer, BigInt(dst.byteLength)));
}

const bytesOf = (array: Host): Uint8Array<ArrayBuffer> => new Uint8Array(array.buffer, array.byteOffset, array.byteLength);

/** Converts dense host rows of `srcDtype` into the rows of dst. */
export function upload2d(
  dev: Device,
  rows: number,
  cols: number,
  src: Uint8Array<ArrayBuffer>,
  srcDtype: "f32" | "bf16" | "f16",
  dst: Tensor,
): void {
  dev.check(dev.symbols.ml_upload_2d(dev.ctx, rows, cols, src, dtypeCode(srcDtype), dst.pointer, dtypeCode(dst.dtype), dst.ld));
}

/** dst = src, rows × cols, within one type. */
export function copy2d(dev: Device, rows: number, cols: number, src: Tensor, dst: Tensor): void {
  dev.check(dev.symbols.ml_copy_2d(dev.ctx, rows, cols, dtypeCode(src.dtype), src.pointer, src.ld, dst.pointer, dst.ld));
}

/** Sets the first `rows` rows (row padding included) to zero. */
export function zero(dev: Device, dst: Tensor, rows = dst.rows): void {
  const bytes = dst.bytes / dst.rows * rows;
  dev.check(dev.symbols.ml_zero(dev.ctx, dst.pointer, BigInt(bytes)));
}

/** Copies the whole of a dense tensor. */
export function copy(dev: Device, dst: Tensor, src: Tensor): void {
  dev.check(dev.symbols.ml_copy(dev.ctx, dst.pointer, src.pointer, BigInt(src.bytes)));
}

// ---- matrix product ----

/** c [M,N] = alpha · op(a) op(b) + beta · c; `transA`: a is [K,M], `transB`: b is [N,K]. */
export function gemm(
  dev: Device,
  { M, N, K, a, b, c, transA = false, transB = false, alpha = 1, beta = 0 }: {
    M: number;
    N: number;
    K: number;
    a: Tensor;
    b: Tensor;
    c: Tensor;
    transA?: boolean;
    transB?: boolean;
    alpha?: number;
    beta?: number;
  },
): void {
  // deno-fmt-ignore
  dev.check(dev.symbols.ml_gemm(dev.ctx, transA ? 1 : 0, transB ? 1 : 0, M, N, K, alpha, a.pointer, dtypeCode(a.dtype), a.ld,
    b.pointer, dtypeCode(b.dtype), b.ld, beta, c.pointer, dtypeCode(c.dtype), c.ld));
}

// ---- model operators ----

/** out [T,d] = table[ids], with `places` + table[positions] of a second one. */
export function embeddingForward(
  dev: Device,
  T: number,
  { table, ids, places = null, out }: {
    table: Tensor;
    ids: Tensor;
    places?: { readonly table: Tensor; readonly positions: Tensor } | null;
    out: Tensor;
  },
): void {
  // deno-fmt-ignore
  dev.check(dev.symbols.ml_embedding_forward(dev.ctx, T, table.cols, table.rows, table.pointer, dtypeCode(table.dtype),
    ids.pointer, pointer(places?.table ?? null), pointer(places?.positions ?? null), places?.table.rows ?? 0, out.pointer, out.ld,
    dtypeCode(out.dtype)));
}

/** y = x / rms(x) · weight, and rstd [T] = 1 / rms. */
export function rmsnormForward(
  dev: Device,
  T: number,
  { x, weight, eps, y, rstd }: { x: Tensor; weight: Tensor; eps: number; y: Tensor; rstd: Tensor },
): void {
  // deno-fmt-ignore
  dev.check(dev.symbols.ml_rmsnorm_forward(dev.ctx, T, weight.cols, eps, x.pointer, weight.pointer, y.pointer, y.ld, rstd.pointer,
    dtypeCode(x.dtype)));
}

/** dx += ∂rmsnorm(x)/∂x · dy. */
export function rmsnormBackward(
  dev: Device,
  T: number,
  { x, weight, rstd, dy, dx }: { x: Tensor; weight: Tensor; rstd: Tensor; dy: Tensor; dx: Tensor },
): void {
  // deno-fmt-ignore
  dev.check(dev.symbols.ml_rmsnorm_backward(dev.ctx, T, weight.cols, x.pointer, weight.pointer, rstd.pointer, dy.pointer, dy.ld,
    dx.pointer, dx.ld, dtypeCode(x.dtype)));
}

/** y = (x − mean) / deviation · weight + bias; stats [T,2] = mean and 1 / deviation of each row. */
export function layernormForward(
  dev: Device,
  T: number,
  { x, weight, bias, eps, y, stats }: { x: Tensor; weight: Tensor; bias: Tensor; eps: number; y: Tensor; stats: Tensor },
): void {
  // deno-fmt-ignore
  dev.check(dev.symbols.ml_layernorm_forward(dev.ctx, T, weight.cols, eps, x.pointer, weight.pointer, bias.pointer, y.pointer, y.ld,
    stats.pointer, dtypeCode(x.dtype)));
}

/** dx += ∂layernorm(x)/∂x · dy, and y = layernorm(x) once more; `dx` or `y` null: not wanted. */
export function layernormBackward(
  dev: Device,
  T: number,
  { x, weight, bias, stats, dy, dx, y }: {
    x: Tensor;
    weight: Tensor;
    bias: Tensor;
    stats: Tensor;
    dy: Tensor;
    dx: Tensor | null;
    y: Tensor | null;
  },
): void {
  // deno-fmt-ignore
  dev.check(dev.symbols.ml_layernorm_backward(dev.ctx, T, weight.cols, x.pointer, weight.pointer, bias.pointer, stats.pointer, dy.pointer,
    dy.ld, pointer(dx), dx?.ld ?? 0, pointer(y), y?.ld ?? 0, dtypeCode(x.dtype)));
}

/** The adapters of a linear layer, and where the products read them. */
export interface LoraLayer {
  readonly dIn: number;
  readonly groups: Groups;
  readonly theta: Tensor;
  readonly W: Tensor;
  readonly aCast: Tensor | null;
}

/** theta of every layer → s·B in the columns of W behind d_in, and A cast to the activation type where that is not f32. */
export function loraRefresh(dev: Device, layers: readonly LoraLayer[], dtype: "f32" | "bf16"): void {
  if (layers.length === 0) return;
  const address = (tensor: Tensor | null) => Deno.UnsafePointer.value(pointer(tensor));
  const table = BigInt64Array.from(
    layers.flatMap(({ dIn, groups, theta, W, aCast }) =>
      [dIn, groups.count, address(theta), address(W), W.ld, address(aCast), aCast?.ld ?? 0].map(BigInt)
    ),
  );
  const groups = Int32Array.from(layers.flatMap(({ groups }) => [...groups.table]));
  const scales = Float32Array.from(layers.flatMap(({ groups }) => [...groups.scales]));
  const { dtype: weights } = layers[0]!.W;
  dev.check(dev.symbols.ml_lora_refresh(dev.ctx, layers.length, table, groups, scales, dtypeCode(weights), dtypeCode(dtype)));
}

/** h = x Aᵀ behind x; y = x Wᵀ + Σ s h_g B_gᵀ + bias + add, or ReLU of it without `add`. `add` [T, N] may be y itself. */
export function linearForward(
  dev: Device,
  T: number,
  { dIn, groups, xh, A, W, bias, relu = false, add = null, y }: {
    dIn: number;
    groups: Groups;
    xh: Tensor;
    A: Tensor | null;
    W: Tensor;
    bias: Tensor | null;
    relu?: boolean;
    add?: Tensor | null;
    y: Tensor;
  },
): void {
  // deno-fmt-ignore
  dev.check(dev.symbols.ml_linear_forward(dev.ctx, T, dIn, groups.count, groups.table, xh.pointer, xh.ld, pointer(A), A?.ld ?? 0, W.pointer,
    dtypeCode(W.dtype), W.ld, pointer(bias), relu ? 1 : 0, pointer(add), add?.ld ?? 0, y.pointer, y.ld, dtypeCode(y.dtype)));
}

/** gh [T,Q] = s dY B (null where there is no adapter), dx [T,dIn] = dY W + g_h A (null: not wanted). */
export function linearBackward(
  dev: Device,
  T: number,
  { dIn, groups, dy, A, W, dx, gh }: {
    dIn: number;
    groups: Groups;
    dy: Tensor;
    A: Tensor | null;
    W: Tensor;
    dx: Tensor | null;
    gh: Tensor | null;
  },
): void {
  // deno-fmt-ignore
  dev.check(dev.symbols.ml_linear_backward(dev.ctx, T, dIn, groups.count, groups.table, dy.pointer, dy.ld, pointer(A), A?.ld ?? 0, W.pointer,
    dtypeCode(W.dtype), W.ld, pointer(dx), dx?.ld ?? 0, pointer(gh), gh?.ld ?? 0, dtypeCode(dy.dtype)));
}

/**
 * out_i [p,q] = beta · out_i + alpha · a_iᵀ b_i over the rows of segment i; `stride` elements from one out_i to the next. With
 * `norm`, b is read as its norm: rows times `rstd` [T], columns times `weight` [1,q].
 */
export function segmentOuter(
  dev: Device,
  S: number,
  { cu, p, q, a, b, norm = null, out, stride = 0, alpha = 1, beta = 0 }: {
    cu: Tensor;
    p: number;
    q: number;
    a: Tensor;
    b: Tensor;
    norm?: Norm | null;
    out: Tensor;
    stride?: number;
    alpha?: number;
    beta?: number;
  },
): void {
  // deno-fmt-ignore
  dev.check(dev.symbols.ml_segment_outer(dev.ctx, S, cu.pointer, p, q, a.pointer, a.ld, b.pointer, b.ld, pointer(norm?.rstd ?? null),
    pointer(norm?.weight ?? null), dtypeCode(a.dtype), alpha, beta, out.pointer, stride));
}

/**
 * The gradients of a linear layer's adapters, one of each segment, laid out as θ of the layer, `stride` elements apart: A from x (or
 * the norm of x) and gh, B from dy and h. x or dy null leaves theirs alone.
 */
export function linearGradients(
  dev: Device,
  S: number,
  { cu, dIn, groups, x, norm = null, gh, h, dy, out, stride, beta }: {
    cu: Tensor;
    dIn: number;
    groups: Groups;
    x: Tensor | null;
    norm?: Norm | null;
    gh: Tensor;
    h: Tensor | null;
    dy: Tensor | null;
    out: Tensor;
    stride: number;
    beta: number;
  },
): void {
  // deno-fmt-ignore
  dev.check(dev.symbols.ml_linear_gradients(dev.ctx, S, cu.pointer, dIn, groups.count, groups.table, groups.scales, pointer(x), x?.ld ?? 0,
    pointer(norm?.rstd ?? null), pointer(norm?.weight ?? null), gh.pointer, gh.ld, pointer(h), h?.ld ?? 0, pointer(dy), dy?.ld ?? 0, beta,
    out.pointer, stride, dtypeCode(gh.dtype)));
}

/** What makes norm(x) = x · rstd · weight of rows x. */
export interface Norm {
  readonly rstd: Tensor; // [T]
  readonly weight: Tensor; // [1,d]
}

/** out [S,q] = the mean row of each segment. */
export function segmentMean(dev: Device, S: number, { cu, q, a, out }: { cu: Tensor; q: number; a: Tensor; out: Tensor }): void {
  dev.check(dev.symbols.ml_segment_mean(dev.ctx, S, cu.pointer, q, a.pointer, a.ld, dtypeCode(a.dtype), out.pointer, out.ld));
}

/** Rotates `heads` heads of size D in place; cos and sin [positions, D/2]. */
export function rope(
  dev: Device,
  T: number,
  { heads, D, x, cos, sin, positions, inverse = false }: {
    heads: number;
    D: number;
    x: Tensor;
    cos: Tensor;
    sin: Tensor;
    positions: Tensor;
    inverse?: boolean;
  },
): void {
  // deno-fmt-ignore
  dev.check(dev.symbols.ml_rope(dev.ctx, T, heads, D, x.pointer, x.ld, cos.pointer, sin.pointer, positions.pointer, cos.rows,
    inverse ? 1 : 0, dtypeCode(x.dtype)));
}

/** The segments of a packed batch on the device. */
export interface Segments {
  readonly count: number;
  readonly maxLength: number;
  readonly cu: Tensor;
  /** Keys per segment when the rest is right padding, else null. */
  readonly kvLens: Tensor | null;
}

/** Causal grouped-query attention within each segment; q, k, v are column ranges of one buffer. */
export function attentionForward(
  dev: Device,
  T: number,
  segments: Segments,
  { H, K, D, scale, q, k, v, out, lse }: {
    H: number;
    K: number;
    D: number;
    scale: number;
    q: Tensor;
    k: Tensor;
    v: Tensor;
    out: Tensor;
    lse: Tensor;
  },
): void {
  // deno-fmt-ignore
  dev.check(dev.symbols.ml_attention_forward(dev.ctx, T, segments.count, segments.maxLength, segments.cu.pointer,
    pointer(segments.kvLens), H, K, D, scale, q.pointer, k.pointer, v.pointer, q.ld, out.pointer, out.ld, lse.pointer,
    dtypeCode(q.dtype)));
}

/** How q and k were rotated by `rope`: its tables, and a position a row. */
export interface Rotation {
  readonly cos: Tensor;
  readonly sin: Tensor;
  readonly positions: Tensor;
}

/** dq, dk, dv from dout; probabilities are recomputed from lse. With `rope`, dq and dk are those of q and k before they were rotated. */
export function attentionBackward(
  dev: Device,
  T: number,
  segments: Segments,
  { H, K, D, scale, q, k, v, out, lse, dout, dq, dk, dv, work, rope = null }: {
    H: number;
    K: number;
    D: number;
    scale: number;
    q: Tensor;
    k: Tensor;
    v: Tensor;
    out: Tensor;
    lse: Tensor;
    dout: Tensor;
    dq: Tensor;
    dk: Tensor;
    dv: Tensor;
    work: Tensor;
    rope?: Rotation | null;
  },
): void {
  // deno-fmt-ignore
  dev.check(dev.symbols.ml_attention_backward(dev.ctx, T, segments.count, segments.maxLength, segments.cu.pointer,
    pointer(segments.kvLens), H, K, D, scale, q.pointer, k.pointer, v.pointer, q.ld, out.pointer, out.ld, lse.pointer,
    dout.pointer, dout.ld, dq.pointer, dk.pointer, dv.pointer, dq.ld, work.pointer, pointer(rope?.cos ?? null),
    pointer(rope?.sin ?? null), pointer(rope?.positions ?? null), rope?.cos.rows ?? 0, dtypeCode(q.dtype)));
}

/** y [T,f] = silu(gate) · up. */
export function swigluForward(dev: Device, T: number, { f, gateUp, y }: { f: number; gateUp: Tensor; y: Tensor }): void {
  dev.check(dev.symbols.ml_swiglu_forward(dev.ctx, T, f, gateUp.pointer, gateUp.ld, y.pointer, y.ld, dtypeCode(y.dtype)));
}

/** dGateUp [T,2f] from dy [T,f]; may overwrite gateUp. `y` [T,f], rows as far apart as dy's and perhaps dy itself: the forward result. */
export function swigluBackward(
  dev: Device,
  T: number,
  { f, gateUp, dy, dGateUp, y = null }: { f: number; gateUp: Tensor; dy: Tensor; dGateUp: Tensor; y?: Tensor | null },
): void {
  if (y && y.ld !== dy.ld) throw new RangeError(`Cannot write y beside dy: its rows are ${y.ld} apart, those of dy ${dy.ld}`);
  // deno-fmt-ignore
  dev.check(dev.symbols.ml_swiglu_backward(dev.ctx, T, f, gateUp.pointer, gateUp.ld, dy.pointer, dy.ld, dGateUp.pointer, pointer(y),
    dtypeCode(gateUp.dtype)));
}

/**
 * swigluBackward in place on gateUp [T,2f], dy [T,f] being lost, and the adapter gradients of every segment on its way:
 * outY [rY,f] = outer(gh, y); outGate [f,rGate] = sGate · outer(dgate, h); outUp [f,rUp] behind it from dup and the columns of h
 * behind rGate. A rank of 0 leaves its gradient out.
 */
export function swigluGradients(
  dev: Device,
  T: number,
  S: number,
  { cu, f, gateUp, dy, y, gateAndUp, beta, stride }: {
    cu: Tensor;
    f: number;
    gateUp: Tensor;
    dy: Tensor;
    y: { rank: number; gh: Tensor; out: Tensor } | null;
    gateAndUp: { ranks: readonly [number, number]; scales: readonly [number, number]; h: Tensor; out: Tensor } | null;
    beta: number;
    stride: number;
  },
): void {
  const [rGate, rUp] = gateAndUp?.ranks ?? [0, 0], [sGate, sUp] = gateAndUp?.scales ?? [0, 0];
  // deno-fmt-ignore
  dev.check(dev.symbols.ml_swiglu_gradients(dev.ctx, T, f, gateUp.pointer, gateUp.ld, dy.pointer, dy.ld, S, cu.pointer, y?.rank ?? 0,
    pointer(y?.gh ?? null), y?.gh.ld ?? 0, pointer(y?.out ?? null), rGate, rUp, pointer(gateAndUp?.h ?? null), gateAndUp?.h.ld ?? 0,
    sGate, sUp, pointer(gateAndUp?.out ?? null), beta, stride, dtypeCode(gateUp.dtype)));
}

/** In place of what a linear layer with ReLU made, the gradient in front of ReLU: y [T,f] = dy where y > 0, else 0. */
export function reluBackward(dev: Device, T: number, { f, y, dy }: { f: number; y: Tensor; dy: Tensor }): void {
  dev.check(dev.symbols.ml_relu_backward(dev.ctx, T, f, y.pointer, y.ld, dy.pointer, dy.ld, dtypeCode(y.dtype)));
}

/**
 * reluBackward on y [T,f] from dy [T,f], and the adapter gradients of every segment on its way: outY [rY,f] = outer(gh, y), outX [f,rX] =
 * scale · outer(dx, h), where dx is what takes y's place. null leaves a gradient out.
 */
export function reluGradients(
  dev: Device,
  T: number,
  S: number,
  { cu, f, y, dy, behind, before, beta, stride }: {
    cu: Tensor;
    f: number;
    y: Tensor;
    dy: Tensor;
    behind: { rank: number; gh: Tensor; out: Tensor } | null;
    before: { rank: number; scale: number; h: Tensor; out: Tensor } | null;
    beta: number;
    stride: number;
  },
): void {
  // deno-fmt-ignore
  dev.check(dev.symbols.ml_relu_gradients(dev.ctx, T, f, y.pointer, y.ld, dy.pointer, dy.ld, S, cu.pointer, behind?.rank ?? 0,
    pointer(behind?.gh ?? null), behind?.gh.ld ?? 0, pointer(behind?.out ?? null), before?.rank ?? 0, pointer(before?.h ?? null),
    before?.h.ld ?? 0, before?.scale ?? 0, pointer(before?.out ?? null), beta, stride, dtypeCode(y.dtype)));
}

/** out [R,d] = x[rows]. */
export function gatherRows(dev: Device, R: number, { x, rows, out }: { x: Tensor; rows: Tensor; out: Tensor }): void {
  dev.check(
    dev.symbols.ml_gather_rows(dev.ctx, R, out.cols, x.pointer, x.ld, rows.pointer, out.pointer, out.ld, dtypeCode(x.dtype)),
  );
}

/** out [T,d] = 0, then out[rows] = x [R,d]. */
export function scatterRows(dev: Device, R: number, T: number, { x, rows, out }: { x: Tensor; rows: Tensor; out: Tensor }): void {
  // deno-fmt-ignore
  dev.check(dev.symbols.ml_scatter_rows(dev.ctx, R, T, x.cols, x.pointer, x.ld, rows.pointer, out.pointer, out.ld,
    dtypeCode(x.dtype)));
}

/** LM head and cross-entropy over R labelled rows; `dx` null computes losses (and argmax) alone. */
export function headCrossEntropy(
  dev: Device,
  R: number,
  { x, W, labels, seeds, losses, argmax, dx, work }: {
    x: Tensor;
    W: Tensor;
    labels: Tensor;
    seeds: Tensor;
    losses: Tensor;
    argmax: Tensor | null;
    dx: Tensor | null;
    work: Tensor;
  },
): void {
  // deno-fmt-ignore
  dev.check(dev.symbols.ml_head_cross_entropy(dev.ctx, R, W.cols, W.rows, x.pointer, W.pointer, dtypeCode(W.dtype), W.ld,
    labels.pointer, seeds.pointer, losses.pointer, pointer(argmax), pointer(dx), work.pointer, BigInt(work.bytes),
    dtypeCode(x.dtype)));
}

/** Bytes of `work` that let headCrossEntropy take `rows` rows at a time. */
export function headWorkBytes(dev: Device, rows: number, V: number): number {
  return Number(dev.symbols.ml_head_work_bytes(dev.ctx, rows, V, dtypeCode(dev.activationDtype)));
}

/** out f64 [S] = sums of values over rowOffsets. */
export function segmentSum(
  dev: Device,
  S: number,
  { rowOffsets, values, out }: { rowOffsets: Tensor; values: Tensor; out: Tensor },
): void {
  dev.check(dev.symbols.ml_segment_sum(dev.ctx, S, rowOffsets.pointer, values.pointer, out.pointer));
}

// ---- flat vectors of adapter parameters ----

/** Rows of P numbers each that need not lie together: their columns in pieces, one after the other. */
export class Pieces {
  /** P. */
  readonly cols: number;
  readonly #first: Tensor;
  readonly #table: Int32Array<ArrayBuffer>;

  /** @param pieces [n,length] each, in one memory, 256 bytes or a multiple apart */
  constructor(readonly pieces: readonly Tensor[]) {
    this.#first = pieces.reduce((first, piece) => piece.byteOffset < first.byteOffset ? piece : first);
    const behind = (piece: Tensor) => {
      const units = (piece.byteOffset - this.#first.byteOffset) / 256;
      if (!Number.isInteger(units)) {
        throw new RangeError(`Cannot list a piece: it lies ${units} times 256 bytes behind the first`);
      }
      return units;
    };
    this.#table = Int32Array.from(pieces.flatMap((piece) => [behind(piece), piece.ld, piece.cols]));
    this.cols = pieces.reduce((sum, { cols }) => sum + cols, 0);
  }

  /** What an operator is told: how many pieces, the table of them, and the address that it counts from. */
  get parts(): [number, Int32Array<ArrayBuffer>, Deno.PointerValue] {
    return [this.#table.length / 3, this.#table, this.#first.pointer];
  }
}

const partsOf = (x: Tensor | Pieces): Pieces["parts"] =>
  x instanceof Pieces ? x.parts : [1, Int32Array.of(0, x.ld, x.cols), x.pointer];

/**
 * out f64 [n]: Σ_j a_i[j] · b[j] for n rows of a, j over the columns of a. `b` with as many rows as n pairs row with row; null stands
 * for a itself.
 */
export function rowDots(
  dev: Device,
  n: number,
  { a, b, out }: { a: Tensor | Pieces; b: Tensor | null; out: Tensor },
): Float64Array<ArrayBuffer> {
  const [m, table, pointerOfA] = partsOf(a), ldb = b === null || b.rows === 1 ? 0 : b.ld;
  dev.check(dev.symbols.ml_row_dots(dev.ctx, n, m, table, pointerOfA, pointer(b), ldb, out.pointer));
  const sums = new Float64Array(n);
  download(dev, sums, out);
  return sums;
}

/** y = beta · y + Σ weights_i · x_i over the columns of x; y null: in the place of x_0, with beta 0. */
export function combine(
  dev: Device,
  n: number,
  { weights, x, y, beta = 0 }: { weights: Tensor; x: Tensor | Pieces; y: Tensor | null; beta?: number },
): void {
  const [m, table, pointerOfX] = partsOf(x);
  dev.check(dev.symbols.ml_combine(dev.ctx, n, m, table, weights.pointer, pointerOfX, beta, pointer(y)));
}

/** Row i of x as one array. */
export function downloadRow(dev: Device, host: Float32Array<ArrayBuffer>, x: Tensor | Pieces, i = 0): void {
  let at = 0;
  for (const piece of x instanceof Pieces ? x.pieces : [x]) {
    download(dev, host.subarray(at, at += piece.cols), piece.rowRange(i, 1));
  }
}

/** out = g / (√(v / bias2) + eps): algorithms §5.1. */
export function adamPrecondition(
  dev: Device,
  { g, v, bias2, eps, out }: { g: Tensor; v: Tensor; bias2: number; eps: number; out: Tensor },
): void {
  dev.check(dev.symbols.ml_adam_precondition(dev.ctx, g.cols, g.pointer, v.pointer, bias2, eps, out.pointer));
}

/** The numbers of one AdamW update; lib/optim/adam.ts makes them. */
export interface AdamNumbers {
  readonly lr: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  readonly weightDecay: number;
  /** 1 − beta1^t and 1 − beta2^t. */
  readonly bias1: number;
  readonly bias2: number;
  /** Multiplies the gradient first: clipping. */
  readonly gradScale: number;
}

/** One AdamW update of all trained parameters. */
export function adam(
  dev: Device,
  { theta, grad, m, v }: { theta: Tensor; grad: Tensor | Pieces; m: Tensor; v: Tensor },
  { lr, beta1, beta2, eps, weightDecay, bias1, bias2, gradScale }: AdamNumbers,
): void {
  const [pieces, table, pointerOfGrad] = partsOf(grad);
  // deno-fmt-ignore
  dev.check(dev.symbols.ml_adam(dev.ctx, theta.cols, theta.pointer, pieces, table, pointerOfGrad, m.pointer, v.pointer, lr, beta1, beta2, eps,
    weightDecay, bias1, bias2, gradScale));
}
