/**
 * Adapter gradients out of a backward pass: dL/dA_g = (dL/dh_g)ᵀ x and dL/dB_g = s_g (dL/dy_g)ᵀ h_g, either summed over
 * the whole stream or one per sample (algorithms §1.1, §5.4).
 */
import type { Device, Tensor } from "../../ffi/device.ts";
import { segmentOuter, swigluGradients } from "../../ffi/operators.ts";
import type { AdapterSink, LinearTensors } from "../model/llama.ts";
import type { Linear } from "../model/linear.ts";

/** One adapted matrix of a merged layer: its first column among the layer's ranks, its first row among the layer's outputs. */
export interface AdapterPlace {
  readonly rank: number;
  readonly scale: number;
  readonly dOut: number;
  readonly column: number;
  readonly row: number;
  /** First element of B in θ. */
  readonly bOffset: number;
}

/** The adapted matrices of a merged layer. */
export function adapterPlaces(linear: Linear): AdapterPlace[] {
  let column = 0, row = 0, adapter = 0;
  const places: AdapterPlace[] = [];
  for (let g = 0; g < linear.groups.count; g++) {
    const dOut = linear.groups.table[2 * g]!, rank = linear.groups.table[2 * g + 1]!;
    if (rank > 0) {
      const { scale, bOffset } = linear.adapters[adapter++]!;
      places.push({ rank, scale, dOut, column, row, bOffset });
    }
    column += rank;
    row += dOut;
  }
  return places;
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
export class AdapterGradients implements AdapterSink {
  constructor(readonly dev: Device, readonly target: GradientTarget) {}

  linear(linear: Linear, _T: number, { x, h, dy, gh }: LinearTensors): void {
    if (linear.rank === 0) return;
    const { cu, segments, beta } = this.target;
    if (x) {
      // All A of the layer lie one behind the other, as their gradients do in gh: one product for the whole group.
      const { rows: b, norm } = x;
      const to = this.target.at(linear.thetaOffset);
      segmentOuter(this.dev, segments, { cu, p: linear.rank, q: linear.dIn, a: gh, b, norm, ...to, beta });
    }
    if (!dy) return;
    for (const { rank, scale, dOut, column, row, bOffset } of adapterPlaces(linear)) {
      const sides = { p: dOut, q: rank, a: dy.columns(row, dOut), b: h!.columns(column, rank) };
      segmentOuter(this.dev, segments, { cu, ...sides, ...this.target.at(bOffset), alpha: scale, beta });
    }
  }

  swiglu(
    { gateUp, down }: { readonly gateUp: Linear; readonly down: Linear },
    T: number,
    tensors: { f: number; gateUp: Tensor; dy: Tensor; gh: Tensor; h: Tensor | null },
  ): void {
    const { cu, segments, beta } = this.target;
    const { f, dy, gh, h } = tensors;
    // A of down is the first of its layer; B of gate is the first B of theirs, B of up follows.
    const downA = down.rank > 0 ? this.target.at(down.thetaOffset) : null;
    const gateB = gateUp.rank > 0 ? this.target.at(gateUp.thetaOffset + gateUp.rank * gateUp.dIn) : null;
    const { table, scales } = gateUp.groups;
    const y = downA && { rank: down.rank, gh, out: downA.out };
    const pairs = { ranks: [table[1]!, table[3]!] as const, scales: [scales[0]!, scales[1]!] as const };
    const gateAndUp = gateB && { ...pairs, h: h!, out: gateB.out };
    const stride = (downA ?? gateB)?.stride ?? 0;
    swigluGradients(this.dev, T, segments, { cu, f, gateUp: tensors.gateUp, dy, y, gateAndUp, beta, stride });
  }
}
