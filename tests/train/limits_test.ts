import { assert } from "@std/assert";
import fc from "fast-check";
import { BatchCursor } from "../../lib/data/order.ts";
import { labelledTokens, type Tokens } from "../../lib/train/batch.ts";
import { fitsOnePass, limitsFor, microBatches } from "../../lib/train/engine.ts";

/** A sample of `length` tokens, the last `labelled` of them labelled. */
function sampleOf(length: number, labelled: number): Tokens {
  const ids = new Int32Array(length).fill(3);
  const labels = new Int32Array(length).fill(-100).fill(3, length - labelled);
  return { ids, labels };
}

const samples = fc.array(fc.tuple(fc.integer({ min: 2, max: 90 }), fc.integer({ min: 1, max: 20 })), {
  minLength: 1,
  maxLength: 12,
})
  .map((sizes) => sizes.map(([length, labelled]) => sampleOf(length, Math.min(length - 1, labelled))));

Deno.test("limitsFor() holds every batch of a BatchCursor, also those that the end of an epoch falls into", () => {
  fc.assert(
    fc.property(
      samples,
      fc.integer({ min: 1, max: 17 }),
      fc.integer({ min: 0, max: 1000 }),
      fc.boolean(),
      (training, batchSize, seed, padded) => {
        const limits = limitsFor(training, [], { batchSize, padded });
        const cursor = new BatchCursor({ samples: training.length, batchSize, order: "shuffled", seed, stream: "train" });
        for (let i = 0; i < 20; i++) {
          const batch = Array.from(cursor.next(), (index) => training[index]!);
          const longest = Math.max(...batch.map(({ ids }) => ids.length));
          const tokens = padded ? longest * batch.length : batch.reduce((sum, { ids }) => sum + ids.length, 0);
          const rows = batch.reduce((sum, sample) => sum + labelledTokens(sample), 0);
          assert(
            tokens <= limits.tokens && rows <= limits.rows && batch.length <= limits.segments && longest <= limits.positions,
          );
        }
      },
    ),
  );
});

Deno.test("microBatches() keeps the order, loses nothing and respects the limits", () => {
  fc.assert(
    fc.property(samples, samples, fc.integer({ min: 1, max: 9 }), (training, others, batchSize) => {
      const limits = limitsFor(training, others, { batchSize, padded: false });
      const seen: Tokens[] = [];
      for (const { first, part } of microBatches(others, limits)) {
        assert(first === seen.length && part.length > 0 && part.length <= limits.segments);
        assert(part.reduce((sum, { ids }) => sum + ids.length, 0) <= limits.tokens);
        assert(part.reduce((sum, sample) => sum + labelledTokens(sample), 0) <= limits.rows);
        seen.push(...part);
      }
      assert(seen.length === others.length && seen.every((sample, i) => sample === others[i]));
    }),
  );
});

Deno.test("fitsOnePass() is true of samples of which no batch is split, and only where the limits hold the largest", () => {
  let once = 0;
  const property = fc.property(samples, samples, fc.integer({ min: 1, max: 9 }), fc.integer({ min: 1, max: 9 }), fc.boolean(), (
    training,
    others,
    batchSize,
    size,
    padded,
  ) => {
    const limits = limitsFor(training, others, { batchSize, padded });
    const fits = fitsOnePass(others, limits, { batchSize: size, padded });
    const cursor = new BatchCursor({ samples: others.length, batchSize: size, order: "shuffled", seed: 1, stream: "validation" });
    const padding = padded ? { id: 0 } : null;
    for (let i = 0; fits && i < 20; i++) {
      const batch = Array.from(cursor.next(), (index) => others[index]!);
      assert([...microBatches(batch, limits, padding)].length === 1);
    }
    if (fits) once++;
    else assert(size > 1, "one sample always does");
  });
  fc.assert(property, { numRuns: 500 });
  assert(once > 50, `${once} of 500`);
});
