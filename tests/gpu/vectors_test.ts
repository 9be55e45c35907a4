/** Operators on flat vectors of adapter parameters on the GPU: beside the CPU library, float64 and PyTorch's numbers, twice the same bits. */
import { assert, assertEquals } from "@std/assert";
import { Tensor } from "../../ffi/device.ts";
import * as ops from "../../ffi/operators.ts";
import { adamOnHost } from "../../lib/optim/adam.ts";
import { fixtureCases, inPieces, normals } from "../native/harness.ts";
import { compare, gpuTest, Subject } from "./subject.ts";

/** f32 results of f32 numbers. */
const F32 = 1e-5;

gpuTest("rowDots() and combine() agree with float64", () => {
  const random = (n: number, P: number, beta: number) => ({
    ...{ name: `[${n},${P}]`, n, P, beta, a: normals(n * P, 1), b: normals(n * P, 2), weights: normals(n, 3), y0: normals(P, 4) },
    expected: undefined,
  });
  const fixtures = fixtureCases("vector").map((each) => ({
    ...{
      name: each.name,
      n: each.number("n"),
      P: each.number("P"),
      beta: each.number("beta"),
      a: each.f32("a"),
      b: each.f32("b"),
    },
    ...{ weights: each.f32("weights"), y0: each.f32("y0") },
    expected: {
      dots: each.f64("dots64"),
      norms: each.f64("norms64"),
      shared: each.f64("shared64"),
      combined: each.f32("combined"),
    },
  }));
  for (const problem of [...fixtures, random(11, 20000, 0.5), random(3, 8193, -1), random(17, 640, 1)]) {
    const { name, n, P, beta, expected } = problem;
    for (const pad of [4, 3]) {
      const work = (on: Subject) => {
        const a = on.f32(problem.a, n, P, P + pad), b = on.f32(problem.b, n, P, P + 2 * pad), out = on.doubles(n);
        const weights = on.f32(problem.weights, 1, n), y = on.f32(problem.y0, 1, P), fresh = on.f32(null, 1, P);
        ops.combine(on.dev, n, { weights, x: a, y, beta });
        ops.combine(on.dev, n, { weights, x: a, y: fresh, beta: 0 });
        return {
          ...{ dots: ops.rowDots(on.dev, n, { a, b, out }), norms: ops.rowDots(on.dev, n, { a, b: null, out }) },
          shared: ops.rowDots(on.dev, n, { a, b: b.rowRange(0, 1), out }),
          ...{ combined: on.read(y), fresh: on.read(fresh) },
        };
      };
      const tolerances = { dots: 1e-12, norms: 1e-12, shared: 1e-12, combined: F32, fresh: F32 };
      compare(`vectors ${name}`, work, tolerances, expected ? { fixture: { expected, tolerance: F32 } } : {});
    }
  }
});

gpuTest("rowDots() and combine() take rows in pieces", () => {
  // A piece longer than a block's share; more pieces than one launch can list; more rows than there is room for partial sums at once.
  const shapes = [
    [3, [12, 7, 20000, 1]],
    [9, Array.from({ length: 131 }, (_, i) => 4 + 4 * (i % 40))],
    [1100, Array.from({ length: 1024 }, () => 1)],
  ] as const;
  for (const [n, lengths] of shapes) {
    const P = lengths.reduce((sum, length) => sum + length, 0);
    const values = normals(n * P, 1), direction = normals(P, 2), mixture = normals(n, 3), old = normals(P, 4);
    const work = (on: Subject) => {
      // The pieces in one memory, the last first, in rows of their own width.
      const width = (length: number) => length + 4 - length % 4,
        numbers = (length: number) => Math.ceil(n * width(length) / 64) * 64;
      const room = on.f32(null, 1, lengths.reduce((sum, length) => sum + numbers(length), 0));
      let at = room.cols, first = P;
      const pieces = lengths.toReversed().map((length) => {
        at -= numbers(length);
        first -= length;
        const ld = width(length), rows = new Float32Array(n * ld).fill(NaN);
        for (let i = 0; i < n; i++) rows.set(values.subarray(i * P + first, i * P + first + length), i * ld);
        ops.upload(on.dev, room.columns(at, n * ld), rows);
        return new Tensor(room.storage, room.byteOffset + 4 * at, n, length, "f32", ld);
      });
      const a = new ops.Pieces(pieces.reverse()), b = on.f32(direction, 1, P), y = on.f32(old, 1, P), out = on.doubles(n);
      ops.combine(on.dev, n, { weights: on.f32(mixture, 1, n), x: a, y, beta: 0.5 });
      const shared = ops.rowDots(on.dev, n, { a, b, out }), norms = ops.rowDots(on.dev, n, { a, b: null, out });
      return { shared, norms, combined: on.read(y) };
    };
    const row = (i: number) => values.subarray(i * P, (i + 1) * P);
    const dots = (other: (i: number) => Float32Array) =>
      Float64Array.from({ length: n }, (_, i) => {
        const [x, y] = [row(i), other(i)];
        return x.reduce((sum, value, j) => sum + value * y[j]!, 0);
      });
    const combined = old.map((value, j) => mixture.reduce((sum, weight, i) => sum + weight * values[i * P + j]!, 0.5 * value));
    const expected = { shared: dots(() => direction), norms: dots(row), combined };
    const tolerances = { shared: 1e-12, norms: 1e-12, combined: F32 };
    compare(`${lengths.length} pieces`, work, tolerances, { fixture: { expected, tolerance: F32 } });
  }
});

gpuTest("combine() without a y gives the first row what it gives a y", () => {
  using on = Subject.underTest();
  for (const [n, P, firsts] of [[1, 1003, [0]], [5, 1024, [0, 64, 448]], [9, 2050, [0, 1984]]] as const) {
    const values = normals(n * P, n), x = on.f32(values, n, P), y = on.f32(null, 1, P), weights = on.f32(normals(n, 8), 1, n);
    ops.combine(on.dev, n, { weights, x, y });
    ops.combine(on.dev, n, { weights, x: inPieces(x, firsts), y: null });
    const after = on.read(x);
    assertEquals(after.subarray(0, P), on.read(y), `${n} rows of ${P}`);
    assertEquals(after.subarray(P), values.subarray(P), "the other rows");
  }
});

gpuTest("adam() gives the bits of the update in TypeScript and follows torch.optim.AdamW", () => {
  using on = Subject.underTest();
  for (const P of [1003, 1024]) {
    const state = { theta: normals(P, 1), m: new Float32Array(P), v: new Float32Array(P) };
    const device = { theta: on.f32(state.theta, 1, P), m: on.f32(state.m, 1, P), v: on.f32(state.v, 1, P) };
    for (let step = 1; step <= 6; step++) {
      const grad = normals(P, 10 + step).map((g) => g * 10 ** (step - 4)), [beta1, beta2] = [0.9, 0.999];
      const rates = { lr: 1e-3 / step, beta1, beta2, eps: 1e-8, weightDecay: step % 2 * 0.01, gradScale: 0.37 };
      const numbers = { ...rates, bias1: 1 - beta1 ** step, bias2: 1 - beta2 ** step };
      const whole = on.f32(grad, 1, P);
      ops.adam(on.dev, { ...device, grad: step % 2 ? whole : inPieces(whole, [0, 64, 960]) }, numbers);
      adamOnHost(state.theta, grad, state.m, state.v, numbers);
      for (const name of ["theta", "m", "v"] as const) assertEquals(on.read(device[name]), state[name], `${name}, step ${step}`);

      const out = on.f32(null, 1, P);
      ops.adamPrecondition(on.dev, { g: on.f32(grad, 1, P), v: device.v, bias2: numbers.bias2, eps: 1e-8, out });
      const expected = grad.map((g, j) => g / (Math.sqrt(state.v[j]! / numbers.bias2) + 1e-8));
      assertEquals(on.read(out), expected, `preconditioned, step ${step}`);
    }
  }
  for (const each of fixtureCases("adam")) {
    const [P, steps, beta1, beta2] = [each.number("P"), each.number("steps"), each.number("b1"), each.number("b2")];
    const theta = on.f32(each.f32("theta0"), 1, P), m = on.f32(new Float32Array(P), 1, P), v = on.f32(new Float32Array(P), 1, P);
    const rates = { lr: each.number("lr"), beta1, beta2, eps: each.number("eps"), weightDecay: each.number("weight_decay") };
    for (let step = 1; step <= steps; step++) {
      const grad = on.f32(each.f32("grads").subarray((step - 1) * P, step * P), 1, P);
      const bias = { bias1: 1 - beta1 ** step, bias2: 1 - beta2 ** step };
      ops.adam(on.dev, { theta, grad, m, v }, { ...rates, ...bias, gradScale: each.number("grad_scale") });
      const expected = each.f32("thetas").subarray((step - 1) * P, step * P);
      on.read(theta).forEach((value, j) =>
        assert(Math.abs(value - expected[j]!) <= 1e-6 * (1 + Math.abs(expected[j]!)), `${each.name} step ${step}, theta[${j}]`)
      );
    }
  }
});
