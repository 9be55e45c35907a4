/** Linear layers with adapters, sums over segments, flat vectors and Adam against PyTorch float64. */
import { assertEquals } from "@std/assert";
import type { Tensor } from "../../ffi/device.ts";
import * as ops from "../../ffi/operators.ts";
import { assertClose, assertSameBits, fixtureCases, makeGroups, normals, productTolerance, Workbench } from "./harness.ts";

const TOLERANCE = 1e-5;

Deno.test("linearForward() and linearBackward() give y, h, dx and g_h of every group", () => {
  using bench = new Workbench();
  for (const each of fixtureCases("linear")) {
    const [T, dIn, N, Q] = [each.number("T"), each.number("d_in"), each.number("N"), each.number("Q")];
    const groups = makeGroups(each.value<[number, number][]>("groups"), each.value<number[]>("scales"));
    const ld = dIn + Q + 3;
    for (const dtype of ["f32", "bf16"] as const) {
      if (dtype === "bf16" && !each.value<boolean>("exact_in_bf16")) continue;
      const what = `${each.name} ${dtype}`;
      const tolerance = productTolerance(bench.dev, dtype, TOLERANCE);
      const theta = bench.put(each.f32("theta"), 1, each.f32("theta").length);
      const W = bench.put(each.f32("W"), N, dIn, { ld, dtype });
      ops.loraRefresh(bench.dev, [{ dIn, groups, theta, W, aCast: null }], "f32");
      const A = Q > 0 ? theta.part(0, Q, dIn) : null;

      const xh = bench.put(each.f32("x"), T, dIn, { ld });
      const y = bench.out(T, N, N + 1);
      const bias = each.value<boolean>("bias") ? bench.put(each.f32("bias"), 1, N) : null;
      ops.linearForward(bench.dev, T, { dIn, groups, xh, A, W, bias, y });
      assertClose(bench.read(y), each.f32("y"), tolerance, `${what} y`);
      assertClose(bench.read(xh), each.f32("x"), 0, `${what} x stays`);
      if (Q > 0) assertClose(bench.read(xh.columns(dIn, Q)), each.f32("h"), tolerance, `${what} h`);
      bench.paddingUntouched(y);

      const gxh = bench.out(T, dIn, ld);
      const dy = bench.put(each.f32("dy"), T, N, { ld: N + 2 });
      ops.linearBackward(bench.dev, T, { dIn, groups, dy, A, W, dx: gxh, gh: Q > 0 ? gxh.columns(dIn, Q) : null });
      assertClose(bench.read(gxh), each.f32("dx"), tolerance, `${what} dx`);
      if (Q > 0) assertClose(bench.read(gxh.columns(dIn, Q)), each.f32("gh"), tolerance, `${what} g_h`);

      if (Q === 0) continue;
      const only = bench.out(T, dIn, ld);
      ops.linearBackward(bench.dev, T, { dIn, groups, dy, A, W, dx: null, gh: Q > 0 ? only.columns(dIn, Q) : null });
      assertClose(bench.read(only.columns(dIn, Q)), each.f32("gh"), tolerance, `${what} g_h alone`);

      // The adapter's gradients come from x, h, g_h and dy: grad A = g_h^T x, grad B = s dy^T h.
      const dtheta = bench.out(1, each.f32("theta").length);
      const cu = bench.ints([0, T]);
      let [at, row, col] = [0, 0, 0];
      for (const half of ["A", "B"] as const) {
        row = col = 0;
        each.value<[number, number][]>("groups").forEach(([dOut, r], g) => {
          const [p, q] = half === "A" ? [r, dIn] : [dOut, r];
          if (r > 0) {
            const a = half === "A" ? gxh.columns(dIn + col, r) : dy.columns(row, dOut);
            const b = half === "A" ? xh : xh.columns(dIn + col, r);
            const alpha = half === "A" ? 1 : groups.scales[g]!;
            ops.segmentOuter(bench.dev, 1, { cu, p, q, a, b, out: dtheta.part(at, p, q), alpha });
            at += p * q;
          }
          row += dOut;
          col += r;
        });
      }
      assertClose(bench.read(dtheta), each.f32("dtheta"), tolerance, `${what} gradient of the adapter`);

      const once = bench.out(1, dtheta.cols), [gh, h] = [gxh, xh].map((both) => both.columns(dIn, Q)) as [Tensor, Tensor];
      ops.linearGradients(bench.dev, 1, { cu, dIn, groups, x: xh, gh, h, dy, out: once, stride: dtheta.cols, beta: 0 });
      assertSameBits(bench.read(once), bench.read(dtheta), `${what} gradient of the adapter at once`);
    }
  }
});

Deno.test("segmentOuter() of a norm is that of the rows that the norm makes", () => {
  using bench = new Workbench();
  const [S, T, p, q] = [3, 23, 5, 200], stride = p * q + 1;
  const cu = bench.ints([0, 9, 9, 21]), a = bench.put(normals(T * p, 1), T, p, { ld: p + 3 });
  const x = bench.put(normals(T * q, 2), T, q),
    weight = bench.put(normals(q, 3), 1, q),
    rstd = bench.out(1, T),
    y = bench.out(T, q);
  ops.rmsnormForward(bench.dev, T, { x, weight, eps: 1e-5, y, rstd });
  for (const beta of [0, 1, -0.5]) {
    const old = normals(S * p * q, 4);
    const [want, got] = [null, { rstd, weight }].map((norm) => {
      const out = bench.put(beta === 0 ? old.map(() => NaN) : old, S, p * q, { ld: stride });
      ops.segmentOuter(bench.dev, S, { cu, p, q, a, b: norm ? x : y, norm, out, stride, alpha: 0.75, beta });
      return bench.read(out);
    });
    assertClose(got!, want!, TOLERANCE, `beta ${beta}`);
  }
});

Deno.test("swigluGradients() is swigluBackward() and an outer product for each adapter, whichever there are", () => {
  const [S, T, f] = [3, 23, 19], offsets = [0, 9, 9, 21], used = 21;
  for (const [rY, rGate, rUp] of [[4, 3, 5], [4, 0, 0], [0, 3, 5], [0, 0, 2], [2, 2, 0], [0, 0, 0]] as const) {
    for (const beta of [0, 1]) {
      using bench = new Workbench();
      const { dev } = bench, r = rGate + rUp, stride = (rY + r) * f + 3;
      const cu = bench.ints(offsets), gateUp = bench.put(normals(T * 2 * f, 1), T, 2 * f, { ld: 2 * f + 5 });
      const dy = bench.put(normals(T * f, 2), T, f, { ld: f + 2 }), y = bench.out(T, f), dGateUp = bench.out(T, 2 * f, 2 * f + 5);
      const gh = bench.put(normals(T * Math.max(1, rY), 3), T, Math.max(1, rY)),
        h = bench.put(normals(T * Math.max(1, r), 4), T, Math.max(1, r));
      const start = normals(S * ((rY + r) * f || 1), 5), values = beta === 0 ? start.map(() => NaN) : start;
      const [want, got] = [0, 1].map(() => bench.put(values, S, (rY + r) * f || 1, { ld: stride })) as [Tensor, Tensor];
      ops.swigluForward(dev, T, { f, gateUp, y });
      ops.swigluBackward(dev, T, { f, gateUp, dy, dGateUp });
      const outer = (p: number, q: number, a: Tensor, b: Tensor, at: number, alpha: number) =>
        p * q > 0 && ops.segmentOuter(dev, S, { cu, p, q, a, b, out: want.columns(at, p * q), stride, alpha, beta });
      outer(rY, f, gh, y, 0, 1);
      outer(f, rGate, dGateUp.columns(0, f), h.columns(0, rGate), rY * f, 0.5);
      outer(f, rUp, dGateUp.columns(f, f), h.columns(rGate, rUp), (rY + rGate) * f, 0.25);
      ops.swigluGradients(dev, T, S, {
        ...{ cu, f, gateUp, dy, beta, stride },
        y: rY > 0 ? { rank: rY, gh, out: got.columns(0, 1) } : null,
        gateAndUp: r > 0 ? { ranks: [rGate, rUp], scales: [0.5, 0.25], h, out: got.columns(rY * f, 1) } : null,
      });
      const what = `ranks ${rY}, ${rGate}, ${rUp}, beta ${beta}`;
      if (rY + r > 0) assertSameBits(bench.read(got), bench.read(want), `${what}: gradients`);
      const rows = (tensor: Tensor) => bench.read(tensor.rowRange(0, used));
      assertSameBits(rows(gateUp), rows(dGateUp), `${what}: dGateUp`);
      bench.paddingUntouched(gateUp);
    }
  }
});

Deno.test("reluGradients() is reluBackward() and an outer product for each adapter, whichever there are", () => {
  const [S, T, f] = [3, 23, 19], offsets = [0, 9, 9, 21], used = 21;
  for (const [rY, rX] of [[4, 3], [4, 0], [0, 5], [0, 0]] as const) {
    for (const beta of [0, 1]) {
      using bench = new Workbench();
      const { dev } = bench, all = (rY + rX) * f || 1, stride = all + 3, cu = bench.ints(offsets);
      const made = normals(T * f, 1).map((x) => Math.max(0, x));
      const [y, dx] = [0, 1].map(() => bench.put(made, T, f, { ld: f + 5 })) as [Tensor, Tensor];
      const dy = bench.put(normals(T * f, 2), T, f, { ld: f + 2 });
      const gh = bench.put(normals(T * Math.max(1, rY), 3), T, Math.max(1, rY)),
        h = bench.put(normals(T * Math.max(1, rX), 4), T, Math.max(1, rX));
      const start = normals(S * all, 5), values = beta === 0 ? start.map(() => NaN) : start;
      const [want, got] = [0, 1].map(() => bench.put(values, S, all, { ld: stride })) as [Tensor, Tensor];
      const outer = (p: number, q: number, a: Tensor, b: Tensor, at: number, alpha: number) =>
        p * q > 0 && ops.segmentOuter(dev, S, { cu, p, q, a, b, out: want.columns(at, p * q), stride, alpha, beta });
      outer(rY, f, gh, dx, 0, 1);
      ops.reluBackward(dev, T, { f, y: dx, dy });
      outer(f, rX, dx, h, rY * f, 0.5);
      ops.reluGradients(dev, T, S, {
        ...{ cu, f, y, dy, beta, stride },
        behind: rY > 0 ? { rank: rY, gh, out: got.columns(0, 1) } : null,
        before: rX > 0 ? { rank: rX, scale: 0.5, h, out: got.columns(rY * f, 1) } : null,
      });
      const what = `ranks ${rY}, ${rX}, beta ${beta}`;
      if (rY + rX > 0) assertSameBits(bench.read(got), bench.read(want), `${what}: gradients`);
      const rows = (tensor: Tensor) => bench.read(tensor.rowRange(0, used));
      assertSameBits(rows(y), rows(dx), `${what}: dx`);
      bench.paddingUntouched(y);
    }
  }
});

Deno.test("segmentOuter(), segmentMean() and segmentSum() work segment by segment", () => {
  using bench = new Workbench();
  for (const each of fixtureCases("segment")) {
    const [S, T, p, q] = [each.number("S"), each.number("T"), each.number("p"), each.number("q")];
    const cu = bench.ints(each.i32("cu"));
    const a = bench.put(each.f32("a"), T, p, { ld: p + 3 });
    const b = bench.put(each.f32("b"), T, q, { ld: q + 1 });
    const stride = p * q + 5;
    const out = bench.put(each.f32("out0"), S, p * q, { ld: stride });
    const [alpha, beta] = [each.number("alpha"), each.number("beta")];
    ops.segmentOuter(bench.dev, S, { cu, p, q, a, b, out, stride, alpha, beta });
    assertClose(bench.read(out), each.f32("outer"), TOLERANCE, `${each.name} outer`);
    bench.paddingUntouched(out);

    const mean = bench.out(S, q, q + 2);
    ops.segmentMean(bench.dev, S, { cu, q, a: b, out: mean });
    assertClose(bench.read(mean), each.f32("mean"), TOLERANCE, `${each.name} mean`);
    bench.paddingUntouched(mean);

    const sums = bench.doubles(S);
    const values = bench.put(bench.read(b.columns(0, 1)), 1, T);
    ops.segmentSum(bench.dev, S, { rowOffsets: cu, values, out: sums });
    assertClose(bench.readDoubles(sums), each.f64("total64"), 1e-12, `${each.name} sum`);
  }
});

Deno.test("rowDots() and combine() agree with float64", () => {
  using bench = new Workbench();
  for (const each of fixtureCases("vector")) {
    const [n, P] = [each.number("n"), each.number("P")];
    const a = bench.put(each.f32("a"), n, P, { ld: P + 3 });
    const b = bench.put(each.f32("b"), n, P, { ld: P + 1 });
    const out = bench.doubles(n);
    assertClose(ops.rowDots(bench.dev, n, { a, b, out }), each.f64("dots64"), 1e-12, `${each.name} row with row`);
    assertClose(ops.rowDots(bench.dev, n, { a, b: null, out }), each.f64("norms64"), 1e-12, `${each.name} squared norms`);
    const shared = ops.rowDots(bench.dev, n, { a, b: b.rowRange(0, 1), out });
    assertClose(shared, each.f64("shared64"), 1e-12, `${each.name} one shared b`);

    const weights = bench.put(each.f32("weights"), 1, n);
    const y = bench.put(each.f32("y0"), 1, P);
    ops.combine(bench.dev, n, { weights, x: a, y, beta: each.number("beta") });
    assertClose(bench.read(y), each.f32("combined"), TOLERANCE, `${each.name} combined`);
    const fresh = bench.out(1, P);
    const zero = bench.put(new Float32Array(P), 1, P);
    ops.combine(bench.dev, n, { weights, x: a, y: fresh, beta: 0 });
    ops.combine(bench.dev, n, { weights, x: a, y: zero, beta: 1 });
    assertClose(bench.read(fresh), bench.read(zero), 1e-6, `${each.name}: beta 0 does not read what y held`);
  }
});

Deno.test("adam() follows torch.optim.AdamW over several steps", () => {
  using bench = new Workbench();
  for (const each of fixtureCases("adam")) {
    const [P, steps] = [each.number("P"), each.number("steps")];
    const [beta1, beta2, eps] = [each.number("b1"), each.number("b2"), each.number("eps")];
    const theta = bench.put(each.f32("theta0"), 1, P);
    const m = bench.put(new Float32Array(P), 1, P);
    const v = bench.put(new Float32Array(P), 1, P);
    const rates = { lr: each.number("lr"), beta1, beta2, eps, weightDecay: each.number("weight_decay") };
    for (let step = 1; step <= steps; step++) {
      const grad = bench.put(each.f32("grads").subarray((step - 1) * P, step * P), 1, P);
      const bias = { bias1: 1 - beta1 ** step, bias2: 1 - beta2 ** step };
      ops.adam(bench.dev, { theta, grad, m, v }, { ...rates, ...bias, gradScale: each.number("grad_scale") });
      const expected = each.f32("thetas").subarray((step - 1) * P, step * P);
      assertClose(bench.read(theta), expected, 1e-6, `${each.name} step ${step}`);
    }
    assertClose(bench.read(m), each.f32("m"), 1e-6, `${each.name} m`);
    assertClose(bench.read(v), each.f32("v"), 1e-6, `${each.name} v`);

    const out = bench.out(1, P);
    const g = bench.put(each.f32("g"), 1, P);
    ops.adamPrecondition(bench.dev, { g, v, bias2: 1 - beta2 ** steps, eps, out });
    assertClose(bench.read(out), each.f32("preconditioned"), TOLERANCE, `${each.name} preconditioned`);
    assertEquals(bench.read(g), each.f32("g"), `${each.name}: the gradient itself stays`);
  }
});
