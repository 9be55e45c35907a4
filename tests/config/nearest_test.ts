import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { didYouMean, editDistance, nearest } from "../../lib/nearest.ts";

Deno.test("nearest() finds typing errors, other cases and dashes, and unfinished words, and offers nothing far-fetched", () => {
  const known = ["schedule", "warmup", "validation", "validation_split", "batch_size", "lr"];
  assertEquals(nearest("shedule", known), "schedule");
  assertEquals(nearest("warpum", known), "warmup");
  assertEquals(nearest("batchSize", known), "batch_size");
  assertEquals(nearest("batch-size", known), "batch_size");
  assertEquals(nearest("valid", known), "validation");
  assertEquals(nearest("lrr", known), "lr");
  assertEquals(nearest("momentum", known), undefined);
  assertEquals(didYouMean("x", known), "");
});

Deno.test("editDistance() is symmetric, zero only for equal texts, and one for a swap of neighbours (property)", () => {
  const word = fc.string({ maxLength: 8 });
  fc.assert(fc.property(word, word, (a, b) => {
    assertEquals(editDistance(a, b), editDistance(b, a));
    assertEquals(editDistance(a, b) === 0, a === b);
    assert(editDistance(a, b) <= Math.max(a.length, b.length));
    assert(editDistance(a, b) >= Math.abs(a.length - b.length));
  }));
  assertEquals(editDistance("steps", "setps"), 1);
});
