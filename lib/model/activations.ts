/**
 * What the layers of a model keep from the forward pass for the backward pass, and what they compute again instead: a ladder
 * that trades time for memory (design §4).
 *
 *   none   nothing is computed again
 *   mlp    gate and up are (in OPT, the output of ReLU): one product
 *   qkv    q, k and v are, too: another product
 *   block  only the residual stream entering the block is kept; attention and the product behind it are computed again, too
 *
 * Outputs of norms and of silu(gate)·up are kept on no rung: the backward pass needs them for adapter gradients alone, which read
 * them out of what they were made of (`ml_linear_gradients` with the factors of RMSNorm, `ml_swiglu_gradients`), or out of what the
 * norm's backward pass forms on its way (`ml_layernorm_backward`).
 *
 * Buffers of what is computed again are shared by all layers. Computed again means the same kernels on the same inputs, so that
 * every rung gives the same bits.
 */
import type { Device, Tensor } from "../../ffi/device.ts";
import { copy2d } from "../../ffi/operators.ts";
import type { Arena } from "../tensor/arena.ts";
import { type Linear, paddedWidth, roomBehind } from "./linear.ts";

/** The rungs of the ladder, least recomputation first. */
export const RUNGS = ["none", "mlp", "qkv", "block"] as const;

/** How much a layer computes again. */
export type Rung = typeof RUNGS[number];

/**
 * The last `layers` layers stand on `rung`, the others one rung lower. The last layer of all is not computed again: what layers
 * share is still there from its forward pass.
 */
export interface Recompute {
  readonly rung: Rung;
  readonly layers: number;
}

/** Everything is kept. */
export const KEEP_ALL: Recompute = { rung: "none", layers: 0 };

/** The rung of layer l of L. */
export function rungOf({ rung, layers }: Recompute, l: number, L: number): Rung {
  return l >= L - layers ? rung : RUNGS[Math.max(0, RUNGS.indexOf(rung) - 1)]!;
}

/** The activations of one layer; which of them are its own and which are shared depends on its rung. */
export interface LayerActivations {
  /** What the backward pass computes again, so that the forward pass need not keep its h. */
  readonly again: { readonly qkv: boolean; readonly attention: boolean; readonly mlp: boolean };
  readonly x: Tensor; // [T,d] residual stream entering the block
  readonly stats1: Tensor; // [T,1 or 2] what the norm before q, k, v keeps of a row
  readonly qkv: Tensor; // [T,(H+2K)D] after RoPE, where there is one
  readonly attention: Tensor; // [T,HD+r] attention output, then h of o
  readonly lse: Tensor; // [T,H]
  readonly mid: Tensor; // [T,d] residual stream between attention and MLP
  readonly stats2: Tensor; // [T,1 or 2] what the norm before the MLP keeps of a row
  readonly gateUp: Tensor; // [T,2f]; in OPT [T,f+r] output of ReLU, then h of down
  /** h [T,r] of the linear layers whose input is not kept; null without an adapter, or without a backward pass. */
  readonly h: { readonly qkv: Tensor | null; readonly gateUp: Tensor | null; readonly down: Tensor | null };
  /** Where the layer's own buffers lie in the arena: bytes `from` .. `to`. */
  readonly from: number;
  readonly to: number;
}

/** Sizes that activations depend on. */
export interface ActivationShape {
  readonly T: number;
  readonly d: number;
  readonly f: number;
  readonly H: number;
  readonly K: number;
  readonly D: number;
  /** Numbers that a norm keeps of a row. */
  readonly stats: number;
  /** Whether the MLP has a gate beside up. */
  readonly gated: boolean;
  readonly dtype: "f32" | "bf16";
}

interface Linears {
  qkv: Linear;
  o: Linear;
  gateUp: Linear;
  down: Linear;
}

type Buffers = Omit<LayerActivations, "again" | "h" | "from" | "to">;
type BufferName = keyof Buffers;

/** Buffers that a rung shares among layers. */
const SHARED: Record<Rung, readonly BufferName[]> = {
  none: [],
  mlp: ["gateUp"],
  qkv: ["gateUp", "stats1", "qkv", "stats2"],
  block: ["gateUp", "stats1", "qkv", "attention", "lse", "mid", "stats2"],
};

/** Linear layers whose h a rung shares among layers. */
const SHARED_H: Record<Rung, readonly (keyof LayerActivations["h"])[]> = {
  none: [],
  mlp: ["gateUp"],
  qkv: ["qkv", "gateUp"],
  block: ["qkv", "gateUp"],
};

/** Reserves the activations of all layers; `keepH` with the h that a backward pass needs. */
export function reserveActivations(
  arena: Arena,
  layers: readonly Linears[],
  { T, d, f, H, K, D, stats, gated, dtype }: ActivationShape,
  { recompute, keepH }: { recompute: Recompute; keepH: boolean },
): LayerActivations[] {
  const buffer = (cols: number) => arena.reserve("activations", T, cols, { dtype });
  // Rows of bf16 on the 16-byte grid that kernels copy by.
  const hBuffer = (rank: number) =>
    arena.reserve("activations", T, rank, { dtype, ld: dtype === "bf16" ? Math.ceil(rank / 8) * 8 : rank });
  const perRow = (cols = 1) => arena.reserve("activations", T, cols);
  const makers: Record<BufferName, (layer: Linears) => Tensor> = {
    x: () => buffer(d),
    stats1: () => perRow(stats),
    qkv: () => buffer((H + 2 * K) * D),
    attention: ({ o }) => arena.reserve("activations", T, o.width, { dtype, ld: paddedWidth(o.width, dtype) }),
    lse: () => perRow(H),
    mid: () => buffer(d),
    stats2: () => perRow(stats),
    // dL/d(gate, up) takes its place. With ReLU it is the input of down as well, whose h lies behind it until then.
    gateUp: ({ gateUp, down }) =>
      gated
        ? arena.reserve("activations", T, 2 * f, { dtype, ld: roomBehind(2 * f, gateUp.rank, dtype) })
        : arena.reserve("activations", T, f, { dtype, ld: paddedWidth(f + Math.max(gateUp.rank, down.rank), dtype) }),
  };
  const names = Object.keys(makers) as BufferName[];
  const rungs = layers.map((_, l) => rungOf(recompute, l, layers.length));
  // One shared buffer of each kind, wide enough for every layer that needs it.
  const widest = (rank: (linears: Linears) => number) => layers.reduce((most, each) => rank(each) > rank(most) ? each : most);
  const shared: Partial<Record<BufferName, Tensor>> = {};
  for (const name of names) {
    if (rungs.some((rung) => SHARED[rung].includes(name))) {
      shared[name] = makers[name](
        widest(({ o, gateUp, down }) => name === "attention" ? o.rank : gated ? gateUp.rank : Math.max(gateUp.rank, down.rank)),
      );
    }
  }
  const sharedH: Partial<Record<keyof LayerActivations["h"], Tensor>> = {};
  for (const name of ["qkv", "gateUp"] as const) {
    const rank = Math.max(...layers.map((linears) => linears[name].rank));
    if (keepH && rank > 0 && rungs.some((rung) => SHARED_H[rung].includes(name))) sharedH[name] = hBuffer(rank);
  }
  return layers.map((linears, l) => {
    const rung = rungs[l]!;
    const from = arena.bytes;
    const own = Object.fromEntries(
      names.map((name) => [name, SHARED[rung].includes(name) ? shared[name]! : makers[name](linears)]),
    ) as unknown as Buffers;
    const hOf = (name: keyof LayerActivations["h"]) => {
      const { rank } = linears[name];
      if (!keepH || rank === 0) return null;
      return SHARED_H[rung].includes(name) ? sharedH[name]!.columns(0, rank) : hBuffer(rank);
    };
    const h = { qkv: hOf("qkv"), gateUp: hOf("gateUp"), down: hOf("down") };
    const last = l === layers.length - 1;
    const isAgain = (name: BufferName) => SHARED[rung].includes(name) && !last;
    const again = { qkv: isAgain("qkv"), attention: isAgain("attention"), mlp: isAgain("gateUp") };
    return { again, ...own, h, from, to: arena.bytes };
  });
}

/** Keeps h, which lies behind the input xh [T,dIn+r] of a layer whose input is not kept. */
export function keepH(dev: Device, T: number, linear: Linear, xh: Tensor, h: Tensor | null): void {
  if (h) copy2d(dev, T, linear.rank, xh.columns(linear.dIn, linear.rank), h);
}
