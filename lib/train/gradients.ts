/**
 * Adapter gradients out of a backward pass: dL/dA_g = (dL/dh_g)ᵀ x and dL/dB_g = s_g (dL/dy_g)ᵀ h_g, either summed over
 * the whole stream or one per sample (algorithms §1.1, §5.4).
 */
import type { Device, Tensor } from "../../ffi/device.ts";
import { linearGradients, reluGradients, swigluGradients } from "../../ffi/operators.ts";
import type { AdapterSink, LinearTensors } from "../model/decoder.ts";
import type { Linear } from "../model/linear.ts";

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

/** Writes adapter gradients of every segment to a target. */
export class AdapterGradients implements AdapterSink {
  constructor(readonly dev: Device, readonly target: GradientTarget) {}

  linear(linear: Linear, _T: number, { x, h, dy, gh }: LinearTensors): void {
    if (linear.rank === 0) return;
    const { cu, segments, beta } = this.target;
    const { dIn, groups, thetaOffset } = linear;
    const sides = { x: x?.rows ?? null, norm: x?.norm ?? null, gh, h, dy };
    linearGradients(this.dev, segments, { cu, dIn, groups, ...sides, ...this.target.at(thetaOffset), beta });
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

  relu(
    { gateUp, down }: { readonly gateUp: Linear; readonly down: Linear },
    T: number,
    { f, y, dy, gh, h }: { f: number; y: Tensor; dy: Tensor; gh: Tensor; h: Tensor | null },
  ): void {
    const { cu, segments, beta } = this.target;
    const downA = down.rank > 0 ? this.target.at(down.thetaOffset) : null;
    const upB = gateUp.rank > 0 ? this.target.at(gateUp.thetaOffset + gateUp.rank * gateUp.dIn) : null;
    const behind = downA && { rank: down.rank, gh, out: downA.out };
    const before = upB && { rank: gateUp.rank, scale: gateUp.groups.scales[0]!, h: h!, out: upB.out };
    const stride = (downA ?? upB)?.stride ?? 0;
    reluGradients(this.dev, T, segments, { cu, f, y, dy, behind, before, beta, stride });
  }
}
