/** The norms of the residual stream: RMSNorm in Llama, LayerNorm in OPT, behind one interface. */
import type { Device, Tensor } from "../../ffi/device.ts";
import * as op from "../../ffi/operators.ts";
import type { Arena } from "../tensor/arena.ts";

/** What the forward pass of a norm reads and writes. */
export interface NormTensors {
  readonly x: Tensor; // [T,d]
  readonly eps: number;
  readonly y: Tensor; // [T,d]
  readonly stats: Tensor; // [T, numbers a row] what the backward pass needs
}

/** What a linear layer behind a norm read: `rows` themselves, or what `norm` makes of them. */
export interface NormedInput {
  readonly rows: Tensor;
  readonly norm: op.Norm | null;
}

/** What the backward pass of a norm reads and writes. */
export interface NormGradient {
  readonly x: Tensor; // [T,d]
  readonly stats: Tensor;
  readonly dy: Tensor; // [T,d]
  readonly dx: Tensor | null; // [T,d]
  readonly scratch: Tensor | null; // [T,d]
}

/** A norm with its weights. */
export interface Norm {
  /** Its weights [1,d] by the last part of their names. */
  readonly parts: { readonly weight: Tensor; readonly bias?: Tensor };
  /** y = norm(x). */
  forward(dev: Device, T: number, tensors: NormTensors): void;
  /**
   * dx += ∂norm(x)/∂x · dy, unless dx is null. Returns norm(x), which may be written to `scratch`
   * [T,d]; null without scratch, where nobody reads it.
   */
  backward(dev: Device, T: number, tensors: NormGradient): NormedInput | null;
}

/** y = x / rms(x) · weight. Adapter gradients read its output as its input with factors: it is never formed again. */
export class RmsNorm implements Norm {
  /** Numbers in `stats` of a row: 1 / rms. */
  static readonly STATS = 1;
  readonly parts: { readonly weight: Tensor };

  constructor(arena: Arena, d: number) {
    this.parts = { weight: arena.reserve("weights", 1, d) };
  }

  forward(dev: Device, T: number, { x, eps, y, stats }: NormTensors): void {
    const { weight } = this.parts;
    op.rmsnormForward(dev, T, { x, weight, eps, y, rstd: stats });
  }

  backward(dev: Device, T: number, { x, stats, dy, dx }: NormGradient): NormedInput {
    const norm = { rstd: stats, weight: this.parts.weight };
    if (dx) op.rmsnormBackward(dev, T, { x, ...norm, dy, dx });
    return { rows: x, norm };
  }
}

/**
 * y = (x − mean) / deviation · weight + bias. Its output is no product of x with factors: the backward pass forms it once more, for
 * adapter gradients to read, and has all it takes at hand.
 */
export class LayerNorm implements Norm {
  /** Numbers in `stats` of a row: mean and 1 / deviation. */
  static readonly STATS = 2;
  readonly parts: { readonly weight: Tensor; readonly bias: Tensor };

  constructor(arena: Arena, d: number) {
    this.parts = { weight: arena.reserve("weights", 1, d), bias: arena.reserve("weights", 1, d) };
  }

  forward(dev: Device, T: number, { x, eps, y, stats }: NormTensors): void {
    op.layernormForward(dev, T, { x, ...this.parts, eps, y, stats });
  }

  backward(dev: Device, T: number, { x, stats, dy, dx, scratch }: NormGradient): NormedInput | null {
    op.layernormBackward(dev, T, { x, ...this.parts, stats, dy, dx, y: scratch });
    return scratch && { rows: scratch, norm: null };
  }
}
