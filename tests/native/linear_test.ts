import { assert } from "@std/assert";
import { linearBackward, linearForward, loraRefresh, segmentOuter } from "../../ffi/operators.ts";
import { assertSameBits, type Floats, makeGroups, normals, Workbench } from "./harness.ts";
import { assertBounded, asStored, integers, product, testEach } from "./reference.ts";

/** A linear group with random weights, as the operators hold it: W with its adapter columns, theta with A and B. */
interface Layer {
  readonly dIn: number;
  readonly table: readonly (readonly [number, number])[];
  readonly scales: readonly number[];
  readonly N: number;
  readonly Q: number;
  /** [N, dIn] as stored. */
  readonly frozen: Floats;
  /** A [Q, dIn], then B_g [d_out_g, r_g]. */
  readonly theta: Floats;
  readonly kind: "f32" | "bf16";
}

function makeLayer(
  dIn: number,
  table: readonly (readonly [number, number])[],
  seed: number,
  kind: "f32" | "bf16" = "f32",
): Layer {
  const N = table.reduce((sum, [dOut]) => sum + dOut, 0), Q = table.reduce((sum, [, r]) => sum + r, 0);
  const parameters = table.reduce((sum, [dOut, r]) => sum + r * (dIn + dOut), 0);
  return {
    dIn,
    table,
    scales: table.map((_, g) => [0.5, 2, 1.25][g % 3]!),
    N,
    Q,
    frozen: asStored(normals(N * dIn, seed), kind),
    theta: normals(parameters, seed + 1),
    kind,
  };
}

/** W [N, dIn + Q + pad] on the device: NaN in every adapter column, before loraRefresh fills them. */
function putLayer(bench: Workbench, layer: Layer, pad = 3) {
  const { N, Q, dIn, frozen, theta, kind } = layer;
  const wide = new Float32Array(N * (dIn + Q)).fill(NaN);
  for (let n = 0; n < N; n++) wide.set(frozen.subarray(n * dIn, (n + 1) * dIn), n * (dIn + Q));
  const W = bench.put(wide, N, dIn + Q, { ld: dIn + Q + pad, dtype: kind });
  const groups = makeGroups(layer.table, layer.scales);
  const parameters = bench.put(theta, 1, Math.max(1, theta.length));
  loraRefresh(bench.dev, [{ dIn, groups, theta: parameters, W, aCast: null }], "f32");
  return { W, groups, theta: parameters, A: Q > 0 ? parameters.part(0, Q, dIn) : null };
}

/** s_g B_g[n, j] of every group as W holds it, and for each output row its group's first column and rank. */
function adapterColumns({ table, scales, theta, Q, dIn, N, kind }: Layer) {
  const sB = new Float32Array(N * Q);
  const owner: { first: number; r: number }[] = [];
  let at = Q * dIn, row = 0, first = 0;
  table.forEach(([dOut, r], g) => {
    for (let n = 0; n < dOut; n++, row++) {
      owner.push({ first, r });
      for (let j = 0; j < r; j++) sB[row * Q + first + j] = Math.fround(Math.fround(scales[g]!) * theta[at + n * r + j]!);
    }
    at += dOut * r;
    first += r;
  });
  return { sB: asStored(sB, kind), owner };
}

const shapes: (readonly [number, readonly (readonly [number, number])[]])[] = [
  [17, [[23, 5]]],
  [40, [[24, 8], [12, 8], [12, 8]]], // q, k, v
  [33, [[50, 7], [50, 3]]], // gate, up
  [21, [[19, 0]]], // no adapter
  [26, [[15, 4], [9, 0], [14, 6]]], // one matrix of three without
];

testEach("linearForward() computes h = x Aᵀ and y = x Wᵀ + s h Bᵀ + bias + add, or ReLU, for groups of any ranks", (isa) => {
  let seed = 1;
  for (const [dIn, table] of shapes) {
    for (const kind of ["f32", "bf16"] as const) {
      for (
        const [withBias, adding] of [[false, "nothing"], [true, "nothing"], [true, "a matrix"], [false, "y itself"], [
          true,
          "relu",
        ]] as const
      ) {
        const layer = makeLayer(dIn, table, seed++, kind);
        const { N, Q } = layer, T = 37;
        using bench = new Workbench();
        const { W, groups, A } = putLayer(bench, layer);
        const x = normals(T * dIn, seed), bias = normals(N, seed + 9);
        const wide = new Float32Array(T * (dIn + Q)).fill(NaN);
        for (let t = 0; t < T; t++) wide.set(x.subarray(t * dIn, (t + 1) * dIn), t * (dIn + Q));
        const xh = bench.put(wide, T, dIn + Q, { ld: dIn + Q + 2 }), stream = normals(T * N, seed + 10);
        const y = adding === "y itself" ? bench.put(stream, T, N, { ld: N + 5 }) : bench.out(T, N, N + 5);
        const add = adding === "y itself" ? y : adding === "a matrix" ? bench.put(stream, T, N, { ld: N + 3 }) : null;
        linearForward(bench.dev, T, {
          dIn,
          groups,
          xh,
          A,
          W,
          bias: withBias ? bench.put(bias, 1, N) : null,
          relu: adding === "relu",
          add,
          y,
        });

        const after = bench.read(xh);
        const h = new Float32Array(T * Q);
        for (let t = 0; t < T; t++) {
          assertSameBits(after.slice(t * (dIn + Q), t * (dIn + Q) + dIn), x.slice(t * dIn, (t + 1) * dIn), "x");
          h.set(after.subarray(t * (dIn + Q) + dIn, (t + 1) * (dIn + Q)), t * Q);
        }
        assertBounded(h, product(T, Q, dIn, (t, k) => x[t * dIn + k]!, (k, q) => layer.theta[q * dIn + k]!), `h of ${table}`);
        const { sB } = adapterColumns(layer);
        const rounded = isa === "avx512bf16" && kind === "bf16" ? asStored(after, "bf16") : after;
        const exact = product(
          T,
          N,
          dIn + Q,
          (t, k) => rounded[t * (dIn + Q) + k]!,
          (k, n) => k < dIn ? layer.frozen[n * dIn + k]! : sB[n * Q + k - dIn]!,
          withBias || add ? { beta: 1, c: (t, n) => (withBias ? bias[n]! : 0) + (add ? stream[t * N + n]! : 0) } : {},
        );
        if (adding === "relu") exact.values.forEach((value, i) => exact.values[i] = Math.max(value, 0));
        assertBounded(bench.read(y), exact, `y of ${table} ${kind}`);
        bench.paddingUntouched(xh);
        bench.paddingUntouched(y);
      }
    }
  }
});

testEach("linearForward() never reads the adapter columns of other groups", () => {
  const layer = makeLayer(16, [[10, 4], [6, 8]], 5);
  const T = 9,
    run = (poison: boolean) => {
      using bench = new Workbench();
      const { W, groups, A } = putLayer(bench, layer);
      if (poison) {
        const { symbols, ctx } = bench.dev;
        const nan = (rows: number, cols: number, at: typeof W) =>
          bench.dev.check(
            symbols.ml_upload_2d(
              ctx,
              rows,
              cols,
              new Uint8Array(new Float32Array(rows * cols).fill(NaN).buffer),
              0,
              at.pointer,
              0,
              at.ld,
            ),
          );
        nan(10, 8, W.rowRange(0, 10).columns(20, 8));
        nan(6, 4, W.rowRange(10, 6).columns(16, 4));
      }
      const xh = bench.put(normals(T * 28, 3), T, 28), y = bench.out(T, 16);
      linearForward(bench.dev, T, { dIn: 16, groups, xh, A, W, bias: null, y });
      return bench.read(y);
    };
  assertSameBits(run(true), run(false), "y");
});

testEach("linearBackward() computes g_h = s dY B and dx = dY W + g_h A, with and without dx", (isa) => {
  let seed = 100;
  for (const [dIn, table] of shapes) {
    for (const kind of ["f32", "bf16"] as const) {
      for (const needDx of [true, false]) {
        const layer = makeLayer(dIn, table, seed++, kind);
        const { N, Q } = layer, T = 29;
        using bench = new Workbench();
        const { W, groups, A } = putLayer(bench, layer);
        const dY = normals(T * N, seed);
        const dy = bench.put(dY, T, N, { ld: N + 1 }), gxh = bench.out(T, dIn + Q, dIn + Q + 4);
        linearBackward(bench.dev, T, { dIn, groups, dy, A, W, dx: needDx ? gxh : null, gh: Q > 0 ? gxh.columns(dIn, Q) : null });
        const after = bench.read(gxh);
        const gh = new Float32Array(T * Q), dx = new Float32Array(T * dIn);
        for (let t = 0; t < T; t++) {
          dx.set(after.subarray(t * (dIn + Q), t * (dIn + Q) + dIn), t * dIn);
          gh.set(after.subarray(t * (dIn + Q) + dIn, (t + 1) * (dIn + Q)), t * Q);
        }
        const { sB } = adapterColumns(layer);
        const rounded = isa === "avx512bf16" && kind === "bf16" ? asStored(dY, "bf16") : dY;
        assertBounded(gh, product(T, Q, N, (t, n) => rounded[t * N + n]!, (n, q) => sB[n * Q + q]!), `g_h of ${table} ${kind}`);
        if (!needDx) continue;
        const exact = product(
          T,
          dIn,
          N + Q,
          (t, n) => n < N ? rounded[t * N + n]! : gh[t * Q + n - N]!,
          (n, j) => n < N ? layer.frozen[n * dIn + j]! : layer.theta[(n - N) * dIn + j]!,
        );
        assertBounded(dx, exact, `dx of ${table} ${kind}`);
        bench.paddingUntouched(gxh);
      }
    }
  }
});

testEach("linearBackward() and segmentOuter() give the slope of the loss in x, A and B", () => {
  const pick = integers(3);
  const layer = makeLayer(12, [[10, 4], [7, 3]], 9);
  const { dIn, Q, N, table } = layer, T = 8;
  const x = normals(T * dIn, 21), dY = normals(T * N, 22);
  // the loss: Σ y · dY, in double precision from exact f32 parameters
  const loss = (x: Float64Array, theta: Float64Array) => {
    const { owner } = adapterColumns(layer);
    let sum = 0, offset = Q * dIn;
    const bOffset: number[] = [];
    table.forEach(([dOut, r]) => {
      for (let n = 0; n < dOut; n++) bOffset.push(offset + n * r);
      offset += dOut * r;
    });
    const scaleOf = table.flatMap(([dOut], g) => Array(dOut).fill(layer.scales[g]!));
    for (let t = 0; t < T; t++) {
      const h = Array.from({ length: Q }, (_, q) => {
        let dot = 0;
        for (let k = 0; k < dIn; k++) dot += x[t * dIn + k]! * theta[q * dIn + k]!;
        return dot;
      });
      for (let n = 0; n < N; n++) {
        let y = 0;
        for (let k = 0; k < dIn; k++) y += x[t * dIn + k]! * layer.frozen[n * dIn + k]!;
        for (let j = 0; j < owner[n]!.r; j++) y += scaleOf[n] * h[owner[n]!.first + j]! * theta[bOffset[n]! + j]!;
        sum += y * dY[t * N + n]!;
      }
    }
    return sum;
  };

  using bench = new Workbench();
  const { W, groups, A } = putLayer(bench, layer);
  const wide = new Float32Array(T * (dIn + Q));
  for (let t = 0; t < T; t++) wide.set(x.subarray(t * dIn, (t + 1) * dIn), t * (dIn + Q));
  const xh = bench.put(wide, T, dIn + Q), y = bench.out(T, N), dy = bench.put(dY, T, N), gxh = bench.out(T, dIn + Q);
  linearForward(bench.dev, T, { dIn, groups, xh, A, W, bias: null, y });
  linearBackward(bench.dev, T, { dIn, groups, dy, A, W, dx: gxh, gh: gxh.columns(dIn, Q) });
  const grad = bench.out(1, layer.theta.length), cu = bench.ints([0, T]);
  // grad_A of all groups at once; grad_B_g = s_g dY_gᵀ h_g
  segmentOuter(bench.dev, 1, { cu, p: Q, q: dIn, a: gxh.columns(dIn, Q), b: xh, out: grad.part(0, Q, dIn) });
  let at = Q * dIn, n = 0, q = 0;
  table.forEach(([dOut, r], g) => {
    const [a, b] = [dy.columns(n, dOut), xh.columns(dIn + q, r)];
    segmentOuter(bench.dev, 1, { cu, p: dOut, q: r, a, b, out: grad.part(at, dOut, r), alpha: layer.scales[g]! });
    at += dOut * r;
    n += dOut;
    q += r;
  });
  const gradient = bench.read(grad), dx = bench.read(gxh.columns(0, dIn));

  const slope = (which: "x" | "theta", index: number) => {
    const step = 1e-4,
      from = (sign: number) => {
        const [moved, theta] = [Float64Array.from(x), Float64Array.from(layer.theta)];
        (which === "x" ? moved : theta)[index]! += sign * step;
        return loss(moved, theta);
      };
    return (from(1) - from(-1)) / (2 * step);
  };
  for (let round = 0; round < 60; round++) {
    const i = pick(0, T * dIn - 1), j = pick(0, layer.theta.length - 1);
    const [wantX, wantT] = [slope("x", i), slope("theta", j)];
    assert(Math.abs(dx[i]! - wantX) < 1e-3 * (1 + Math.abs(wantX)), `dx[${i}] = ${dx[i]}, slope ${wantX}`);
    assert(Math.abs(gradient[j]! - wantT) < 1e-3 * (1 + Math.abs(wantT)), `gradient[${j}] = ${gradient[j]}, slope ${wantT}`);
  }
});

testEach("loraRefresh() writes s B into each group's own columns, zeros into the others', and leaves the rest alone", () => {
  for (const kind of ["f32", "bf16"] as const) {
    const layer = makeLayer(6, [[5, 2], [4, 0], [3, 3]], 31, kind);
    using bench = new Workbench();
    const f32 = new Float32Array(layer.N * (6 + 5));
    const { W } = putLayer(bench, layer);
    const { sB } = adapterColumns(layer);
    if (kind === "f32") {
      f32.set(bench.read(W));
      for (let n = 0; n < layer.N; n++) {
        assertSameBits(f32.slice(n * 11, n * 11 + 6), layer.frozen.slice(n * 6, (n + 1) * 6), `row ${n}, frozen`);
        assertSameBits(f32.slice(n * 11 + 6, (n + 1) * 11), sB.slice(n * 5, (n + 1) * 5), `row ${n}, adapters`);
      }
      bench.paddingUntouched(W);
    } else {
      // read through a product with the identity
      const identity = Float32Array.from({ length: 11 * 11 }, (_, i) => i % 12 === 0 ? 1 : 0);
      const y = bench.out(11, layer.N), xh = bench.put(identity, 11, 11);
      const plain = makeGroups([[layer.N, 0]], [1]);
      linearForward(bench.dev, 11, { dIn: 11, groups: plain, xh, A: null, W, bias: null, y });
      const columns = bench.read(y);
      for (let n = 0; n < layer.N; n++) {
        for (let k = 0; k < 11; k++) {
          const want = k < 6 ? layer.frozen[n * 6 + k]! : sB[n * 5 + k - 6]!;
          assert(columns[k * layer.N + n]! === want, `W[${n},${k}] is ${columns[k * layer.N + n]}, expected ${want}`);
        }
      }
    }
  }
});
