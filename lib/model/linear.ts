/**
 * A linear layer with its adapters inside the matrix product (design §4), and where each adapter lies in the flat vector
 * of trained parameters.
 *
 * Several matrices that read the same input (q/k/v, gate/up) form one layer: y = [x | h] · [W | s·B]ᵀ with h = x Aᵀ.
 */
import { type Device, Tensor } from "../../ffi/device.ts";
import { type Groups, linearBackward, linearForward, type LoraLayer } from "../../ffi/operators.ts";
import type { Arena } from "../tensor/arena.ts";

/** Which half of a block a matrix belongs to; `reweight.modules` selects by it. */
export type ModuleKind = "attention" | "mlp";

/** One frozen matrix of the checkpoint: y = x Wᵀ, W [dOut, dIn]. */
export interface MatrixSpec {
  /** Module name as in Hugging Face, such as "model.layers.0.self_attn.q_proj". */
  readonly name: string;
  readonly dOut: number;
}

/** The adapter of one matrix and its place in the flat vector θ [P]. */
export interface AdaptedMatrix {
  readonly name: string;
  readonly kind: ModuleKind;
  readonly dIn: number;
  readonly dOut: number;
  readonly rank: number;
  /** s = alpha / rank (or alpha / √rank for rank-stabilised LoRA). */
  readonly scale: number;
  /** First element of A [rank, dIn] in θ. */
  readonly aOffset: number;
  /** First element of B [dOut, rank] in θ. */
  readonly bOffset: number;
}

/** Rank and scale of the adapter on a matrix; rank 0 leaves it alone. */
export type AdapterOf = (moduleName: string) => { rank: number; scale: number };

// Elements. f32: rows of 64 bytes, so that no vector load of a CPU straddles two rows. bf16 activations are CUDA's: rows of
// 128 bytes, the width of its copy engine's swizzled tiles.
const ROW_ALIGNMENT = { f32: 16, bf16: 64 };

/** Elements from one row to the next of a buffer that holds `width` columns, beside activations of a type. */
export function paddedWidth(width: number, activations: "f32" | "bf16"): number {
  const alignment = ROW_ALIGNMENT[activations];
  return Math.ceil(width / alignment) * alignment;
}

/**
 * Elements from one row to the next of a gradient dY of `width` columns. In bf16 there is room for dL/dh [T, rank] behind them, which
 * makes dL/dx one product (`ml_linear_backward`).
 */
export function roomBehind(width: number, rank: number, activations: "f32" | "bf16"): number {
  return activations === "f32" ? width : paddedWidth(width + rank, activations);
}

/** A frozen linear layer of one or more matrices over the same input, with their adapters. */
export class Linear {
  /** Σ dOut: columns of the output. */
  readonly dOut: number;
  /** Σ rank: columns of h behind x. */
  readonly rank: number;
  readonly groups: Groups;
  readonly adapters: readonly AdaptedMatrix[];
  /** First element and length of this layer's block in θ: all A, then all B. */
  readonly thetaOffset: number;
  readonly thetaLength: number;
  /** [dOut, dIn + rank]: the frozen weight, then s·B. */
  readonly W: Tensor;
  readonly bias: Tensor | null;
  /** Whether its output goes through ReLU. */
  readonly relu: boolean;
  readonly #aCast: Tensor | null;
  #theta: Tensor | undefined;
  #A: Tensor | null = null;

  constructor(
    readonly kind: ModuleKind,
    readonly dIn: number,
    readonly matrices: readonly MatrixSpec[],
    { arena, adapterOf, thetaOffset, weightDtype, activationDtype, hasBias, relu = false }: {
      arena: Arena;
      adapterOf: AdapterOf;
      thetaOffset: number;
      weightDtype: "f32" | "bf16";
      activationDtype: "f32" | "bf16";
      hasBias: boolean;
      relu?: boolean;
    },
  ) {
    const lora = matrices.map((matrix) => adapterOf(matrix.name));
    this.dOut = matrices.reduce((sum, matrix) => sum + matrix.dOut, 0);
    this.rank = lora.reduce((sum, { rank }) => sum + rank, 0);
    this.groups = {
      count: matrices.length,
      table: Int32Array.from(matrices.flatMap((matrix, g) => [matrix.dOut, lora[g]!.rank])),
      scales: Float32Array.from(lora.map(({ scale }) => scale)),
    };
    this.thetaOffset = thetaOffset;
    let a = thetaOffset, b = thetaOffset + this.rank * dIn;
    const adapters: AdaptedMatrix[] = [];
    matrices.forEach(({ name, dOut }, g) => {
      const { rank, scale } = lora[g]!;
      if (rank > 0) adapters.push({ name, kind, dIn, dOut, rank, scale, aOffset: a, bOffset: b });
      a += rank * dIn;
      b += rank * dOut;
    });
    this.adapters = adapters;
    this.thetaLength = b - thetaOffset;
    // In bf16 A lies below W, so that dL/dx = [dY | g_h] [W; A] is one product.
    const below = activationDtype === "f32" ? 0 : this.rank;
    const ld = paddedWidth(this.width, activationDtype);
    const whole = arena.reserve("weights", this.dOut + below, this.width, { dtype: weightDtype, ld });
    this.W = whole.rowRange(0, this.dOut);
    this.relu = relu;
    this.bias = hasBias ? arena.reserve("weights", 1, this.dOut, { dtype: activationDtype }) : null;
    this.#aCast = below === 0 ? null : new Tensor(arena, whole.byteOffset + this.dOut * ld * 2, below, dIn, weightDtype, ld);
  }

  /** Columns of [x | h]. */
  get width(): number {
    return this.dIn + this.rank;
  }

  /** Tells the layer where θ is; `loraRefresh` must follow whenever θ changes. */
  bind(theta: Tensor): void {
    if (this.rank === 0) return;
    this.#theta = theta.part(this.thetaOffset, 1, this.thetaLength);
    this.#A = this.#aCast ?? theta.part(this.thetaOffset, this.rank, this.dIn);
  }

  /** The adapters and where the products read them; null without any. */
  get lora(): LoraLayer | null {
    const { dIn, groups, W } = this;
    return this.#theta ? { dIn, groups, theta: this.#theta, W, aCast: this.#aCast } : null;
  }

  /** xh [T, dIn + rank] (x given, h written) → y [T, dOut], with `add` [T, dOut] added to it. */
  forward(dev: Device, T: number, xh: Tensor, y: Tensor, add: Tensor | null = null): void {
    const { dIn, groups, W, bias, relu } = this;
    linearForward(dev, T, { dIn, groups, xh, A: this.#A, W, bias, relu, add, y });
  }

  /**
   * dy [T, dOut] → dL/dx in the first dIn columns of gxh [T, dIn + rank], unless `needDx` is false. Returns dL/dh [T, rank], which lies
   * behind it, or with bf16 behind dy.
   */
  backward(dev: Device, T: number, dy: Tensor, gxh: Tensor, { needDx = true }: { needDx?: boolean } = {}): Tensor {
    const { dIn, dOut, groups, rank, W } = this;
    const behind = dy.dtype === "bf16" && dy.ld >= dOut + rank;
    const gh = behind ? new Tensor(dy.storage, dy.byteOffset + 2 * dOut, T, rank, "bf16", dy.ld) : gxh.columns(dIn, rank);
    linearBackward(dev, T, { dIn, groups, dy, A: this.#A, W, dx: needDx ? gxh : null, gh: rank > 0 ? gh : null });
    return gh;
  }
}
