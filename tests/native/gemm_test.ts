import { gemm } from "../../ffi/operators.ts";
import { assertSameBits, type Floats, normals, Workbench } from "./harness.ts";
import { assertBounded, asStored, integers, product, testEach, toBf16 } from "./reference.ts";

type Kind = "f32" | "bf16";

/** One product, computed by the library on `threads` threads, out of larger matrices whose padding is NaN. */
function multiply(
  { M, N, K, a, b, c, transA, transB, aKind = "f32", bKind = "f32", alpha = 1, beta = 0, threads = 2, pad = 0 }: {
    M: number;
    N: number;
    K: number;
    a: Floats;
    b: Floats;
    c?: Floats;
    transA: boolean;
    transB: boolean;
    aKind?: Kind;
    bKind?: Kind;
    alpha?: number;
    beta?: number;
    threads?: number;
    pad?: number;
  },
): Floats {
  using bench = new Workbench(threads);
  const [aRows, aCols] = transA ? [K, M] : [M, K];
  const [bRows, bCols] = transB ? [N, K] : [K, N];
  const left = bench.put(a, aRows, aCols, { ld: aCols + pad, dtype: aKind });
  const right = bench.put(b, bRows, bCols, { ld: bCols + pad, dtype: bKind });
  const out = c ? bench.put(c, M, N, { ld: N + pad }) : bench.out(M, N, N + pad);
  gemm(bench.dev, { M, N, K, a: left, b: right, c: out, transA, transB, alpha, beta });
  bench.paddingUntouched(out);
  return bench.read(out);
}

/** Some rows of the same (all, unless named) in double precision, from the values that the operands' types hold. */
function expected(
  isa: string,
  { M, N, K, a, b, c, transA, transB, aKind = "f32", bKind = "f32", alpha = 1, beta = 0 }: Parameters<typeof multiply>[0],
  rows = Array.from({ length: M }, (_, i) => i),
) {
  // vdpbf16ps multiplies bf16 by bf16: an f32 operand is rounded when the other is bf16
  const both = isa === "avx512bf16" && (aKind === "bf16" || bKind === "bf16");
  const left = asStored(a, both ? "bf16" : aKind), right = asStored(b, both ? "bf16" : bKind);
  return product(
    rows.length,
    N,
    K,
    transA ? (i, k) => left[k * M + rows[i]!]! : (i, k) => left[rows[i]! * K + k]!,
    transB ? (k, j) => right[j * K + k]! : (k, j) => right[k * N + j]!,
    { alpha: Math.fround(alpha), beta: Math.fround(beta), c: c ? (i, j) => c[rows[i]! * N + j]! : null },
  );
}

testEach("gemm() agrees with double precision on random shapes, transposes, types, strides, alpha and beta", (isa) => {
  const pick = integers(7);
  for (let round = 0; round < 120; round++) {
    const [M, N, K] = [pick(1, 70), pick(1, 110), pick(1, 90)];
    const flags = pick(0, 15);
    const problem = {
      M,
      N,
      K,
      a: normals(M * K, round + 1),
      b: normals(N * K, round + 1001),
      transA: (flags & 1) > 0,
      transB: (flags & 2) > 0,
      aKind: (flags & 4) > 0 ? "bf16" as const : "f32" as const,
      bKind: (flags & 8) > 0 ? "bf16" as const : "f32" as const,
      alpha: [1, -0.5, 2.5][pick(0, 2)]!,
      beta: [0, 1, -1.5][pick(0, 2)]!,
      pad: pick(0, 9),
    };
    const c = problem.beta === 0 ? undefined : normals(M * N, round + 2001);
    const all = c ? { ...problem, c } : problem;
    assertBounded(multiply(all), expected(isa, all), `round ${round} ${JSON.stringify({ ...problem, a: 0, b: 0 })}`);
  }
});

testEach("gemm() agrees with double precision where K and the panels are cut into several passes", (isa) => {
  for (
    const [M, N, K, transA, transB] of [
      [9, 13, 5001, false, true],
      [40, 1100, 2303, false, false],
      [1100, 17, 2400, true, false],
      [700, 50, 1000, false, true],
      [16, 16, 20000, true, true],
    ] as const
  ) {
    for (const bKind of ["f32", "bf16"] as const) {
      const problem = { M, N, K, a: normals(M * K, 1), b: normals(N * K, 2), transA, transB, bKind };
      const rows = [0, 1, Math.floor(M / 2), M - 1], c = multiply(problem);
      const some = rows.flatMap((row) => [...c.subarray(row * N, (row + 1) * N)]);
      assertBounded(some, expected(isa, problem, rows), `[${M},${K}] by [${K},${N}] ${bKind}`);
    }
  }
});

testEach("gemm() gives the same bits on any number of threads", () => {
  const pick = integers(11);
  for (let round = 0; round < 24; round++) {
    const [M, N, K] = [pick(1, 300), pick(1, 300), pick(1, 700)];
    const flags = pick(0, 7);
    const problem = {
      M,
      N,
      K,
      a: normals(M * K, round),
      b: normals(N * K, round + 50),
      transA: (flags & 1) > 0,
      transB: (flags & 2) > 0,
      bKind: (flags & 4) > 0 ? "bf16" as const : "f32" as const,
    };
    const once = multiply({ ...problem, threads: 1 });
    for (const threads of [2, 3]) assertSameBits(multiply({ ...problem, threads }), once, `${threads} threads, [${M},${N},${K}]`);
  }
});

testEach("gemm() gives a row the same bits alone or among others, and a column likewise", () => {
  const pick = integers(13);
  for (const [M, N, K] of [[61, 77, 333], [130, 40, 650], [25, 200, 96]] as const) {
    for (const transB of [false, true]) {
      for (const bKind of ["f32", "bf16"] as const) {
        const a = normals(M * K, M), b = normals(N * K, N);
        const whole = multiply({ M, N, K, a, b, transA: false, transB, bKind });
        const first = pick(0, M - 2), rows = pick(1, M - first);
        const some = multiply({ M: rows, N, K, a: a.slice(first * K, (first + rows) * K), b, transA: false, transB, bKind });
        assertSameBits(some, whole.slice(first * N, (first + rows) * N), `rows ${first}+${rows} of ${M}`);
        const left = pick(0, N - 2), columns = pick(1, N - left);
        const narrow = new Float32Array(K * columns);
        for (let k = 0; k < K; k++) {
          for (let j = 0; j < columns; j++) {
            if (transB) narrow[j * K + k] = b[(left + j) * K + k]!;
            else narrow[k * columns + j] = b[k * N + left + j]!;
          }
        }
        const part = multiply({ M, N: columns, K, a, b: narrow, transA: false, transB, bKind });
        const wanted = Float32Array.from(
          { length: M * columns },
          (_, e) => whole[Math.floor(e / columns) * N + left + e % columns]!,
        );
        assertSameBits(part, wanted, `columns ${left}+${columns} of ${N}`);
      }
    }
  }
});

testEach("gemm() keeps infinities, NaN and signed zeros of bf16 operands", () => {
  const a = Float32Array.from([Infinity, 1, -1, 0, NaN, 1, 3.3895313892515355e38, 1]); // the last but one is the largest bf16
  const identity = Float32Array.from([1, 0, 0, 1]);
  const c = multiply({ M: 4, N: 2, K: 2, a, b: identity, transA: false, transB: false, aKind: "bf16" });
  assertSameBits(
    c.map((x) => Number.isNaN(x) ? 0 : x),
    Float32Array.from([Infinity, 0, -1, 0, 0, 0, toBf16(3.3895313892515355e38), 1]),
    "special values",
  );
});
