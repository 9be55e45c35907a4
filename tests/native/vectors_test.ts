import { assert, assertEquals } from "@std/assert";
import { adam, adamPrecondition, combine, rowDots, segmentMean, segmentOuter } from "../../ffi/operators.ts";
import { adamOnHost } from "../../lib/optim/adam.ts";
import { assertClose, assertSameBits, type Floats, inPieces, normals, Workbench } from "./harness.ts";
import { assertBounded, product, testEach } from "./reference.ts";

testEach("segmentOuter() forms one product per segment, empty segments included, with alpha, beta and any stride", () => {
  const offsets = [0, 7, 7, 40, 41, 180];
  const S = offsets.length - 1, T = 180;
  for (const [p, q] of [[8, 50], [32, 200], [61, 9], [200, 32], [5, 3], [300, 400]] as const) {
    for (const beta of [0, 1, -2]) {
      const a = normals(T * p, p), b = normals(T * q, q), old = normals(S * p * q, 5), stride = p * q + 11;
      using bench = new Workbench();
      const out = beta === 0 ? bench.out(S, p * q, stride) : bench.put(old, S, p * q, { ld: stride });
      const [left, right] = [bench.put(a, T, p, { ld: p + 3 }), bench.put(b, T, q, { ld: q + 1 })];
      segmentOuter(bench.dev, S, { cu: bench.ints(offsets), p, q, a: left, b: right, out, stride, alpha: 0.5, beta });
      const found = bench.read(out);
      for (let s = 0; s < S; s++) {
        const first = offsets[s]!;
        const exact = product(
          p,
          q,
          offsets[s + 1]! - first,
          (i, t) => a[(first + t) * p + i]!,
          (t, j) => b[(first + t) * q + j]!,
          {
            alpha: 0.5,
            beta,
            c: (i, j) => old[s * p * q + i * q + j]!,
          },
        );
        assertBounded(found.subarray(s * p * q, (s + 1) * p * q), exact, `segment ${s} of [${p},${q}], beta ${beta}`);
      }
      bench.paddingUntouched(out);
    }
  }
});

testEach("segmentOuter() gives a segment the same bits whatever else is in the batch and on any number of threads", () => {
  const p = 40, q = 230, T = 150, a = normals(T * p, 1), b = normals(T * q, 2);
  const run = (offsets: number[], threads: number): Floats => {
    using bench = new Workbench(threads);
    const S = offsets.length - 1, out = bench.out(S, p * q);
    segmentOuter(bench.dev, S, {
      cu: bench.ints(offsets),
      p,
      q,
      a: bench.put(a, T, p),
      b: bench.put(b, T, q),
      out,
      stride: p * q,
    });
    return bench.read(out);
  };
  const whole = run([0, 30, 101, 150], 1);
  assertSameBits(run([0, 30, 101, 150], 3), whole, "three threads");
  assertSameBits(run([30, 101], 2), whole.slice(p * q, 2 * p * q), "the middle segment alone");
});

testEach("segmentMean() averages the rows of each segment and gives 0 for an empty one", () => {
  const offsets = [0, 3, 3, 20], T = 20, q = 45, a = normals(T * q, 3);
  using bench = new Workbench();
  const out = bench.out(3, q, q + 2);
  segmentMean(bench.dev, 3, { cu: bench.ints(offsets), q, a: bench.put(a, T, q, { ld: q + 4 }), out });
  const means = new Float64Array(3 * q);
  for (let s = 0; s < 3; s++) {
    const rows = offsets[s + 1]! - offsets[s]!;
    for (let t = offsets[s]!; t < offsets[s + 1]!; t++) for (let j = 0; j < q; j++) means[s * q + j]! += a[t * q + j]! / rows;
  }
  assertClose(bench.read(out), means, 1e-6, "means");
  bench.paddingUntouched(out);
});

testEach("rowDots() sums in double precision, in the same order on any number of threads", () => {
  for (const P of [1, 7, 63, 8192, 8193, 70001]) {
    const n = 3, a = normals(n * P, P), b = normals(n * P, P + 1);
    const run = (threads: number, what: "shared" | "paired" | "norms") => {
      using bench = new Workbench(threads);
      const left = bench.put(a, n, P, { ld: P + 5 });
      const right = what === "norms"
        ? left
        : what === "paired"
        ? bench.put(b, n, P, { ld: P + 2 })
        : bench.put(b.slice(0, P), 1, P);
      return rowDots(bench.dev, n, { a: left, b: right, out: bench.doubles(n) });
    };
    for (const what of ["shared", "paired", "norms"] as const) {
      const found = run(2, what);
      for (let i = 0; i < n; i++) {
        let exact = 0, size = 0;
        for (let j = 0; j < P; j++) {
          const term = a[i * P + j]! * (what === "norms" ? a[i * P + j]! : what === "paired" ? b[i * P + j]! : b[j]!);
          exact += term;
          size += Math.abs(term);
        }
        assert(Math.abs(found[i]! - exact) <= 1e-13 * size, `${what} ${i} of ${P}: ${found[i]}, expected ${exact}`);
      }
      assertEquals([...run(1, what)], [...found], `${what} on one thread, P = ${P}`);
      assertEquals([...run(3, what)], [...found], `${what} on three threads, P = ${P}`);
    }
  }
});

testEach("combine() adds any number of weighted rows to beta y, and reads no y when beta is 0", () => {
  for (const n of [1, 2, 5]) {
    for (const P of [1, 13, 4096, 9001]) {
      for (const beta of [0, 1, 0.25]) {
        const x = normals(n * P, n + P), weights = normals(n, 8), old = normals(P, 9);
        const run = (threads: number) => {
          using bench = new Workbench(threads);
          const y = beta === 0 ? bench.out(1, P) : bench.put(old, 1, P);
          combine(bench.dev, n, { weights: bench.put(weights, 1, n), x: bench.put(x, n, P, { ld: P + 7 }), y, beta });
          return bench.read(y);
        };
        const exact = product(1, P, n, (_, i) => weights[i]!, (i, j) => x[i * P + j]!, { beta, c: (_, j) => old[j]! });
        assertBounded(run(2), exact, `${n} rows of ${P}, beta ${beta}`);
        assertSameBits(run(1), run(3), `${n} rows of ${P} on one and three threads`);
      }
    }
  }
});

testEach("combine() without a y gives the first row what it gives a y, in one piece or in several", () => {
  for (const n of [1, 2, 5]) {
    for (const firsts of [[0], [0, 64, 4800]]) {
      const P = 9001, values = normals(n * P, n), weights = normals(n, 8);
      using bench = new Workbench(3);
      const x = bench.put(values, n, P, { ld: P + 7 }), y = bench.out(1, P), w = bench.put(weights, 1, n);
      combine(bench.dev, n, { weights: w, x, y });
      combine(bench.dev, n, { weights: w, x: inPieces(x, firsts), y: null });
      const first = bench.read(x.rowRange(0, 1));
      assertSameBits(first, bench.read(y), `${n} rows in ${firsts.length} pieces`);
      assertEquals(bench.read(x).slice(P), values.slice(P), "the other rows");
      combine(bench.dev, n, { weights: w, x: inPieces(x, firsts), y, beta: 0.5 });
      combine(bench.dev, n, { weights: w, x, y: x.rowRange(0, 1), beta: 0.5 });
      assertSameBits(bench.read(y), bench.read(x.rowRange(0, 1)), `${n} rows added to half of the first`);
    }
  }
});

testEach("adam() gives the same bits as the update on host arrays in TypeScript", () => {
  const P = 20011;
  const host = { theta: normals(P, 1), m: normals(P, 3).map((x) => 0.01 * x), v: normals(P, 4).map((x) => x * x * 1e-4) };
  using bench = new Workbench(3);
  const put = (values: Floats) => bench.put(values, 1, P);
  const device = { theta: put(host.theta), m: put(host.m), v: put(host.v) };
  for (let step = 1; step <= 3; step++) {
    const g = normals(P, 10 + step);
    const numbers = {
      lr: 3e-3 / step,
      beta1: 0.9,
      beta2: 0.95,
      eps: 1e-8,
      weightDecay: step === 2 ? 0.1 : 0,
      bias1: 1 - 0.9 ** step,
      bias2: 1 - 0.95 ** step,
      gradScale: 0.7,
    };
    adamOnHost(host.theta, g, host.m, host.v, numbers);
    const grad = put(g);
    adam(bench.dev, { ...device, grad: step === 2 ? inPieces(grad, [0, 128, 6400]) : grad }, numbers);
    for (const name of ["theta", "m", "v"] as const) {
      assertSameBits(bench.read(device[name]), host[name], `${name} after step ${step}`);
    }
  }
});

testEach("adamPrecondition() divides by the root of the corrected second moment", () => {
  const P = 9000, g = normals(P, 1), v = normals(P, 2).map((x) => x * x), bias2 = 1 - 0.95 ** 3, eps = 1e-8;
  using bench = new Workbench();
  const out = bench.out(1, P);
  adamPrecondition(bench.dev, { g: bench.put(g, 1, P), v: bench.put(v, 1, P), bias2, eps, out });
  assertSameBits(bench.read(out), g.map((x, j) => x / (Math.sqrt(v[j]! / bias2) + eps)), "preconditioned");
});
