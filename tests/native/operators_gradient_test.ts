/** Every backward against finite differences of the operator's own forward. */
import { assert } from "@std/assert";
import type { Tensor } from "../../ffi/device.ts";
import * as ops from "../../ffi/operators.ts";
import { type Floats, makeGroups, normals, Workbench } from "./harness.ts";

const dot = (a: Floats, b: Floats) => a.reduce((sum, x, i) => sum + x * b[i]!, 0);

/**
 * Compares <gradient, direction> with a fourth-order difference of f along random directions, and along single coordinates.
 * f sums f32 results in double, so with steps of 0.05 both truncation and rounding stay near 1e-5 of a typical slope.
 */
function assertGradient(f: (x: Floats) => number, x: Floats, gradient: Floats, what: string): void {
  const h = 0.05;
  const size = Math.sqrt(dot(gradient, gradient));
  assert(size > 0.1, `${what}: the gradient is zero, so this test would prove nothing`);
  for (let trial = 0; trial < 8; trial++) {
    const direction = normals(x.length, 100 + trial);
    if (trial >= 4) direction.forEach((_, i) => direction[i] = i === (trial * 7919) % x.length ? 1 : 0);
    const length = Math.sqrt(dot(direction, direction));
    const at = (step: number) => f(x.map((value, i) => value + step * direction[i]! / length));
    const slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
    const expected = dot(gradient, direction) / length;
    assert(Math.abs(slope - expected) <= 3e-4 * size, `${what}: slope ${slope}, gradient says ${expected} (|gradient| ${size})`);
  }
}

Deno.test("rmsnormBackward() is the slope of rmsnormForward()", () => {
  using bench = new Workbench();
  const [T, d] = [3, 21];
  const x = normals(T * d, 1);
  const dy = normals(T * d, 2);
  const weight = bench.put(normals(d, 3), 1, d);
  const [y, rstd] = [bench.out(T, d), bench.out(1, T)];
  const forward = (values: Floats) => {
    ops.rmsnormForward(bench.dev, T, { x: bench.put(values, T, d), weight, eps: 1e-5, y, rstd });
    return dot(bench.read(y), dy);
  };
  forward(x);
  const dx = bench.put(new Float32Array(T * d), T, d);
  ops.rmsnormBackward(bench.dev, T, { x: bench.put(x, T, d), weight, rstd, dy: bench.put(dy, T, d), dx });
  assertGradient(forward, x, bench.read(dx), "rmsnorm");
});

Deno.test("layernormBackward() is the slope of layernormForward()", () => {
  using bench = new Workbench();
  const [T, d] = [3, 21];
  const x = normals(T * d, 1);
  const dy = normals(T * d, 2);
  const weights = { weight: bench.put(normals(d, 3), 1, d), bias: bench.put(normals(d, 4), 1, d) };
  const [y, stats] = [bench.out(T, d), bench.out(T, 2)];
  const forward = (values: Floats) => {
    ops.layernormForward(bench.dev, T, { x: bench.put(values, T, d), ...weights, eps: 1e-5, y, stats });
    return dot(bench.read(y), dy);
  };
  forward(x);
  const dx = bench.put(new Float32Array(T * d), T, d);
  ops.layernormBackward(bench.dev, T, { x: bench.put(x, T, d), ...weights, stats, dy: bench.put(dy, T, d), dx, y: null });
  assertGradient(forward, x, bench.read(dx), "layernorm");
});

Deno.test("swigluBackward() is the slope of swigluForward()", () => {
  using bench = new Workbench();
  const [T, f] = [4, 13];
  const gateUp = normals(T * 2 * f, 1);
  const dy = normals(T * f, 2);
  const y = bench.out(T, f);
  const forward = (values: Floats) => {
    ops.swigluForward(bench.dev, T, { f, gateUp: bench.put(values, T, 2 * f), y });
    return dot(bench.read(y), dy);
  };
  const dGateUp = bench.out(T, 2 * f);
  ops.swigluBackward(bench.dev, T, { f, gateUp: bench.put(gateUp, T, 2 * f), dy: bench.put(dy, T, f), dGateUp });
  assertGradient(forward, gateUp, bench.read(dGateUp), "swiglu");
});

Deno.test("rope() inverse is the slope of rope()", () => {
  using bench = new Workbench();
  const [T, heads, D, n] = [5, 2, 10, 7];
  const angles = normals(n * D / 2, 1);
  const cos = bench.put(angles.map(Math.cos), n, D / 2);
  const sin = bench.put(angles.map(Math.sin), n, D / 2);
  const shared = { heads, D, cos, sin, positions: bench.ints([3, 0, 6, 6, 1]) };
  const x = normals(T * heads * D, 2);
  const dy = normals(T * heads * D, 3);
  const forward = (values: Floats) => {
    const rotated = bench.put(values, T, heads * D);
    ops.rope(bench.dev, T, { ...shared, x: rotated });
    return dot(bench.read(rotated), dy);
  };
  const dx = bench.put(dy, T, heads * D);
  ops.rope(bench.dev, T, { ...shared, x: dx, inverse: true });
  assertGradient(forward, x, bench.read(dx), "rope");
});

Deno.test("attentionBackward() is the slope of attentionForward() in q, k and v", () => {
  using bench = new Workbench();
  const [H, K, D, T] = [4, 2, 6, 21];
  const width = (H + 2 * K) * D;
  const qkv = normals(T * width, 1);
  const dout = normals(T * H * D, 2);
  const segments = { count: 3, maxLength: 13, cu: bench.ints([0, 7, 8, T]), kvLens: bench.ints([5, 1, 13]) };
  const parts = (x: Tensor) => [x.columns(0, H * D), x.columns(H * D, K * D), x.columns((H + K) * D, K * D)] as const;
  const [out, lse] = [bench.out(T, H * D), bench.out(T, H)];
  const shape = { H, K, D, scale: 0.5 };
  const forward = (values: Floats) => {
    const [q, k, v] = parts(bench.put(values, T, width));
    ops.attentionForward(bench.dev, T, segments, { ...shape, q, k, v, out, lse });
    return dot(bench.read(out), dout);
  };
  forward(qkv);
  const [q, k, v] = parts(bench.put(qkv, T, width));
  const dqkv = bench.out(T, width);
  const [dq, dk, dv] = parts(dqkv);
  const grads = { dout: bench.put(dout, T, H * D), dq, dk, dv, work: bench.out(T, H) };
  ops.attentionBackward(bench.dev, T, segments, { ...shape, q, k, v, out, lse, ...grads });
  assertGradient(forward, qkv, bench.read(dqkv), "attention");
});

Deno.test("attentionBackward() with a rotation is the slope of rope() and attentionForward() in q, k and v", () => {
  using bench = new Workbench();
  const [H, K, D, T] = [4, 2, 6, 21];
  const width = (H + 2 * K) * D;
  const qkv = normals(T * width, 1);
  const dout = normals(T * H * D, 2);
  const angles = normals(13 * D / 2, 3);
  const positions = [7, 1, 13].flatMap((n) => Array.from({ length: n }, (_, i) => i));
  const rope = {
    cos: bench.put(angles.map(Math.cos), 13, D / 2),
    sin: bench.put(angles.map(Math.sin), 13, D / 2),
    positions: bench.ints(positions),
  };
  const segments = { count: 3, maxLength: 13, cu: bench.ints([0, 7, 8, T]), kvLens: null };
  const parts = (x: Tensor) => [x.columns(0, H * D), x.columns(H * D, K * D), x.columns((H + K) * D, K * D)] as const;
  const [out, lse] = [bench.out(T, H * D), bench.out(T, H)];
  const shape = { H, K, D, scale: 0.5 };
  const forward = (values: Floats) => {
    const x = bench.put(values, T, width);
    ops.rope(bench.dev, T, { heads: H + K, D, x, ...rope });
    const [q, k, v] = parts(x);
    ops.attentionForward(bench.dev, T, segments, { ...shape, q, k, v, out, lse });
    return { q, k, v, value: dot(bench.read(out), dout) };
  };
  const { q, k, v } = forward(qkv);
  const dqkv = bench.out(T, width);
  const [dq, dk, dv] = parts(dqkv);
  const grads = { dout: bench.put(dout, T, H * D), dq, dk, dv, work: bench.out(T, H), rope };
  ops.attentionBackward(bench.dev, T, segments, { ...shape, q, k, v, out, lse, ...grads });
  assertGradient((values) => forward(values).value, qkv, bench.read(dqkv), "attention with a rotation");
});

Deno.test("headCrossEntropy()'s dx is the slope of the seeded losses", () => {
  using bench = new Workbench();
  const [R, d, V] = [5, 9, 37];
  const x = normals(R * d, 1);
  const seeds = normals(R, 2);
  const [losses, dx] = [bench.out(1, R), bench.out(R, d)];
  const shared = {
    W: bench.put(normals(V * d, 3), V, d),
    labels: bench.ints([0, 36, 7, 7, 20]),
    seeds: bench.put(seeds, 1, R),
    losses,
    argmax: null,
    work: bench.out(2, V),
  };
  const forward = (values: Floats) => {
    ops.headCrossEntropy(bench.dev, R, { ...shared, x: bench.put(values, R, d), dx: null });
    return dot(bench.read(losses), seeds);
  };
  ops.headCrossEntropy(bench.dev, R, { ...shared, x: bench.put(x, R, d), dx });
  assertGradient(forward, x, bench.read(dx), "head");
});

Deno.test("linearBackward() and segmentOuter() are the slopes of linearForward() in the input and the adapter", () => {
  using bench = new Workbench();
  const [T, dIn] = [6, 10];
  const groups = makeGroups([[7, 2], [4, 0], [5, 3]], [0.5, 0, 2]);
  const [N, Q] = [16, 5];
  const ld = dIn + Q;
  const x = normals(T * dIn, 1);
  const dy = normals(T * N, 2);
  const frozen = normals(N * dIn, 3);
  const theta = normals(Q * dIn + 7 * 2 + 5 * 3, 4);
  const y = bench.out(T, N);
  const layer = (adapter: Floats) => {
    const W = bench.put(frozen, N, dIn, { ld });
    const block = bench.put(adapter, 1, adapter.length);
    ops.loraRefresh(bench.dev, [{ dIn, groups, theta: block, W, aCast: null }], "f32");
    return { dIn, groups, A: block.part(0, Q, dIn), W };
  };
  const forward = (input: Floats, adapter: Floats) => {
    const xh = bench.put(input, T, dIn, { ld });
    ops.linearForward(bench.dev, T, { ...layer(adapter), xh, bias: null, y });
    return { xh, value: dot(bench.read(y), dy) };
  };
  const { xh } = forward(x, theta);
  const gxh = bench.out(T, dIn, ld);
  const gradY = bench.put(dy, T, N);
  ops.linearBackward(bench.dev, T, { ...layer(theta), dy: gradY, dx: gxh, gh: gxh.columns(dIn, gxh.cols - dIn) });
  assertGradient((values) => forward(values, theta).value, x, bench.read(gxh), "linear, input");

  const dtheta = bench.out(1, theta.length);
  const cu = bench.ints([0, T]);
  const outer = (at: number, p: number, q: number, a: Tensor, b: Tensor, alpha: number) =>
    ops.segmentOuter(bench.dev, 1, { cu, p, q, a, b, out: dtheta.part(at, p, q), alpha });
  outer(0, Q, dIn, gxh.columns(dIn, Q), xh, 1);
  outer(Q * dIn, 7, 2, gradY.columns(0, 7), xh.columns(dIn, 2), 0.5);
  outer(Q * dIn + 14, 5, 3, gradY.columns(11, 5), xh.columns(dIn + 2, 3), 2);
  assertGradient((values) => forward(x, values).value, theta, bench.read(dtheta), "linear, adapter");
});
