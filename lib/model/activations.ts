/**
 * What the layers of a model keep from the forward pass for the backward pass, and what they compute again instead: a ladder
 * that trades time for memory (design §4).
 *
 *   none   everything is kept
 *   norms  rmsnorm and silu(gate)·up are computed again from what they were made of (elementwise: about 2 % of a step)
 *   mlp    gate and up are computed again, too: one product
 *   block  only the residual stream entering the block is kept; the rest is computed again
 *
 * Buffers of what is computed again are shared by all layers. Computed again means the same kernels on the same inputs, so that
 * every rung gives the same bits.
 */
import type { Device, Tensor } from "../../ffi/device.ts";
import { copy2d } from "../../ffi/operators.ts";
import type { Arena } from "../tensor/arena.ts";
import { type Linear, paddedWidth, roomBehind } from "./linear.ts";

/** The rungs of the ladder, least recomputation first. */
export const RUNGS = ["none", "norms", "mlp", "block"] as const;

/** How much a layer computes again. */
export type Rung = typeof RUNGS[number];

/** The first `layers` layers stand on `rung`, the others one rung lower. */
export interface Recompute {
  readonly rung: Rung;
  readonly layers: number;
}

/** Everything is kept. */
export const KEEP_ALL: Recompute = { rung: "none", layers: 0 };

/** The rung of layer l. */
export function rungOf({ rung, layers }: Recompute, l: number): Rung {
  return l < layers ? rung : RUNGS[Math.max(0, RUNGS.indexOf(rung) - 1)]!;
}

/** The activations of one layer; which of them are its own and which are shared depends on its rung. */
export interface LayerActivations {
  readonly rung: Rung;
  readonly x: Tensor; // [T,d] residual stream entering the block
  readonly n1: Tensor; // [T,d+r] rmsnorm(x), then h of q/k/v
  readonly rstd1: Tensor; // [T]
  readonly qkv: Tensor; // [T,(H+2K)D] after RoPE
  readonly attention: Tensor; // [T,HD+r] attention output, then h of o
  readonly lse: Tensor; // [T,H]
  readonly mid: Tensor; // [T,d] residual stream between attention and MLP
  readonly n2: Tensor; // [T,d+r] rmsnorm(mid), then h of gate/up
  readonly rstd2: Tensor; // [T]
  readonly gateUp: Tensor; // [T,2f]
  readonly act: Tensor; // [T,f+r] silu(gate)·up, then h of down
  /** h of the linear layers whose input is computed again but whose product is not. */
  readonly h: { qkv: Tensor | null; gateUp: Tensor | null; down: Tensor | null };
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
  readonly dtype: "f32" | "bf16";
}

interface Linears {
  qkv: Linear;
  o: Linear;
  gateUp: Linear;
  down: Linear;
}

type Buffers = Omit<LayerActivations, "rung" | "h" | "from" | "to">;
type BufferName = keyof Buffers;

/** Buffers that a rung shares among layers. */
const SHARED: Record<Rung, readonly BufferName[]> = {
  none: [],
  norms: ["n1", "n2", "act"],
  mlp: ["n1", "n2", "act", "gateUp"],
  block: ["n1", "n2", "act", "gateUp", "rstd1", "qkv", "attention", "lse", "mid", "rstd2"],
};

/** Reserves the activations of all layers. */
export function reserveActivations(
  arena: Arena,
  layers: readonly Linears[],
  { T, d, f, H, K, D, dtype }: ActivationShape,
  recompute: Recompute,
): LayerActivations[] {
  const buffer = (cols: number) => arena.reserve("activations", T, cols, { dtype });
  const beside = (layer: Linear) => arena.reserve("activations", T, layer.width, { dtype, ld: paddedWidth(layer.width, dtype) });
  const perRow = (cols = 1) => arena.reserve("activations", T, cols);
  const makers: Record<BufferName, (layer: Linears) => Tensor> = {
    x: () => buffer(d),
    n1: ({ qkv }) => beside(qkv),
    rstd1: () => perRow(),
    qkv: () => buffer((H + 2 * K) * D),
    attention: ({ o }) => beside(o),
    lse: () => perRow(H),
    mid: () => buffer(d),
    n2: ({ gateUp }) => beside(gateUp),
    rstd2: () => perRow(),
    gateUp: ({ gateUp }) => arena.reserve("activations", T, 2 * f, { dtype, ld: roomBehind(2 * f, gateUp.rank, dtype) }),
    act: ({ down }) => beside(down),
  };
  const names = Object.keys(makers) as BufferName[];
  // One shared buffer of each kind, wide enough for every layer that needs it.
  const rungs = layers.map((_, l) => rungOf(recompute, l));
  const width = (linears: Linears) => Math.max(linears.qkv.width, linears.o.width, linears.gateUp.width, linears.down.width);
  const widest = layers.reduce((most, each) => width(each) > width(most) ? each : most);
  const shared: Partial<Record<BufferName, Tensor>> = {};
  for (const name of names) {
    if (rungs.some((rung) => SHARED[rung].includes(name))) shared[name] = makers[name](widest);
  }
  return layers.map((linears, l) => {
    const rung = rungs[l]!;
    const from = arena.bytes;
    const own = Object.fromEntries(
      names.map((name) => [name, SHARED[rung].includes(name) ? shared[name]! : makers[name](linears)]),
    ) as unknown as Buffers;
    const keep = (linear: Linear, ...rungs: Rung[]) => linear.rank > 0 && rungs.includes(rung) ? buffer(linear.rank) : null;
    const h = {
      qkv: keep(linears.qkv, "norms", "mlp"),
      gateUp: keep(linears.gateUp, "norms"),
      down: keep(linears.down, "norms", "mlp", "block"),
    };
    return { rung, ...own, h, from, to: arena.bytes };
  });
}

/** Keeps h, which lies behind the input xh [T,dIn+r] of a layer whose input is shared. */
export function keepH(dev: Device, T: number, linear: Linear, xh: Tensor, h: Tensor | null): void {
  if (h) copy2d(dev, T, linear.rank, xh.columns(linear.dIn, linear.rank), h);
}

/** Puts h back behind the input. */
export function putH(dev: Device, T: number, linear: Linear, xh: Tensor, h: Tensor | null): void {
  if (h) copy2d(dev, T, linear.rank, h, xh.columns(linear.dIn, linear.rank));
}
