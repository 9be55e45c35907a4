/** Attention on the GPU: beside the CPU library and PyTorch's numbers, on both sets of kernels, twice with the same bits. */
import { assert } from "@std/assert";
import type { Tensor } from "../../ffi/device.ts";
import { attentionBackward, attentionForward } from "../../ffi/operators.ts";
import { fixtureCases, normals } from "../native/harness.ts";
import { compare, gpuTest, type Results, type Subject, type Tolerances } from "./subject.ts";

interface Problem {
  readonly name: string;
  readonly lengths: readonly number[];
  readonly kvLens: readonly number[] | null;
  readonly H: number;
  readonly K: number;
  readonly D: number;
  readonly scale: number;
  /** q [T, H*D], k and v [T, K*D], dout [T, H*D]; T is the sum of the lengths. */
  readonly q: Float32Array;
  readonly k: Float32Array;
  readonly v: Float32Array;
  readonly dout: Float32Array;
  readonly expected?: Results;
}

const total = (lengths: readonly number[]) => lengths.reduce((sum, n) => sum + n, 0);

function random(lengths: number[], H: number, K: number, D: number, kvLens: number[] | null = null): Problem {
  const part = (heads: number, seed: number) => normals(total(lengths) * heads * D, seed);
  const name = `${H} heads of ${D}, ${K} of keys, segments of ${lengths}${kvLens ? `, keys ${kvLens}` : ""}`;
  return { name, lengths, kvLens, H, K, D, scale: D ** -0.5, q: part(H, 1), k: part(K, 2), v: part(K, 3), dout: part(H, 4) };
}

/** Rows behind the last segment, full of NaN. */
const BEHIND = 13;

/**
 * Forward and backward; q, k and v lie in one buffer of padded rows, as in the model. `rotated`: dq and dk are rotated back, by
 * positions that start at 0 in every segment.
 */
function pass(
  on: Subject,
  { lengths, kvLens, H, K, D, scale, ...values }: Problem,
  { pad, rotated }: { pad: number; rotated: boolean },
): Results {
  const used = total(lengths), T = used + BEHIND, width = (H + 2 * K) * D;
  const joined = new Float32Array(T * width).fill(NaN), gradient = new Float32Array(T * H * D).fill(NaN);
  gradient.set(values.dout);
  for (let t = 0; t < used; t++) {
    joined.set(values.q.subarray(t * H * D, (t + 1) * H * D), t * width);
    joined.set(values.k.subarray(t * K * D, (t + 1) * K * D), t * width + H * D);
    joined.set(values.v.subarray(t * K * D, (t + 1) * K * D), t * width + (H + K) * D);
  }
  const parts = (qkv: Tensor) => [qkv.columns(0, H * D), qkv.columns(H * D, K * D), qkv.columns((H + K) * D, K * D)] as const;
  const dqkv = on.room(T, width, width + 2 * pad), out = on.room(T, H * D, H * D + pad), lse = on.f32(null, T, H);
  const [q, k, v] = parts(on.act(joined, T, width, width + pad)), [dq, dk, dv] = parts(dqkv);
  const cu = on.ints(lengths.reduce((list, n) => [...list, list.at(-1)! + n], [0]));
  // The bound of a batch may be looser than its longest segment.
  const segments = { count: lengths.length, maxLength: Math.max(...lengths) + 5, cu, kvLens: kvLens && on.ints(kvLens) };
  attentionForward(on.dev, T, segments, { H, K, D, scale, q, k, v, out, lse });
  on.settle(out);
  const dout = on.act(gradient, T, H * D, H * D + pad);
  const positions = Math.max(...lengths), angles = normals(positions * D / 2, 5);
  const rope = {
    cos: on.f32(angles.map(Math.cos), positions, D / 2),
    sin: on.f32(angles.map(Math.sin), positions, D / 2),
    positions: on.ints([...lengths, BEHIND].flatMap((n) => Array.from({ length: n }, (_, i) => i % positions))),
  };
  const gradients = { dout, dq, dk, dv, work: on.f32(null, T, H), rope: rotated ? rope : null };
  attentionBackward(on.dev, T, segments, { H, K, D, scale, q, k, v, out, lse, ...gradients });
  const behind = [out, dq, dk, dv].map((tensor) => on.read(tensor.rowRange(used, BEHIND)));
  for (const rows of behind) assert(rows.every((value) => value === 0), "rows behind the last segment must be zero");
  const read = (tensor: Tensor) => on.read(tensor.rowRange(0, used));
  return { out: read(out), lse: read(lse), dq: read(dq), dk: read(dk), dv: read(dv) };
}

/**
 * Probabilities, their gradients and results are rounded to bf16: about 2e-3 in norm. Exact arithmetic that rounds these and
 * nothing else puts single elements of `out` up to 1.3e-2 off on these problems; of dv up to 2.03e-2, where 64 rounded
 * probabilities are multiplied by dout (dv[5883] of 2 heads of 8: 0.002288818359375 for 0.0085348, which is what an H100 gives,
 * bit by bit); of dq and dk, rotated or not, up to 4.5e-2, where dout v^T and delta, which knows `out` in bf16, nearly cancel
 * (tests/gpu/attention.cu). On top comes that a chip's exponential tips single roundings over. The bound for roundings that all
 * have the worst sign, 2^-9 sum p |dout|, would be 3.3e-1 for dv and let real mistakes pass.
 */
const GRADIENT = { element: 1e-1, norm: 1.2e-2 };
const TOLERANCES: Tolerances<Results> = {
  out: { element: 2e-2, norm: 6e-3 },
  lse: 2e-5,
  ...{ dq: GRADIENT, dk: GRADIENT, dv: { element: 2.5e-2, norm: 6e-3 } },
};

/** 8 keeps rows on the 16-byte grid, where Hopper's kernels take heads of 64 and 128; the others read element by element. */
const PADS = [8, 3];

function test(problems: readonly Problem[], { rotated = false } = {}): void {
  for (const problem of problems) {
    for (const pad of PADS) {
      const fixture = problem.expected && { fixture: { expected: problem.expected, tolerance: { element: 1e-1, norm: 2e-2 } } };
      const options = { archs: ["80"], ...fixture };
      compare(`${problem.name}, ${pad} apart`, (on) => pass(on, problem, { pad, rotated }), TOLERANCES, options);
    }
  }
}

gpuTest("attention agrees with autograd: 1 to 8 query heads a key head, heads of 2 to 80, right padding", () => {
  test(
    fixtureCases("attention").map((each) => {
      const cu = Array.from(each.i32("cu"));
      return {
        ...{ name: each.name, lengths: cu.slice(1).map((end, i) => end - cu[i]!), H: each.number("H"), K: each.number("K") },
        ...{
          kvLens: each.has("kv_lens") ? Array.from(each.i32("kv_lens")) : null,
          D: each.number("D"),
          scale: each.number("scale"),
        },
        ...{ q: each.f32("q"), k: each.f32("k"), v: each.f32("v"), dout: each.f32("dout") },
        expected: { out: each.f32("out"), lse: each.f32("lse"), dq: each.f32("dq"), dk: each.f32("dk"), dv: each.f32("dv") },
      };
    }),
  );
});

const LENGTHS = [37, 200, 1, 129, 64];

const problemsOf = (D: number) => [
  random(LENGTHS, 2, 2, D),
  random(LENGTHS, 6, 2, D),
  random([300, 0, 257], 8, 1, D),
  random([193], 1, 1, D),
  random(LENGTHS, 4, 2, D, [30, 100, 0, 129, 1]),
];

for (const D of [8, 64, 128]) gpuTest(`attention agrees with the CPU: heads of ${D}`, () => test(problemsOf(D)));

// 10: its halves of 5 columns are rotated one column at a time.
for (const D of [8, 10, 64, 80, 96, 128, 256]) {
  gpuTest(`attention rotates its gradients back as the CPU does: heads of ${D}`, () => test(problemsOf(D), { rotated: true }));
}
