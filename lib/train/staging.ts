/**
 * The gradients of one step: ∇ℓ_i of every sample, or one sum. They take no memory of their own where it can be helped: the backward
 * pass frees the activations of a layer before it forms the gradients of the layer below, so these are written there.
 */
import type { Device, Tensor } from "../../ffi/device.ts";
import { combine, downloadRow, Pieces, rowDots } from "../../ffi/operators.ts";
import type { Linear } from "../model/linear.ts";
import type { Decoder } from "../model/decoder.ts";
import type { Arena, Purpose } from "../tensor/arena.ts";
import type { GradientTarget } from "./gradients.ts";

/** A range of θ and its gradients. */
interface Block {
  /** First parameter in θ. */
  readonly first: number;
  readonly gradients: Tensor; // [n,length]
}

/** Gradients [n,P], row by row laid out as θ. */
export class Gradients {
  readonly #P: number;
  readonly #blocks: Block[];
  readonly #sums: Tensor; // f64 [n]
  /** All of them, as operators take them. */
  readonly rows: Tensor | Pieces;

  readonly samples: number;
  readonly #layout: "whole" | "reuse";

  /**
   * @param samples n
   * @param purpose under which what needs memory of its own is planned
   * @param layout "whole": one block of its own. "reuse": blocks for each layer, in memory that the backward pass is done with: to be
   *   written by one backward pass, and valid until the next forward pass
   */
  constructor(
    readonly dev: Device,
    arena: Arena,
    model: Decoder,
    { samples, purpose, layout }: { samples: number; purpose: Purpose; layout: "whole" | "reuse" },
  ) {
    this.samples = samples;
    this.#layout = layout;
    this.#P = model.parameters;
    const reserve = (length: number) => arena.reserve(purpose, samples, length);
    this.#blocks = [];
    if (layout === "whole" || this.#P === 0) {
      this.#blocks.push({ first: 0, gradients: reserve(Math.max(1, this.#P)) });
    } else {
      model.layers.forEach(({ qkv, o, gateUp, down }, l) => {
        const above = model.region(l + 1);
        let at = above.from;
        for (const [head, tail] of [[qkv, o], [gateUp, down]] as [Linear, Linear][]) {
          const length = head.thetaLength + tail.thetaLength;
          if (length === 0) continue;
          const bytes = arena.alignedBytes(samples, length, "f32");
          const fits = at + bytes <= above.to;
          this.#blocks.push({ first: head.thetaOffset, gradients: fits ? arena.overlay(at, samples, length) : reserve(length) });
          if (fits) at += bytes;
        }
      });
      this.#blocks.sort((a, b) => a.first - b.first);
    }
    const tensors = this.#blocks.map(({ gradients }) => gradients);
    this.rows = tensors.length === 1 ? tensors[0]! : new Pieces(tensors);
    this.#sums = arena.reserve("workspace", 1, samples, { dtype: "f64" });
  }

  /**
   * Where a linear layer writes gradients: `count` rows from row `first`, one for each segment of `cu`.
   * @param beta 0 overwrites, 1 adds to what an earlier backward pass has left there
   */
  target(cu: Tensor, { first, count, beta }: { first: number; count: number; beta: 0 | 1 }): GradientTarget {
    if (beta === 1 && this.#layout === "reuse") throw new Error("Cannot add to gradients that lie where activations do");
    return {
      cu,
      segments: count,
      beta,
      at: (offset) => {
        const block = this.#blockOf(offset);
        const rows = block.gradients.rowRange(first, count);
        return { out: rows.columns(offset - block.first, 1), stride: rows.ld };
      },
    };
  }

  #blockOf(offset: number): Block {
    return this.#blocks.findLast(({ first }) => first <= offset)!;
  }

  /** ⟨∇ℓ_i, direction⟩ over parameters first .. first + count - 1, for the first n samples; direction [1,P]. */
  dots(n: number, direction: Tensor, { first, count }: { first: number; count: number }): Float64Array<ArrayBuffer> {
    return this.#dots(n, { first, count }, direction.columns(first, count));
  }

  /** Squared norms of the same. */
  squares(n: number, range: { first: number; count: number }): Float64Array<ArrayBuffer> {
    return this.#dots(n, range, null);
  }

  #dots(n: number, { first, count }: { first: number; count: number }, b: Tensor | null): Float64Array<ArrayBuffer> {
    const pieces = this.#blocks.flatMap((block) => {
      const from = Math.max(first, block.first), to = Math.min(first + count, block.first + block.gradients.cols);
      return from < to ? [block.gradients.columns(from - block.first, to - from)] : [];
    });
    return pieces.length === 0 ? new Float64Array(n) : rowDots(this.dev, n, { a: new Pieces(pieces), b, out: this.#sums });
  }

  /** The first row of `out` = Σ_i weights_i ∇ℓ_i over the first n rows; weights f32 [n]. `out` may be these gradients themselves. */
  combine(n: number, weights: Tensor, out: Gradients): void {
    if (out !== this && out.rows instanceof Pieces) throw new Error("Cannot combine gradients into others that lie in pieces");
    combine(this.dev, n, { weights, x: this.rows, y: out === this ? null : out.rows as Tensor });
  }

  /** A copy of the first n rows, [n,P]. */
  read(n = 1): Float32Array<ArrayBuffer> {
    const P = this.#P, all = new Float32Array(n * P);
    for (let i = 0; i < n; i++) downloadRow(this.dev, all.subarray(i * P, (i + 1) * P), this.rows, i);
    return all;
  }
}
