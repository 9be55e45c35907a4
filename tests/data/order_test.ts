import { assert, assertEquals, assertNotEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { BatchCursor, type CursorOptions } from "../../lib/data/order.ts";

const options: CursorOptions = { samples: 10, batchSize: 4, order: "shuffled", seed: 1, stream: "train" };
const take = (cursor: BatchCursor, batches: number) => Array.from({ length: batches }, () => [...cursor.next()]);

Deno.test("next() gives every sample exactly once an epoch and never a short batch", () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 30 }), fc.integer({ min: 1, max: 12 }), fc.nat(99), (samples, batchSize, seed) => {
      const cursor = new BatchCursor({ ...options, samples, batchSize, seed });
      const batches = take(cursor, 3 * samples);
      assert(batches.every((batch) => batch.length === batchSize));
      const stream = batches.flat();
      for (let start = 0; start + samples <= stream.length; start += samples) {
        assertEquals(new Set(stream.slice(start, start + samples)).size, samples, `epoch ${start / samples}`);
      }
      assertEquals(cursor.state, { epoch: 3 * batchSize, position: 0 });
    }),
    { seed: 1, numRuns: 100 },
  );
});

Deno.test("next() follows the file when the order is sequential, and completes a batch from the next epoch", () => {
  const cursor = new BatchCursor({ ...options, samples: 5, order: "sequential" });
  assertEquals(take(cursor, 4), [[0, 1, 2, 3], [4, 0, 1, 2], [3, 4, 0, 1], [2, 3, 4, 0]]);
  assertEquals(cursor.state, { epoch: 3, position: 1 });
});

Deno.test("next() shuffles every epoch anew, by seed, epoch and stream", () => {
  const epochs = take(new BatchCursor({ ...options, samples: 20, batchSize: 20 }), 2);
  assertNotEquals(epochs[0], epochs[1]);
  assertEquals(take(new BatchCursor({ ...options, samples: 20, batchSize: 20 }), 2), epochs);
  for (const change of [{ seed: 2 }, { stream: "validation" }]) {
    assertNotEquals(take(new BatchCursor({ ...options, samples: 20, batchSize: 20, ...change }), 1)[0], epochs[0]);
  }
});

Deno.test("a cursor made from a state gives the batches that were still to come", () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 20 }), fc.integer({ min: 1, max: 7 }), fc.nat(12), (samples, batchSize, before) => {
      const cursor = new BatchCursor({ ...options, samples, batchSize });
      take(cursor, before);
      const { state } = cursor;
      const rest = take(cursor, 5);
      assertEquals(take(new BatchCursor({ ...options, samples, batchSize, state }), 5), rest);
    }),
    { seed: 2, numRuns: 100 },
  );
});

Deno.test("BatchCursor refuses sizes and states that cannot be", () => {
  assertThrows(() => new BatchCursor({ ...options, samples: 0 }), RangeError, "samples is 0");
  assertThrows(() => new BatchCursor({ ...options, batchSize: 0 }), RangeError, "batchSize is 0");
  assertThrows(() => new BatchCursor({ ...options, state: { epoch: 0, position: 10 } }), RangeError, "position 10: there are 10");
});
