/** Attention against PyTorch float64 fixtures, against its definition in TypeScript, and its invariances bit for bit. */
import { assert, assertEquals } from "@std/assert";
import type { Tensor } from "../../ffi/device.ts";
import { attentionBackward, attentionForward, rope, type Segments } from "../../ffi/operators.ts";
import { assertClose, assertSameBits, fixtureCases, type Floats, normals, Workbench } from "./harness.ts";

const TOLERANCE = 1e-5;

interface Problem {
  readonly lengths: number[];
  readonly kvLens: number[] | null;
  readonly H: number;
  readonly K: number;
  readonly D: number;
  readonly scale: number;
  readonly q: Floats; // [T, H*D]
  readonly k: Floats; // [T, K*D]
  readonly v: Floats; // [T, K*D]
  readonly dout: Floats; // [T, H*D]
}

interface Result {
  readonly out: Floats;
  readonly lse: Floats;
  readonly dq: Floats;
  readonly dk: Floats;
  readonly dv: Floats;
}

const total = (lengths: number[]) => lengths.reduce((sum, n) => sum + n, 0);
const offsets = (lengths: number[]) => lengths.reduce((list, n) => [...list, list[list.length - 1]! + n], [0]);

function randomProblem(lengths: number[], H: number, K: number, D: number, kvLens: number[] | null = null): Problem {
  const T = total(lengths);
  const part = (cols: number, seed: number) => normals(T * cols, seed);
  return {
    lengths,
    kvLens,
    H,
    K,
    D,
    scale: D ** -0.5,
    q: part(H * D, 1),
    k: part(K * D, 2),
    v: part(K * D, 3),
    dout: part(H * D, 4),
  };
}

/** Rows behind the last segment. */
const BEHIND = 3;

/**
 * Runs forward and backward; rows of q|k|v lie in one padded buffer, as in the model.
 * @param back what rotates dq and dk back, by positions that start at 0 in every segment: attentionBackward() itself, or rope() after it
 */
function run(problem: Problem, threads = 2, { back = null }: { back?: "attention" | "rope" | null } = {}): Result {
  using bench = new Workbench(threads);
  const { lengths, kvLens, H, K, D, scale } = problem;
  const used = total(lengths), T = used + BEHIND;
  const width = (H + 2 * K) * D;
  const joined = new Float32Array(T * width);
  for (let t = 0; t < used; t++) {
    joined.set(problem.q.subarray(t * H * D, (t + 1) * H * D), t * width);
    joined.set(problem.k.subarray(t * K * D, (t + 1) * K * D), t * width + H * D);
    joined.set(problem.v.subarray(t * K * D, (t + 1) * K * D), t * width + (H + K) * D);
  }
  const parts = (qkv: Tensor) => [qkv.columns(0, H * D), qkv.columns(H * D, K * D), qkv.columns((H + K) * D, K * D)] as const;
  const qkv = bench.put(joined, T, width, { ld: width + 7 });
  const dqkv = bench.out(T, width, width + 3);
  const [q, k, v] = parts(qkv);
  const [dq, dk, dv] = parts(dqkv);
  const out = bench.out(T, H * D, H * D + 5);
  const lse = bench.out(T, H);
  const segments: Segments = {
    count: lengths.length,
    maxLength: Math.max(...lengths),
    cu: bench.ints(offsets(lengths)),
    kvLens: kvLens && bench.ints(kvLens),
  };
  const shape = { H, K, D, scale };
  attentionForward(bench.dev, T, segments, { ...shape, q, k, v, out, lse });
  const gradient = new Float32Array(T * H * D).fill(NaN);
  gradient.set(problem.dout);
  const dout = bench.put(gradient, T, H * D, { ld: H * D + 1 });
  const angles = normals(Math.max(...lengths) * D / 2, 5);
  const rotation = {
    cos: bench.put(angles.map(Math.cos), Math.max(...lengths), D / 2),
    sin: bench.put(angles.map(Math.sin), Math.max(...lengths), D / 2),
    positions: bench.ints([...lengths.flatMap((n) => Array.from({ length: n }, (_, i) => i)), ...new Array(BEHIND).fill(0)]),
  };
  const gradients = { dout, dq, dk, dv, work: bench.out(T, H), rope: back === "attention" ? rotation : null };
  attentionBackward(bench.dev, T, segments, { ...shape, q, k, v, out, lse, ...gradients });
  if (back === "rope") rope(bench.dev, T, { heads: H + K, D, x: dqkv, ...rotation, inverse: true });
  bench.paddingUntouched(out);
  bench.paddingUntouched(dqkv);
  for (const x of [out, lse, dq, dk, dv]) {
    assert(bench.read(x.rowRange(used, BEHIND)).every((value) => value === 0), "rows behind the last segment must be zero");
  }
  const read = (x: Tensor) => bench.read(x.rowRange(0, used));
  return { out: read(out), lse: read(lse), dq: read(dq), dk: read(dk), dv: read(dv) };
}

/** The definition, one query after another, in double. */
function define({ lengths, kvLens, H, K, D, scale, q, k, v, dout }: Problem): { [name in keyof Result]: Float64Array } {
  const T = total(lengths);
  const cu = offsets(lengths);
  const result = {
    out: new Float64Array(T * H * D),
    lse: new Float64Array(T * H),
    dq: new Float64Array(T * H * D),
    dk: new Float64Array(T * K * D),
    dv: new Float64Array(T * K * D),
  };
  lengths.forEach((length, s) => {
    for (let i = 0; i < length; i++) {
      for (let h = 0; h < H; h++) {
        const row = ((cu[s]! + i) * H + h) * D;
        const keys = Math.min(i + 1, kvLens?.[s] ?? length);
        const at = (j: number) => ((cu[s]! + j) * K + Math.floor(h / (H / K))) * D;
        const dot = (x: Floats, a: number, y: ArrayLike<number>, b: number) => {
          let sum = 0;
          for (let d = 0; d < D; d++) sum += x[a + d]! * y[b + d]!;
          return sum;
        };
        const scores = Array.from({ length: keys }, (_, j) => dot(q, row, k, at(j)) * scale);
        const largest = Math.max(...scores);
        const lse = largest + Math.log(scores.reduce((sum, s) => sum + Math.exp(s - largest), 0));
        result.lse[(cu[s]! + i) * H + h] = keys > 0 ? lse : -Infinity;
        const p = scores.map((score) => Math.exp(score - lse));
        p.forEach((pj, j) => {
          for (let d = 0; d < D; d++) result.out[row + d]! += pj * v[at(j) + d]!;
        });
        const delta = dot(dout, row, result.out, row);
        p.forEach((pj, j) => {
          const ds = pj * (dot(dout, row, v, at(j)) - delta) * scale;
          for (let d = 0; d < D; d++) {
            result.dq[row + d]! += ds * k[at(j) + d]!;
            result.dk[at(j) + d]! += ds * q[row + d]!;
            result.dv[at(j) + d]! += pj * dout[row + d]!;
          }
        });
      }
    }
  });
  return result;
}

const NAMES = ["out", "lse", "dq", "dk", "dv"] as const;

Deno.test("attention agrees with autograd: odd lengths, 1 to 8 query heads a group, head sizes 2 to 80, right padding", () => {
  for (const each of fixtureCases("attention")) {
    const cu = Array.from(each.i32("cu"));
    const problem: Problem = {
      lengths: cu.slice(1).map((end, i) => end - cu[i]!),
      kvLens: each.has("kv_lens") ? Array.from(each.i32("kv_lens")) : null,
      H: each.number("H"),
      K: each.number("K"),
      D: each.number("D"),
      scale: each.number("scale"),
      q: each.f32("q"),
      k: each.f32("k"),
      v: each.f32("v"),
      dout: each.f32("dout"),
    };
    const result = run(problem);
    for (const name of NAMES) assertClose(result[name], each.f32(name), TOLERANCE, `${each.name} ${name}`);
  }
});

Deno.test("attention agrees with its definition around the edges of its tiles", () => {
  const problems = [
    randomProblem([95, 96, 97], 2, 1, 8),
    randomProblem([193, 47, 48, 49], 1, 1, 16),
    randomProblem([300], 3, 1, 6),
    randomProblem([130, 17], 2, 2, 40),
    randomProblem([250, 110], 2, 1, 8, [100, 110]),
    randomProblem([20], 1, 1, 256),
  ];
  for (const problem of problems) {
    const [result, exact] = [run(problem), define(problem)];
    for (const name of NAMES) assertClose(result[name], exact[name], TOLERANCE, `${problem.lengths} D=${problem.D} ${name}`);
  }
});

Deno.test("attentionBackward() rotates dq and dk back as rope() does after it, and nothing else", () => {
  const problems = [
    randomProblem([95, 1, 97], 2, 2, 8),
    randomProblem([300], 3, 1, 10),
    randomProblem([130, 0, 17], 6, 2, 64, [100, 0, 17]),
    randomProblem([20, 33], 2, 1, 80),
    randomProblem([20], 1, 1, 256),
  ];
  for (const problem of problems) {
    const [within, after, plain] = [run(problem, 2, { back: "attention" }), run(problem, 2, { back: "rope" }), run(problem)];
    for (const name of ["dq", "dk"] as const) {
      assertClose(within[name], after[name], 1e-6, `${problem.lengths} D=${problem.D} ${name}`);
      assert(plain[name].some((x, i) => Math.abs(x - after[name][i]!) > 0.01), `${name} was rotated at all`);
    }
    for (const name of ["out", "lse", "dv"] as const) assertSameBits(within[name], plain[name], name);
  }
});

Deno.test("attention in a segment without a single key gives zeros and a log-sum-exp of -Infinity", () => {
  const problem = randomProblem([5, 60], 2, 1, 8, [0, 60]);
  const [result, exact] = [run(problem), define(problem)];
  for (const name of NAMES) assertClose(result[name], exact[name], TOLERANCE, name);
  assertEquals([...result.lse.subarray(0, 10)], new Array(10).fill(-Infinity));
});

Deno.test("attention gives the same bits with 1, 2, 3 and 16 threads", () => {
  // One long segment with one key/value head takes the two-pass backward from 2 threads on, the others the one-pass.
  for (const problem of [randomProblem([400], 3, 1, 24), randomProblem([70, 1, 130, 55], 4, 2, 16)]) {
    const one = run(problem, 1);
    for (const threads of [2, 3, 16]) {
      const many = run(problem, threads);
      for (const name of NAMES) assertSameBits(many[name], one[name], `${threads} threads, ${name}`);
    }
  }
});

Deno.test("attention on a packed stream gives each segment the bits that it has alone", () => {
  const problem = randomProblem([61, 1, 150, 96], 4, 2, 20, [61, 1, 100, 96]);
  const packed = run(problem);
  const cu = offsets(problem.lengths);
  problem.lengths.forEach((length, s) => {
    const rows = (x: Floats) => {
      const cols = x.length / cu[cu.length - 1]!;
      return x.slice(cu[s]! * cols, cu[s + 1]! * cols);
    };
    const { q, k, v, dout } = problem;
    const alone = run({
      ...problem,
      lengths: [length],
      kvLens: [problem.kvLens![s]!],
      ...{ q: rows(q), k: rows(k), v: rows(v), dout: rows(dout) },
    });
    for (const name of NAMES) assertSameBits(rows(packed[name]), alone[name], `segment ${s}, ${name}`);
  });
});

Deno.test("attention finds every one of many segments, those without rows among them", () => {
  // Lengths 0, 1, 2, …: by themselves most give one part of rows, some none or several.
  const lengths = Array.from({ length: 700 }, (_, i) => i % 7 === 3 ? 0 : i % 100 === 5 ? 130 : 1 + i % 11);
  const packed = randomProblem(lengths, 2, 1, 8);
  const dense = run({ ...packed, lengths: lengths.filter((length) => length > 0) });
  const all = run(packed);
  for (const name of NAMES) assertSameBits(all[name], dense[name], name);
  const last = lengths.length - 1, from = offsets(lengths)[last]!;
  const rows = (x: Floats) => x.slice(from * x.length / total(lengths));
  const { q, k, v, dout } = packed;
  const alone = run({ ...packed, lengths: [lengths[last]!], q: rows(q), k: rows(k), v: rows(v), dout: rows(dout) });
  for (const name of NAMES) assertSameBits(rows(all[name]), alone[name], `the last segment, ${name}`);
});

Deno.test("attention lets no later row and no other segment change a row", () => {
  const problem = randomProblem([60, 50], 2, 1, 8);
  const before = run(problem);
  const changed = { ...problem, k: problem.k.slice(), v: problem.v.slice() };
  changed.k.fill(9, 40 * 8, 60 * 8);
  changed.v.fill(1e30, 40 * 8, 60 * 8);
  const after = run(changed);
  assertSameBits(after.out.slice(0, 40 * 16), before.out.slice(0, 40 * 16), "rows before the change");
  assertSameBits(after.out.slice(60 * 16), before.out.slice(60 * 16), "the other segment");
  assert(after.out.subarray(40 * 16, 60 * 16).every((x, i) => x !== before.out[40 * 16 + i]), "rows after the change");
  changed.v.fill(NaN, 40 * 8, 41 * 8);
  const poisoned = run(changed);
  assert(poisoned.out.subarray(40 * 16, 60 * 16).every(Number.isNaN), "rows that see a NaN become NaN");
  assertSameBits(poisoned.out.slice(60 * 16), before.out.slice(60 * 16), "the other segment sees no NaN");
});
