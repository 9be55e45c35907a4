/**
 * Per-sample gradients ∇ℓ_i [n,P] of one step. They take no memory of their own where it can be helped: the backward pass frees the
 * activations of a layer before it forms the gradients of the layer below, so these are written there.
 */
import type { Device, Tensor } from "../../ffi/device.ts";
import { combine, download, Pieces, rowDots } from "../../ffi/operators.ts";
import type { Linear } from "../model/linear.ts";
import type { Decoder } from "../model/decoder.ts";
import type { Arena } from "../tensor/arena.ts";
import type { GradientTarget } from "./gradients.ts";

/** A range of θ and its gradients. */
interface Block {
  /** First parameter in θ. */
  readonly first: number;
  readonly gradients: Tensor; // [n,length]
}

/** Where a step's per-sample gradients lie. */
export class StagedGradients {
  readonly #blocks: Block[];
  readonly #sums: Tensor; // f64 [n]

  /**
   * @param samples n
   * @param layout "whole": one block [n,P] of its own. "reuse": a block a layer, in memory that the backward pass is done with;
   *   valid until the next forward pass
   */
  constructor(readonly dev: Device, arena: Arena, model: Decoder, readonly samples: number, layout: "whole" | "reuse") {
    const P = Math.max(1, model.parameters);
    this.#blocks = layout === "whole" ? [{ first: 0, gradients: arena.reserve("reweighting", samples, P) }] : [];
    if (layout === "reuse") {
      model.layers.forEach(({ qkv, o, gateUp, down }, l) => {
        const above = model.region(l + 1);
        let at = above.from;
        for (const [head, tail] of [[qkv, o], [gateUp, down]] as [Linear, Linear][]) {
          const length = head.thetaLength + tail.thetaLength;
          if (length === 0) continue;
          const bytes = arena.alignedBytes(samples, length, "f32");
          const fits = at + bytes <= above.to;
          const gradients = fits ? arena.overlay(at, samples, length) : arena.reserve("reweighting", samples, length);
          if (fits) at += bytes;
          this.#blocks.push({ first: head.thetaOffset, gradients });
        }
      });
      this.#blocks.sort((a, b) => a.first - b.first);
    }
    this.#sums = arena.reserve("workspace", 1, samples, { dtype: "f64" });
  }

  /** Where a linear layer writes the gradients of `count` samples, sample `first` of the step the first. */
  target(cu: Tensor, first: number, count: number): GradientTarget {
    return {
      cu,
      segments: count,
      beta: 0,
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

  /** out [1,P] = Σ_i weights_i ∇ℓ_i; weights f32 [n]. */
  combine(n: number, weights: Tensor, out: Tensor): void {
    combine(this.dev, n, { weights, x: new Pieces(this.#blocks.map(({ gradients }) => gradients)), y: out });
  }

  /** A copy of the first n rows, [n,P]. */
  read(n: number, P: number): Float32Array<ArrayBuffer> {
    const all = new Float32Array(n * P);
    for (const { first, gradients } of this.#blocks) {
      for (let i = 0; i < n; i++) {
        const row = new Float32Array(gradients.cols);
        download(this.dev, row, gradients.rowRange(i, 1));
        all.set(row, i * P + first);
      }
    }
    return all;
  }
}
