/** Products and linear layers with adapters on the GPU: beside the CPU library and PyTorch's numbers, twice with the same bits. */
import { assert, assertEquals } from "@std/assert";
import { Tensor } from "../../ffi/device.ts";
import * as ops from "../../ffi/operators.ts";
import { fixtureCases, type Floats, makeGroups, normals } from "../native/harness.ts";
import { asBf16, compare, gpuTest, type Results, type Subject } from "./subject.ts";

/** Sums in f32 of products of bf16 numbers; tensor cores cut the bits behind an addition off. */
const PRODUCTS = 5e-5;
/** A bf16 result, and h or g_h rounded on the way to it. */
const ROUNDED = 2e-2;

gpuTest("gemm() multiplies with all transposes, alpha and beta, into f32 and bf16", () => {
  // The last is large enough for cuBLAS's algorithms to be compared.
  for (const [M, N, K, pad] of [[37, 50, 29, 3], [64, 128, 96, 8], [1, 300, 515, 1], [600, 1024, 1024, 0]] as const) {
    for (const transA of [false, true]) {
      for (const transB of [false, true]) {
        for (const [alpha, beta] of [[1, 0], [-0.5, 1], [2, 0.25]] as const) {
          const values = { a: normals(M * K, 1), b: normals(N * K, 2), c: normals(M * N, 3) };
          const work = (on: Subject) => {
            const a = transA ? on.weight(values.a, K, M, M + pad) : on.weight(values.a, M, K, K + pad);
            const b = transB ? on.weight(values.b, N, K, K + pad) : on.weight(values.b, K, N, N + pad);
            const wide = on.f32(beta === 0 ? null : values.c, M, N, N + pad);
            const narrow = beta === 0 ? on.room(M, N, N + pad) : on.act(values.c, M, N, N + pad);
            for (const c of [wide, narrow]) ops.gemm(on.dev, { M, N, K, a, b, c, transA, transB, alpha, beta });
            return { "c f32": on.read(wide), "c bf16": on.read(narrow) };
          };
          compare(`[${M},${K}] by [${K},${N}], ${transA} ${transB}, ${alpha} ${beta}`, work, {
            "c f32": PRODUCTS,
            "c bf16": 1e-2,
          });
        }
      }
    }
  }
});

/** A linear group and what goes through it. */
interface Problem {
  readonly name: string;
  readonly T: number;
  readonly dIn: number;
  readonly table: readonly (readonly [number, number])[];
  readonly scales: readonly number[];
  readonly W: Float32Array;
  /** A [Q, dIn], then B_g [d_out_g, r_g]. */
  readonly theta: Float32Array;
  readonly bias: Float32Array | null;
  readonly x: Float32Array;
  readonly dy: Float32Array;
  readonly expected?: Results;
}

function random(T: number, dIn: number, table: readonly (readonly [number, number])[], bias: boolean): Problem {
  const N = table.reduce((sum, [dOut]) => sum + dOut, 0);
  const parameters = table.reduce((sum, [dOut, r]) => sum + r * (dIn + dOut), 0);
  const small = (n: number, seed: number) => normals(n, seed).map((value) => value / Math.sqrt(dIn));
  return {
    name: `${T} rows, ${dIn} inputs, ${table.map(([dOut, r]) => `${dOut} of rank ${r}`).join(", ")}`,
    ...{ T, dIn, table, scales: table.map((_, g) => [0.5, 2, 1.25][g % 3]!), W: small(N * dIn, 1) },
    ...{
      theta: small(Math.max(1, parameters), 2),
      bias: bias ? normals(N, 3) : null,
      x: normals(T * dIn, 4),
      dy: normals(T * N, 5),
    },
  };
}

/** Where A lies on a device with bf16 activations, and how rows are padded. */
interface Layout {
  /** A directly below W; else in memory of its own. */
  readonly below: boolean;
  /** Room for g_h behind dy. */
  readonly behind: boolean;
  readonly pad: number;
}

/** Refresh, forward and backward, with and without dx, and the adapter's gradients from what they leave behind. */
function pass(on: Subject, problem: Problem, { below, behind, pad }: Layout): Results {
  const { T, dIn, table } = problem;
  const N = table.reduce((sum, [dOut]) => sum + dOut, 0), Q = table.reduce((sum, [, r]) => sum + r, 0);
  const groups = makeGroups(table, problem.scales);
  const ldw = dIn + Q + pad, rowsBelow = below ? Q : 0;
  const frozen = new Float32Array((N + rowsBelow) * (dIn + Q)).fill(NaN);
  for (let n = 0; n < N; n++) frozen.set(problem.W.subarray(n * dIn, (n + 1) * dIn), n * (dIn + Q));
  const all = on.weight(frozen, N + rowsBelow, dIn + Q, ldw);
  const W = new Tensor(all.storage, 0, N, dIn + Q, "bf16", ldw);
  // Masters that bf16 holds exactly: the CPU library reads A in f32.
  const theta = on.f32(asBf16(problem.theta), 1, problem.theta.length);
  let A: Tensor | null = null, aCast: Tensor | null = null;
  if (Q > 0 && on.dtype === "f32") A = theta.part(0, Q, dIn);
  else if (Q > 0) A = aCast = below ? new Tensor(all.storage, 2 * N * ldw, Q, dIn, "bf16", ldw) : on.room(Q, dIn, dIn + pad);
  ops.loraRefresh(on.dev, [{ dIn, groups, theta, W, aCast }], on.dtype);

  const wide = (values: Float32Array | null, cols: number, scratch: number, ld: number) => {
    const padded = new Float32Array(T * (cols + scratch)).fill(NaN);
    if (values) { for (let t = 0; t < T; t++) padded.set(values.subarray(t * cols, (t + 1) * cols), t * (cols + scratch)); }
    return on.act(padded, T, cols + scratch, ld);
  };
  const xh = wide(problem.x, dIn, Q, dIn + Q + pad), y = on.room(T, N, N + pad);
  const bias = problem.bias && on.act(problem.bias, 1, N), forward = { dIn, groups, xh, A, W, bias };
  ops.linearForward(on.dev, T, { ...forward, y });
  const stream = normals(T * N, 6), sum = on.room(T, N, N + pad), inPlace = on.act(stream, T, N, N + pad);
  ops.linearForward(on.dev, T, { ...forward, add: on.act(stream, T, N, N + 2 * pad), y: sum });
  ops.linearForward(on.dev, T, { ...forward, add: inPlace, y: inPlace });
  const rectified = on.room(T, N, N + pad);
  ops.linearForward(on.dev, T, { ...forward, relu: true, y: rectified });
  on.settle(xh);
  const lddy = N + (behind ? Q : 0) + pad;
  const dy = wide(problem.dy, N, lddy >= N + Q ? Q : 0, lddy); // Q columns behind dy are scratch wherever they fit
  const gxh = wide(null, dIn, Q, dIn + Q + 2 * pad);
  const behindDy = behind
    ? new Tensor(dy.storage, dy.byteOffset + N * (on.dtype === "f32" ? 4 : 2), T, Q, on.dtype, dy.ld)
    : null;
  const gh = Q === 0 ? null : behindDy ?? gxh.columns(dIn, Q);
  ops.linearBackward(on.dev, T, { dIn, groups, dy, A, W, dx: gxh, gh });
  on.settle(gxh);
  if (behindDy) on.settle(dy);
  const results: Results = {
    ...{ x: on.read(xh.columns(0, dIn)), y: on.read(y), dx: on.read(gxh.columns(0, dIn)) },
    ...{ "y + add": on.read(sum), "y += add": on.read(inPlace), "relu(y)": on.read(rectified) },
  };
  assertEquals(on.read(dy.columns(0, N)), asBf16(problem.dy), "dy itself stays");
  if (Q === 0) return results;

  const alone = wide(null, dIn, Q, dIn + Q + pad);
  ops.linearBackward(on.dev, T, { dIn, groups, dy, A, W, dx: null, gh: alone.columns(dIn, Q) });
  Object.assign(results, {
    ...{ A: on.read(A!), "s B": on.read(W.columns(dIn, Q)), h: on.read(xh.columns(dIn, Q)), gh: on.read(gh!) },
    "gh alone": on.read(alone.columns(dIn, Q)),
  });
  const out = on.f32(null, 1, problem.theta.length), h = xh.columns(dIn, Q);
  const sides = { cu: on.ints([0, T]), dIn, groups, gh: gh!, stride: problem.theta.length, beta: 0 };
  ops.linearGradients(on.dev, 1, { ...sides, x: xh, h, dy, out });
  const dtheta = on.read(out), isA = (i: number) => i < Q * dIn;
  // Each half leaves the other alone. Other halves beside it may share the work out otherwise, and sum in another order.
  const [onlyA, onlyB] = [on.f32(null, 1, dtheta.length), on.f32(null, 1, dtheta.length)];
  ops.linearGradients(on.dev, 1, { ...sides, x: xh, h: null, dy: null, out: onlyA });
  ops.linearGradients(on.dev, 1, { ...sides, x: null, h, dy, out: onlyB });
  const [a, b] = [on.read(onlyA), on.read(onlyB)];
  assert(
    a.every((value, i) => isA(i) || Number.isNaN(value)) && b.every((value, i) => !isA(i) || Number.isNaN(value)),
    "a half was written",
  );
  const halves = (theta: Floats) => [theta.subarray(0, Q * dIn), theta.subarray(Q * dIn)] as const;
  const [dA, dB] = halves(dtheta);
  return { ...results, dA, dB, "dA alone": halves(a)[0], "dB alone": halves(b)[1] };
}

const fixtures = (): Problem[] =>
  fixtureCases("linear").map((each) => {
    const table = each.value<[number, number][]>("groups"), numbersOfA = each.number("Q") * each.number("d_in");
    const [dA, dB] = [each.f32("dtheta").subarray(0, numbersOfA), each.f32("dtheta").subarray(numbersOfA)];
    const expected = numbersOfA > 0 ? { h: each.f32("h"), gh: each.f32("gh"), dA, dB } : {};
    return {
      ...{ name: each.name, T: each.number("T"), dIn: each.number("d_in"), table, scales: each.value<number[]>("scales") },
      ...{ W: each.f32("W"), theta: each.f32("theta"), bias: each.value<boolean>("bias") ? each.f32("bias") : null },
      ...{ x: each.f32("x"), dy: each.f32("dy"), expected: { y: each.f32("y"), dx: each.f32("dx"), ...expected } },
    };
  });

const problems = (): Problem[] => [
  ...fixtures(),
  random(37, 17, [[23, 5]], true),
  random(40, 40, [[24, 8], [12, 8], [12, 8]], false), // q, k, v
  random(29, 33, [[50, 7], [50, 3]], false), // gate, up
  random(19, 21, [[19, 0]], true), // no adapter
  random(33, 26, [[15, 4], [9, 0], [14, 6]], true), // one matrix of three without
  random(70, 576, [[576, 8], [192, 8], [192, 8]], false),
  random(150, 2048, [[512, 16], [256, 16]], true),
  random(260, 4096, [[128, 8]], false), // a narrow product with a long sum, and a long sum of the gradient below
  random(130, 128, [[4096, 32]], false),
  random(130, 256, [[256, 32], [128, 32], [128, 32]], false), // products of one list with narrow sides of 96 and 32, ...
  random(70, 136, [[128, 64], [96, 64]], false), // 128 and 64, ...
  random(90, 192, [[160, 8], [64, 48]], false), // 56, 8 and 48
  random(300, 1024, [[1536, 8], [512, 0]], true), // large enough for cublasLt
];

for (
  const [name, layout] of [
    ["A in memory of its own", { below: false, behind: false }],
    ["A below W, no room behind dy", { below: true, behind: false }],
    ["A below W, room behind dy", { below: true, behind: true }],
  ] as const
) {
  gpuTest(`loraRefresh(), linearForward() and linearBackward() on groups of any ranks: ${name}`, () => {
    for (const problem of problems()) {
      const adapted = problem.table.some(([, r]) => r > 0);
      // A bias and something to add are rounded once more where cuBLAS adds them one after the other.
      const always = { x: 0, y: ROUNDED, dx: ROUNDED, "y + add": 2 * ROUNDED, "y += add": 2 * ROUNDED, "relu(y)": ROUNDED };
      // A and s B are rounded on both devices in the same way.
      const rest = {
        ...{ A: 0, "s B": 0, h: ROUNDED, gh: ROUNDED, "gh alone": ROUNDED },
        ...{ dA: ROUNDED, dB: ROUNDED, "dA alone": ROUNDED, "dB alone": ROUNDED },
      };
      const tolerances = adapted ? { ...always, ...rest } : always;
      for (const pad of [8, 3]) {
        const fixture = problem.expected && { fixture: { expected: problem.expected, tolerance: 2 * ROUNDED } };
        compare(`${problem.name}, ${pad} apart`, (on) => pass(on, problem, { ...layout, pad }), tolerances, fixture ?? {});
      }
    }
  });
}
