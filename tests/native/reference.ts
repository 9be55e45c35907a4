/**
 * What the tests of the linear algebra share: plain products in double precision with an error bound for every element,
 * and the instruction sets of this machine.
 */
import { assert } from "@std/assert";
import type { Floats } from "./harness.ts";
import { openCpu, withInstructionSet } from "./instructions.ts";

/** A matrix of doubles with, beside each element, the sum of the magnitudes that went into it. */
export interface Bounded {
  readonly values: Float64Array<ArrayBuffer>;
  readonly magnitudes: Float64Array<ArrayBuffer>;
  /** Terms in the longest sum. */
  readonly terms: number;
}

/** Element i, k of an operand. */
export type At = (i: number, k: number) => number;

/** alpha · a b + beta · c for a [M,K], b [K,N] in double precision. */
export function product(
  M: number,
  N: number,
  K: number,
  a: At,
  b: At,
  { alpha = 1, beta = 0, c = null as At | null } = {},
): Bounded {
  const values = new Float64Array(M * N), magnitudes = new Float64Array(M * N);
  for (let i = 0; i < M; i++) {
    for (let k = 0; k < K; k++) {
      const left = alpha * a(i, k);
      for (let j = 0; j < N; j++) {
        const term = left * b(k, j);
        values[i * N + j]! += term;
        magnitudes[i * N + j]! += Math.abs(term);
      }
    }
    if (beta === 0) continue;
    for (let j = 0; j < N; j++) {
      const old = beta * c!(i, j);
      values[i * N + j]! += old;
      magnitudes[i * N + j]! += Math.abs(old);
    }
  }
  return { values, magnitudes, terms: K + 1 };
}

/** Asserts that f32 results are within the rounding errors that sums of this length may have. */
export function assertBounded(actual: ArrayLike<number>, expected: Bounded, what: string): void {
  assert(actual.length === expected.values.length, `${what}: ${actual.length} values, expected ${expected.values.length}`);
  const unit = (Math.sqrt(expected.terms) + 8) * 2 ** -24;
  for (let i = 0; i < actual.length; i++) {
    const [a, e, bound] = [actual[i]!, expected.values[i]!, unit * expected.magnitudes[i]!];
    assert(Math.abs(a - e) <= bound, `${what}[${i}]: ${a}, expected ${e} ± ${bound}`);
  }
}

/** Rounds to bf16, to nearest, ties to even. */
export function toBf16(x: number): number {
  const view = new DataView(new ArrayBuffer(4));
  view.setFloat32(0, x);
  const bits = view.getUint32(0);
  view.setUint32(0, (bits + 0x7fff + ((bits >>> 16) & 1)) & 0xffff0000);
  return view.getFloat32(0);
}

/** The values that a matrix of this type holds. */
export const asStored = (values: Floats, dtype: "f32" | "bf16"): Floats => dtype === "f32" ? values : values.map(toBf16);

/** The instruction sets that the library has kernels for and this machine can run. */
export const INSTRUCTION_SETS: readonly string[] = ["generic", "avx2", "avx512", "avx512bf16"].filter((isa) =>
  withInstructionSet(isa, () => {
    try {
      openCpu(1).close();
      return true;
    } catch {
      return false;
    }
  })
);

/** Registers a test once for each instruction set of this machine. */
export function testEach(name: string, body: (isa: string) => void): void {
  for (const isa of INSTRUCTION_SETS) Deno.test(`${name} (${isa})`, () => withInstructionSet(isa, () => body(isa)));
}

/** A repeatable source of whole numbers low .. high. */
export function integers(seed: number): (low: number, high: number) => number {
  let state = (seed * 2654435761 + 1) >>> 0 || 1;
  return (low, high) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state = (state ^ (state << 5)) >>> 0;
    return low + state % (high - low + 1);
  };
}
