/**
 * The head with its loss on the GPU against the CPU library and PyTorch. Apart from the other operators, as it calls cuBLAS: under
 * compute-sanitizer's racecheck such a test fails (run.sh).
 */
import { assertEquals } from "@std/assert";
import * as ops from "../../ffi/operators.ts";
import { fixtureCases, normals } from "../native/harness.ts";
import { compare, FROM_ROUNDED, gpuTest, ROUNDED, Subject } from "./subject.ts";

gpuTest("headCrossEntropy() gives losses, argmax and dx for any number of chunks", () => {
  const random = (R: number, d: number, V: number) => ({
    ...{ name: `[${V},${d}]`, R, d, V, x: normals(R * d, 1), W: normals(V * d, 2).map((w) => w / Math.sqrt(d)) },
    labels: Int32Array.from({ length: R }, (_, r) => (r * 104729 + V - 1) % V),
    ...{ seeds: Float32Array.from({ length: R }, (_, r) => 1 / (1 + r % 3)), expected: undefined },
  });
  const fixtures = fixtureCases("head").map((each) => ({
    ...{ name: each.name, R: each.number("R"), d: each.number("d"), V: each.number("V"), x: each.f32("x"), W: each.f32("W") },
    ...{ labels: each.i32("labels"), seeds: each.f32("seeds") },
    expected: { losses: each.f32("losses"), dx: each.f32("dx") },
  }));
  for (const problem of [...fixtures, random(23, 64, 5001), random(9, 32, 32000), random(40, 48, 260), random(3, 16, 50257)]) {
    const { name, R, d, V, expected } = problem;
    for (const rows of [1, 7, R].filter((rows, i, all) => rows <= R && all.indexOf(rows) === i)) {
      for (const pad of [2, 8]) {
        const work = (on: Subject) => {
          const common = {
            ...{ x: on.act(problem.x, R, d), W: on.weight(problem.W, V, d, d + pad), labels: on.ints(problem.labels) },
            ...{ seeds: on.f32(problem.seeds, 1, R), work: on.f32(null, 1, ops.headWorkBytes(on.dev, rows, V) / 4) },
          };
          const losses = on.f32(null, 1, R),
            alone = on.f32(null, 1, R),
            argmax = on.ints(new Int32Array(R).fill(-1)),
            dx = on.room(R, d);
          ops.headCrossEntropy(on.dev, R, { ...common, losses, argmax, dx });
          ops.headCrossEntropy(on.dev, R, { ...common, losses: alone, argmax: null, dx: null });
          assertEquals(on.read(alone), on.read(losses), "losses without a backward");
          return { losses: on.read(losses), argmax: on.readInts(argmax), dx: on.read(dx) };
        };
        const fixture = expected && { fixture: { expected, tolerance: FROM_ROUNDED } };
        const tolerances = { losses: 1e-4, argmax: 0, dx: ROUNDED };
        compare(`head ${name}, ${rows} rows a chunk`, work, tolerances, { archs: ["80"], ...fixture });
      }
    }
  }
});
