/**
 * Operators that work row by row, and segments, on the GPU: beside the CPU library, beside PyTorch's numbers (tests/fixtures), twice
 * with the same bits. head_test.ts, linear_test.ts, attention_test.ts, vectors_test.ts and device_test.ts have the rest of metalora.h.
 */
import { assertEquals } from "@std/assert";
import * as ops from "../../ffi/operators.ts";
import { fixtureCases, normals } from "../native/harness.ts";
import { asBf16, compare, FROM_ROUNDED, gpuTest, ROUNDED, standIn, Subject } from "./subject.ts";

/** f32 results of f32 numbers. */
const F32 = 1e-5;
/** Sums in f32 of products of bf16 numbers; tensor cores cut the bits behind an addition off. */
const PRODUCTS = 5e-5;

gpuTest("embeddingForward() copies the rows of a table", () => {
  const random = (T: number, d: number, V: number) => ({
    name: `[${V},${d}]`,
    ...{ T, d, V, table: normals(V * d, 1), ids: Int32Array.from({ length: T }, (_, t) => t * 7919 % V), out: undefined },
  });
  const fixtures = fixtureCases("embedding").map((each) => ({
    name: each.name,
    ...{ T: each.number("T"), d: each.number("d"), V: each.number("V") },
    ...{ table: each.f32("table"), ids: each.i32("ids"), out: asBf16(each.f32("out")) },
  }));
  for (
    const { name, T, d, V, table, ids, out } of [...fixtures, random(300, 64, 1000), random(9, 2048, 50), random(70, 33, 11)]
  ) {
    for (const pad of [0, 3, 8]) {
      const work = (on: Subject) => {
        const rows = on.room(T, d, d + pad);
        ops.embeddingForward(on.dev, T, { table: on.weight(table, V, d), ids: on.ints(ids), out: rows });
        return { out: on.read(rows) };
      };
      compare(`embedding ${name}`, work, { out: 0 }, out ? { fixture: { expected: { out }, tolerance: 0 } } : {});
    }
  }
});

gpuTest("embeddingForward() adds the rows of positions", () => {
  const random = (T: number, d: number, V: number, n: number) => ({
    ...{ name: `[${V},${d}]`, T, d, V, n, table: normals(V * d, 1), places: normals(n * d, 2), out: undefined },
    ids: Int32Array.from({ length: T }, (_, t) => t * 7919 % V),
    positions: Int32Array.from({ length: T }, (_, t) => t * 31 % n),
  });
  const fixtures = fixtureCases("places").map((each) => ({
    ...{ name: each.name, T: each.number("T"), d: each.number("d"), V: each.number("V"), n: each.number("n") },
    ...{ table: each.f32("table"), places: each.f32("places"), out: asBf16(each.f32("out")) },
    ...{ ids: each.i32("ids"), positions: each.i32("positions") },
  }));
  const problems = [...fixtures, random(300, 64, 1000, 130), random(9, 2048, 50, 9), random(70, 33, 11, 80)];
  for (const { name, T, d, V, n, table, places, ids, positions, out } of problems) {
    for (const pad of [0, 3, 8]) {
      const work = (on: Subject) => {
        const rows = on.room(T, d, d + pad);
        const learned = { table: on.weight(places, n, d), positions: on.ints(positions) };
        ops.embeddingForward(on.dev, T, { table: on.weight(table, V, d), ids: on.ints(ids), places: learned, out: rows });
        return { out: on.read(rows) };
      };
      compare(`places ${name}`, work, { out: ROUNDED }, out ? { fixture: { expected: { out }, tolerance: 0 } } : {});
    }
  }
});

gpuTest("gatherRows() picks rows, scatterRows() puts them back among zeros", () => {
  for (const [T, d, pads] of [[9, 21, [3, 2, 5]], [300, 64, [8, 0, 16]], [40, 1032, [0, 8, 0]]] as const) {
    const picked = [7, 0, 8, 3, T - 1].filter((row, i, all) => all.indexOf(row) === i), R = picked.length;
    const x = normals(T * d, 1), y = normals(R * d, 2);
    const work = (on: Subject) => {
      const rows = on.ints(picked), few = on.room(R, d, d + pads[1]), all = on.room(T, d, d + pads[2]);
      ops.gatherRows(on.dev, R, { x: on.act(x, T, d, d + pads[0]), rows, out: few });
      ops.scatterRows(on.dev, R, T, { x: on.act(y, R, d, d + pads[1]), rows, out: all });
      return { few: on.read(few), all: on.read(all) };
    };
    compare(`gather and scatter [${T},${d}]`, work, { few: 0, all: 0 });
  }
});

// The CPU library reads the rows on the host and refuses them; a GPU cannot, so that rows behind a batch are -1 in a graph.
gpuTest("gatherRows() gives zeros for a row of -1, scatterRows() leaves it out", () => {
  if (standIn) return;
  using on = Subject.underTest();
  for (const [d, pad] of [[64, 8], [21, 2]] as const) {
    const x = asBf16(normals(9 * d, 3)),
      rows = on.ints([4, -1, 0, -1, 8]),
      few = on.room(5, d, d + pad),
      all = on.room(9, d, d + pad);
    ops.gatherRows(on.dev, 5, { x: on.act(x, 9, d, d + pad), rows, out: few });
    const row = (t: number) => [...x.subarray(t * d, (t + 1) * d)], zeros = new Array<number>(d).fill(0);
    assertEquals([...on.read(few)], [...row(4), ...zeros, ...row(0), ...zeros, ...row(8)]);
    ops.scatterRows(on.dev, 5, 9, { x: on.act(x.subarray(0, 5 * d), 5, d, d + pad), rows, out: all });
    const placed = Array.from({ length: 9 }, (_, t) => t === 4 ? row(0) : t === 0 ? row(2) : t === 8 ? row(4) : zeros);
    assertEquals([...on.read(all)], placed.flat());
  }
  on.requirePaddings();
});

gpuTest("rmsnormForward() normalises, rmsnormBackward() adds to the gradient", () => {
  const random = (T: number, d: number) => ({
    ...{ name: `[${T},${d}]`, T, d, eps: 1e-5, x: normals(T * d, 1) },
    ...{ weight: normals(d, 3), dy: normals(T * d, 4), dx0: normals(T * d, 5), expected: undefined },
  });
  const fixtures = fixtureCases("rmsnorm").map((each) => ({
    ...{ name: each.name, T: each.number("T"), d: each.number("d"), eps: each.number("eps"), x: each.f32("sum") },
    ...{ weight: each.f32("weight"), dy: each.f32("dy"), dx0: each.f32("dx0") },
    expected: { y: each.f32("y"), rstd: each.f32("rstd"), dx: each.f32("dx") },
  }));
  // Rows of one, two and four accesses a thread, too long for registers, and off the 16-byte grid.
  const shapes = [[300, 64], [7, 100], [5, 2048], [5, 5120], [3, 16400], [3, 4097]] as const;
  for (const problem of [...fixtures, ...shapes.map(([T, d]) => random(T, d))]) {
    const { name, T, d, eps, expected } = problem;
    for (const pad of [8, 5]) {
      const work = (on: Subject) => {
        const x = on.act(problem.x, T, d), weight = on.f32(problem.weight, 1, d);
        const y = on.room(T, d, d + pad), rstd = on.f32(null, 1, T);
        ops.rmsnormForward(on.dev, T, { x, weight, eps, y, rstd });
        const dx = on.act(problem.dx0, T, d, d + 2 * pad), dy = on.act(problem.dy, T, d, d + pad);
        ops.rmsnormBackward(on.dev, T, { x, weight, rstd, dy, dx });
        return { y: on.read(y), rstd: on.read(rstd), dx: on.read(dx) };
      };
      const tolerances = { y: ROUNDED, rstd: F32, dx: ROUNDED };
      const fixture = expected && { fixture: { expected, tolerance: FROM_ROUNDED } };
      compare(`rmsnorm ${name}`, work, tolerances, fixture ?? {});
    }
  }
});

gpuTest("layernormForward() normalises, layernormBackward() adds to the gradient and forms the norm", () => {
  const random = (T: number, d: number) => ({
    ...{ name: `[${T},${d}]`, T, d, eps: 1e-5, x: normals(T * d, 1).map((x) => x + 0.5), dx0: normals(T * d, 5) },
    ...{ weight: normals(d, 3), bias: normals(d, 7), dy: normals(T * d, 4) },
  });
  const fixtures = fixtureCases("layernorm").map((each) => ({
    ...{ name: each.name, T: each.number("T"), d: each.number("d"), eps: each.number("eps"), x: each.f32("sum") },
    ...{ weight: each.f32("weight"), bias: each.f32("bias"), dy: each.f32("dy"), dx0: each.f32("dx0") },
  }));
  // Rows of one, two and four accesses a thread, too long for registers, and off the 16-byte grid.
  const shapes = [[300, 64], [7, 100], [5, 2048], [5, 5120], [3, 16400], [3, 4097]] as const;
  for (const problem of [...fixtures, ...shapes.map(([T, d]) => random(T, d))]) {
    const { name, T, d, eps } = problem;
    for (const pad of [8, 5]) {
      const work = (on: Subject) => {
        const x = on.act(problem.x, T, d), stats = on.f32(null, T, 2);
        const weights = { weight: on.f32(problem.weight, 1, d), bias: on.f32(problem.bias, 1, d) };
        const y = on.room(T, d, d + pad), again = on.room(T, d, d + pad);
        ops.layernormForward(on.dev, T, { x, ...weights, eps, y, stats });
        const dx = on.act(problem.dx0, T, d, d + 2 * pad), dy = on.act(problem.dy, T, d, d + pad);
        ops.layernormBackward(on.dev, T, { x, ...weights, stats, dy, dx, y: again });
        assertEquals(on.read(again), on.read(y), "the norm in the backward pass");
        return { y: on.read(y), stats: on.read(stats), dx: on.read(dx) };
      };
      compare(`layernorm ${name}`, work, { y: ROUNDED, stats: F32, dx: ROUNDED });
    }
  }
});

gpuTest("reluBackward() follows the sign", () => {
  for (const [T, f] of [[300, 64], [5, 172], [3, 8192], [7, 33]] as const) {
    const made = normals(T * f, 1).map((x) => Math.max(x, 0)), slopes = normals(T * f, 2);
    for (const pad of [0, 8, 3]) {
      const work = (on: Subject) => {
        const y = on.act(made, T, f, f + pad);
        ops.reluBackward(on.dev, T, { f, y, dy: on.act(slopes, T, f, f + pad) });
        return { dx: on.read(y) };
      };
      compare(`relu [${T},${f}]`, work, { dx: 0 });
    }
  }
});

gpuTest("rope() rotates as Hugging Face Llama does, and back", () => {
  const random = (T: number, heads: number, D: number) => {
    const angles = normals(50 * D / 2, 1);
    return {
      ...{ name: `${heads} heads of ${D}`, T, heads, D, n: 50, cos: angles.map(Math.cos), sin: angles.map(Math.sin) },
      positions: Int32Array.from({ length: T }, (_, t) => t * 31 % 50),
      ...{ x: normals(T * heads * D, 2), dy: normals(T * heads * D, 3), expected: undefined },
    };
  };
  const fixtures = fixtureCases("rope").map((each) => ({
    ...{ name: each.name, T: each.number("T"), heads: each.number("heads"), D: each.number("D"), n: each.number("n") },
    ...{ cos: each.f32("cos"), sin: each.f32("sin"), positions: each.i32("positions"), x: each.f32("x"), dy: each.f32("dy") },
    expected: { y: each.f32("y"), dx: each.f32("dx") },
  }));
  for (const problem of [...fixtures, random(70, 9, 64), random(33, 5, 128), random(40, 12, 8), random(9, 1, 80)]) {
    const { name, T, heads, D, n, expected } = problem;
    for (const pad of [8, 3]) {
      const work = (on: Subject) => {
        const [cos, sin, positions] = [on.f32(problem.cos, n, D / 2), on.f32(problem.sin, n, D / 2), on.ints(problem.positions)];
        const turned = [[problem.x, false], [problem.dy, true]].map(([values, inverse]) => {
          const x = on.act(values as Float32Array, T, heads * D, heads * D + pad);
          ops.rope(on.dev, T, { heads, D, x, cos, sin, positions, inverse: inverse as boolean });
          return on.read(x);
        });
        return { y: turned[0]!, dx: turned[1]! };
      };
      const fixture = expected && { fixture: { expected, tolerance: FROM_ROUNDED } };
      compare(`rope ${name}`, work, { y: ROUNDED, dx: ROUNDED }, fixture ?? {});
    }
  }
});

gpuTest("swigluForward() and swigluBackward() gate, in place too", () => {
  const random = (T: number, f: number) => ({
    ...{ name: `[${T},${f}]`, T, f, gateUp: normals(T * 2 * f, 1).map((x) => 3 * x), dy: normals(T * f, 2), expected: undefined },
  });
  const fixtures = fixtureCases("swiglu").map((each) => ({
    ...{ name: each.name, T: each.number("T"), f: each.number("f"), gateUp: each.f32("gate_up"), dy: each.f32("dy") },
    expected: { y: each.f32("y"), dGateUp: each.f32("dgate_up") },
  }));
  for (const problem of [...fixtures, random(300, 64), random(5, 172), random(3, 5504), random(7, 33)]) {
    const { name, T, f, expected } = problem;
    for (const pad of [0, 8, 3]) {
      const work = (on: Subject) => {
        const gateUp = on.act(problem.gateUp, T, 2 * f, 2 * f + 2 * pad), dy = on.act(problem.dy, T, f, f + pad);
        const y = on.room(T, f, f + pad), dGateUp = on.room(T, 2 * f, 2 * f + 2 * pad);
        ops.swigluForward(on.dev, T, { f, gateUp, y });
        ops.swigluBackward(on.dev, T, { f, gateUp, dy, dGateUp });
        ops.swigluBackward(on.dev, T, { f, gateUp, dy, dGateUp: gateUp });
        assertEquals(on.read(gateUp), on.read(dGateUp), "in place");
        return { y: on.read(y), dGateUp: on.read(dGateUp) };
      };
      const fixture = expected && { fixture: { expected, tolerance: FROM_ROUNDED } };
      compare(`swiglu ${name}`, work, { y: ROUNDED, dGateUp: ROUNDED }, fixture ?? {});
    }
  }
});

gpuTest("swigluGradients() gates backwards and forms the adapters' gradients, whichever there are", () => {
  const problems: { lengths: number[]; f: number; ranks: [number, number, number]; beta: number }[] = [
    { lengths: [37, 0, 200, 1, 64], f: 64, ranks: [8, 8, 8], beta: 0 },
    { lengths: [500, 300], f: 264, ranks: [32, 32, 32], beta: 1 },
    { lengths: [700], f: 1032, ranks: [32, 16, 8], beta: 0 },
    { lengths: [700], f: 136, ranks: [64, 8, 40], beta: 0 },
    { lengths: [90, 41], f: 136, ranks: [0, 0, 8], beta: 1 },
    { lengths: [90, 41], f: 136, ranks: [8, 0, 0], beta: 0 },
    { lengths: [90, 41], f: 33, ranks: [5, 3, 2], beta: 0 },
    { lengths: [90, 41], f: 72, ranks: [96, 8, 8], beta: 0 },
  ];
  for (const { lengths, f, ranks, beta } of problems) {
    const offsets = lengths.reduce((list, n) => [...list, list.at(-1)! + n], [0]), S = lengths.length, used = offsets.at(-1)!;
    const T = used + 5, [rY, rGate, rUp] = ranks, r = rGate + rUp;
    const values = {
      ...{ gateUp: normals(T * 2 * f, 1).map((x) => 2 * x), dy: normals(T * f, 2), out: normals(S * (rY + r) * f, 5) },
      ...{ gh: normals(T * Math.max(1, rY), 3), h: normals(T * Math.max(1, r), 4) },
    };
    for (const pad of [8, 3]) {
      const work = (on: Subject) => {
        const gateUp = on.act(values.gateUp, T, 2 * f, 2 * f + 2 * pad), dy = on.act(values.dy, T, f, f + pad);
        const gh = on.act(values.gh, T, Math.max(1, rY), Math.max(1, rY) + pad);
        const h = on.act(values.h, T, Math.max(1, r), Math.max(1, r) + pad), stride = (rY + r) * f + 4 * pad;
        const out = on.f32(beta === 0 ? null : values.out, S, (rY + r) * f, stride);
        ops.swigluGradients(on.dev, T, S, {
          ...{ cu: on.ints(offsets), f, gateUp, dy, beta, stride },
          y: rY > 0 ? { rank: rY, gh, out } : null,
          gateAndUp: r > 0 ? { ranks: [rGate, rUp], scales: [0.5, 2], h, out: out.columns(rY * f, 1) } : null,
        });
        return { dGateUp: on.read(gateUp.rowRange(0, used)), out: on.read(out) };
      };
      // y, dgate and dup are rounded to bf16 before they are multiplied; the CPU rounds none of them.
      const tolerances = { dGateUp: ROUNDED, out: { element: 2e-2, norm: 4e-3 } };
      compare(`f ${f}, ranks ${ranks}, segments of ${lengths}, ${pad} apart`, work, tolerances, { archs: ["80"] });
    }
  }
});

gpuTest("reluGradients() follows the sign and forms the adapters' gradients, whichever there are", () => {
  const problems: { lengths: number[]; f: number; ranks: [number, number]; beta: number }[] = [
    { lengths: [37, 0, 200, 1, 64], f: 64, ranks: [8, 8], beta: 0 },
    { lengths: [500, 300], f: 264, ranks: [32, 32], beta: 1 },
    { lengths: [700], f: 1032, ranks: [32, 16], beta: 0 },
    { lengths: [700], f: 136, ranks: [64, 40], beta: 0 },
    { lengths: [90, 41], f: 136, ranks: [0, 8], beta: 1 },
    { lengths: [90, 41], f: 136, ranks: [8, 0], beta: 0 },
    { lengths: [90, 41], f: 136, ranks: [0, 0], beta: 0 },
    { lengths: [90, 41], f: 33, ranks: [5, 2], beta: 0 },
    { lengths: [90, 41], f: 72, ranks: [96, 8], beta: 0 },
  ];
  for (const { lengths, f, ranks, beta } of problems) {
    const offsets = lengths.reduce((list, n) => [...list, list.at(-1)! + n], [0]), S = lengths.length, used = offsets.at(-1)!;
    const T = used + 5, [rY, rX] = ranks, r = Math.max(1, rY + rX);
    const values = {
      ...{ y: normals(T * f, 1).map((x) => Math.max(0, x)), dy: normals(T * f, 2), out: normals(S * r * f, 5) },
      ...{ gh: normals(T * Math.max(1, rY), 3), h: normals(T * Math.max(1, rX), 4) },
    };
    for (const pad of [8, 3]) {
      const work = (on: Subject) => {
        const y = on.act(values.y, T, f, f + 2 * pad), dy = on.act(values.dy, T, f, f + pad);
        const gh = on.act(values.gh, T, Math.max(1, rY), Math.max(1, rY) + pad);
        const h = on.act(values.h, T, Math.max(1, rX), Math.max(1, rX) + pad), stride = r * f + 4 * pad;
        const out = on.f32(beta === 0 ? null : values.out, S, r * f, stride);
        ops.reluGradients(on.dev, T, S, {
          ...{ cu: on.ints(offsets), f, y, dy, beta, stride },
          behind: rY > 0 ? { rank: rY, gh, out } : null,
          before: rX > 0 ? { rank: rX, scale: 0.5, h, out: out.columns(rY * f, 1) } : null,
        });
        return { dx: on.read(y.rowRange(0, used)), ...(rY + rX > 0 ? { out: on.read(out) } : {}) };
      };
      // dx has the bits of dy; y and dx are bf16 numbers on both devices.
      const tolerances = { dx: 0, ...(rY + rX > 0 ? { out: PRODUCTS } : {}) };
      compare(`f ${f}, ranks ${ranks}, segments of ${lengths}, ${pad} apart`, work, tolerances, { archs: ["80"] });
    }
  }
});

gpuTest("segmentOuter(), segmentMean() and segmentSum() work segment by segment", () => {
  const random = (lengths: number[], p: number, q: number, alpha: number, beta: number) => {
    const cu = lengths.reduce((list, n) => [...list, list.at(-1)! + n], [0]), S = lengths.length, T = cu.at(-1)!;
    const parts = { a: normals(T * p, 1), b: normals(T * q, 2), out0: normals(S * p * q, 3), values: normals(T, 4) };
    return { name: `${p} by ${q}`, S, T, p, q, alpha, beta, cu: Int32Array.from(cu), ...parts, expected: undefined };
  };
  const fixtures = fixtureCases("segment").map((each) => {
    const { T, q, b } = { T: each.number("T"), q: each.number("q"), b: each.f32("b") };
    return {
      ...{
        name: each.name,
        S: each.number("S"),
        T,
        p: each.number("p"),
        q,
        alpha: each.number("alpha"),
        beta: each.number("beta"),
      },
      ...{ cu: each.i32("cu"), a: each.f32("a"), b, out0: each.f32("out0") },
      values: Float32Array.from({ length: T }, (_, t) => b[t * q]!),
      expected: { outer: each.f32("outer"), mean: each.f32("mean"), sums: each.f64("total64") },
    };
  });
  const many = [37, 0, 200, 1, 64, 130, 0];
  const problems = [
    ...fixtures,
    random(many, 8, 64, 1, 0),
    random(many, 300, 16, 0.5, 1),
    random(many, 33, 5, -2, 0.25),
    random([150, 700], 100, 200, 1, 0),
    random([0, 90], 1032, 32, 2, 0),
  ];
  for (const problem of problems) {
    const { name, S, T, p, q, alpha, beta, expected } = problem;
    for (const pads of [[8, 16, 12], [3, 1, 5]] as const) {
      const work = (on: Subject) => {
        const cu = on.ints(problem.cu), a = on.act(problem.a, T, p, p + pads[0]), b = on.act(problem.b, T, q, q + pads[1]);
        const stride = p * q + pads[2];
        const out = on.f32(beta === 0 ? null : problem.out0, S, p * q, stride),
          mean = on.f32(null, S, q, q + 2),
          sums = on.doubles(S);
        ops.segmentOuter(on.dev, S, { cu, p, q, a, b, out, stride, alpha, beta });
        const norm = { rstd: on.f32(problem.values, 1, T), weight: on.f32(problem.b.slice(0, q), 1, q) };
        const normed = on.f32(beta === 0 ? null : problem.out0, S, p * q, stride);
        ops.segmentOuter(on.dev, S, { cu, p, q, a, b, norm, out: normed, stride, alpha, beta });
        ops.segmentMean(on.dev, S, { cu, q, a: b, out: mean });
        ops.segmentSum(on.dev, S, { rowOffsets: cu, values: on.f32(problem.values, 1, T), out: sums });
        return { outer: on.read(out), normed: on.read(normed), mean: on.read(mean), sums: on.readDoubles(sums) };
      };
      const fixture = expected && { fixture: { expected, tolerance: FROM_ROUNDED } };
      // With factors of its rows the narrow side is rounded to bf16 once more.
      const tolerances = { outer: PRODUCTS, normed: { element: 2e-2, norm: 4e-3 }, mean: F32, sums: 1e-12 };
      compare(`segments ${name}`, work, tolerances, { archs: ["80"], ...fixture });
    }
  }
});
