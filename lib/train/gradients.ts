/**
 * Adapter gradients out of a backward pass: dL/dA_g = (dL/dh_g)ᵀ x and dL/dB_g = s_g (dL/dy_g)ᵀ h_g, either summed over
 * the whole stream or one per sample (algorithms §1.1, §5.4).
 */
import type { Device, Tensor } from "../../ffi/device.ts";
import { segmentOuter } from "../../ffi/operators.ts";
import type { GradientSink } from "../model/llama.ts";
import type { Linear } from "../model/linear.ts";

/** The three tensors a sink receives for a linear layer. */
export interface LinearTensors {
  xh: Tensor; // [T,dIn+r]
  dy: Tensor; // [T,dOut]
  gxh: Tensor; // [T,dIn+r]
}

/** Columns of one adapted matrix inside the tensors of its layer. */
export interface AdapterColumns {
  rank: number;
  scale: number;
  dOut: number;
  h: Tensor; // [T,rank]
  gh: Tensor; // [T,rank]
  dy: Tensor; // [T,dOut]
  bOffset: number;
}

/** Splits the tensors of a merged layer into its adapted matrices. */
export function adapterColumns(linear: Linear, { xh, dy, gxh }: LinearTensors): AdapterColumns[] {
  let column = linear.dIn, row = 0, adapter = 0;
  const parts: AdapterColumns[] = [];
  for (let g = 0; g < linear.groups.count; g++) {
    const dOut = linear.groups.table[2 * g]!, rank = linear.groups.table[2 * g + 1]!;
    if (rank > 0) {
      const { scale, bOffset } = linear.adapters[adapter++]!;
      const columns = { h: xh.columns(column, rank), gh: gxh.columns(column, rank), dy: dy.columns(row, dOut) };
      parts.push({ rank, scale, dOut, ...columns, bOffset });
    }
    column += rank;
    row += dOut;
  }
  return parts;
}

/** Where adapter gradients go, one row a segment, laid out as θ. */
export interface GradientTarget {
  /** Offsets of the segments, i32 [S+1]; the whole stream as one segment sums over all samples. */
  readonly cu: Tensor;
  readonly segments: number;
  /** 0 overwrites, 1 adds (accumulation over micro-batches). */
  readonly beta: 0 | 1;
  /** Place of parameter `offset` in the first row, and elements from one row to the next. */
  at(offset: number): { out: Tensor; stride: number };
}

/** Rows of one matrix out [S,P] as a target. */
export function rowsTarget(out: Tensor, rest: Pick<GradientTarget, "cu" | "segments" | "beta">): GradientTarget {
  return { ...rest, at: (offset) => ({ out: out.columns(offset, 1), stride: out.ld }) };
}

/** Writes adapter gradients of every segment to a target. */
export class AdapterGradients implements GradientSink {
  constructor(readonly dev: Device, readonly target: GradientTarget) {}

  linear(linear: Linear, _T: number, tensors: LinearTensors): void {
    if (linear.rank === 0) return;
    const { cu, segments, beta } = this.target;
    const gh = tensors.gxh.columns(linear.dIn, linear.rank);
    // All A of the layer lie one behind the other, as their gradients do in gxh: one product for the whole group.
    segmentOuter(this.dev, segments, {
      cu,
      p: linear.rank,
      q: linear.dIn,
      a: gh,
      b: tensors.xh,
      ...this.target.at(linear.thetaOffset),
      beta,
    });
    for (const { rank, scale, dOut, h, dy, bOffset } of adapterColumns(linear, tensors)) {
      segmentOuter(this.dev, segments, {
        cu,
        p: dOut,
        q: rank,
        a: dy,
        b: h,
        ...this.target.at(bOffset),
        alpha: scale,
        beta,
      });
    }
  }
}

/** Hands every layer to several sinks. */
export class SinkList implements GradientSink {
  constructor(readonly sinks: readonly GradientSink[]) {}

  linear(linear: Linear, T: number, tensors: LinearTensors): void {
    for (const sink of this.sinks) sink.linear(linear, T, tensors);
  }
}
