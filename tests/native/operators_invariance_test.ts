/** Results do not depend, to the last bit, on the number of threads or on what else is in the batch. */
import * as ops from "../../ffi/operators.ts";
import { assertSameBits, type Floats, makeGroups, normals, Workbench } from "./harness.ts";

const [T, d, f, heads, D, V] = [61, 52, 75, 3, 12, 203];
const groups = makeGroups([[40, 4], [24, 3], [9, 0]], [0.5, 2, 0]);
const [N, Q] = [73, 7];

/** Every operator that works row by row, on `rows` of a stream of T: the results, named. */
function runRows(threads: number, from: number, to: number): Record<string, Floats> {
  using bench = new Workbench(threads);
  const { dev } = bench;
  const n = to - from;
  const rows = (cols: number, seed: number, ld = cols) =>
    bench.put(normals(T * cols, seed).subarray(from * cols, to * cols), n, cols, { ld });
  const ids = (bound: number) => bench.ints(Array.from({ length: T }, (_, t) => (t * 37) % bound).slice(from, to));

  const embedded = bench.out(n, d);
  ops.embeddingForward(dev, n, { table: bench.put(normals(V * d, 1), V, d), ids: ids(V), out: embedded });

  const weight = bench.put(normals(d, 2), 1, d);
  const [x, normed, rstd] = [rows(d, 3), bench.out(n, d), bench.out(1, n)];
  ops.rmsnormForward(dev, n, { x, weight, eps: 1e-5, y: normed, rstd });
  const dnorm = rows(d, 5);
  ops.rmsnormBackward(dev, n, { x, weight, rstd, dy: rows(d, 6), dx: dnorm });

  const learned = bench.out(n, d);
  const places = { table: bench.put(normals(T * d, 19), T, d), positions: ids(T) };
  ops.embeddingForward(dev, n, { table: bench.put(normals(V * d, 1), V, d), ids: ids(V), places, out: learned });

  const [centred, stats] = [bench.out(n, d), bench.out(n, 2)];
  const layer = { weight, bias: bench.put(normals(d, 20), 1, d) };
  ops.layernormForward(dev, n, { x, ...layer, eps: 1e-5, y: centred, stats });
  const dcentred = rows(d, 5);
  ops.layernormBackward(dev, n, { x, ...layer, stats, dy: rows(d, 6), dx: dcentred, y: null });

  const drectified = rows(f, 22);
  ops.reluBackward(dev, n, { f, y: drectified, dy: rows(f, 24) });

  const angles = normals(T * D / 2, 7);
  const rotated = rows(heads * D, 8);
  const cos = bench.put(angles.map(Math.cos), T, D / 2);
  const sin = bench.put(angles.map(Math.sin), T, D / 2);
  ops.rope(dev, n, { heads, D, x: rotated, cos, sin, positions: ids(T) });

  const gateUp = rows(2 * f, 9);
  const activated = bench.out(n, f);
  ops.swigluForward(dev, n, { f, gateUp, y: activated });
  ops.swigluBackward(dev, n, { f, gateUp, dy: rows(f, 10), dGateUp: gateUp });

  const ld = d + Q;
  const theta = bench.put(normals(Q * d + 40 * 4 + 24 * 3, 11), 1, Q * d + 40 * 4 + 24 * 3);
  const W = bench.put(normals(N * d, 12), N, d, { ld });
  const linear = { dIn: d, groups, A: theta.part(0, Q, d), W };
  ops.loraRefresh(dev, [{ dIn: d, groups, theta, W, aCast: null }], "f32");
  const xh = rows(d, 13, ld);
  const [y, gxh] = [bench.out(n, N), bench.out(n, ld)];
  ops.linearForward(dev, n, { ...linear, xh, bias: bench.put(normals(N, 14), 1, N), y });
  ops.linearBackward(dev, n, { ...linear, dy: rows(N, 15), dx: gxh, gh: gxh.columns(d, Q) });

  const [losses, dx] = [bench.out(1, n), bench.out(n, d)];
  const head = { W: bench.put(normals(V * d, 16), V, d, { dtype: "bf16" }), labels: ids(V), seeds: rows(1, 17), argmax: null };
  ops.headCrossEntropy(dev, n, { ...head, x: rows(d, 18), losses, dx, work: bench.out(7, V) });

  const norms = { normed, rstd, dnorm, centred, stats, dcentred };
  const results = { embedded, learned, ...norms, rotated, activated, gateUp, drectified, y, gxh, losses, dx };
  return {
    ...Object.fromEntries(Object.entries(results).map(([name, tensor]) => [name, bench.read(tensor)])),
    h: bench.read(xh.columns(d, Q)),
  };
}

/** Operators that sum over rows or over long vectors. */
function runSums(threads: number): Record<string, Floats> {
  using bench = new Workbench(threads);
  const { dev } = bench;
  const [n, P, S] = [5, 100_003, 4];
  const cu = bench.ints([0, 20, 21, 40, T]);
  const [a, b] = [bench.put(normals(T * d, 1), T, d), bench.put(normals(T * f, 2), T, f)];
  const [outer, mean] = [bench.out(S, d * f), bench.out(S, f)];
  ops.segmentOuter(dev, S, { cu, p: d, q: f, a, b, out: outer, stride: d * f });
  ops.segmentMean(dev, S, { cu, q: f, a: b, out: mean });

  const grads = bench.put(normals(n * P, 3), n, P);
  const dots = bench.doubles(n);
  ops.rowDots(dev, n, { a: grads, b: grads.rowRange(1, 1), out: dots });
  const [grad, theta] = [bench.out(1, P), bench.put(normals(P, 4), 1, P)];
  ops.combine(dev, n, { weights: bench.put(normals(n, 5), 1, n), x: grads, y: grad });
  const [m, v] = [bench.put(normals(P, 6), 1, P), bench.put(normals(P, 7).map(Math.abs), 1, P)];
  const rates = { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0.1, bias1: 0.1, bias2: 0.05, gradScale: 1 };
  ops.adam(dev, { theta, grad, m, v }, rates);
  const preconditioned = bench.out(1, P);
  ops.adamPrecondition(dev, { g: grad, v, bias2: 0.05, eps: 1e-8, out: preconditioned });

  const results = { outer, mean, grad, theta, m, v, preconditioned };
  return {
    ...Object.fromEntries(Object.entries(results).map(([name, tensor]) => [name, bench.read(tensor)])),
    dots: new Float32Array(bench.readDoubles(dots).slice().buffer), // the bits of the doubles
  };
}

Deno.test("every operator gives the same bits with 1, 2 and 5 threads", () => {
  for (const run of [(threads: number) => runRows(threads, 0, T), runSums]) {
    const one = run(1);
    for (const threads of [2, 5]) {
      const many = run(threads);
      for (const name of Object.keys(one)) assertSameBits(many[name]!, one[name]!, `${name} with ${threads} threads`);
    }
  }
});

Deno.test("every row-wise operator gives a row the bits that it has without its neighbours", () => {
  const all = runRows(2, 0, T);
  for (const [from, to] of [[0, 1], [1, 14], [14, 60], [60, 61]] as const) {
    const alone = runRows(2, from, to);
    for (const name of Object.keys(all)) {
      const cols = all[name]!.length / T;
      assertSameBits(alone[name]!, all[name]!.slice(from * cols, to * cols), `${name} of rows ${from}..${to - 1}`);
    }
  }
});
