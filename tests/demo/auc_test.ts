import { assertEquals, assertThrows } from "@std/assert";
import { auc } from "../../lib/demo/auc.ts";
import { Rng } from "../../lib/data/random.ts";

Deno.test("auc() is 1 for scores that separate the classes and 0 for the reverse", () => {
  assertEquals(auc([0.1, 0.2, 0.7, 0.9], [false, false, true, true]), 1);
  assertEquals(auc([0.1, 0.2, 0.7, 0.9], [true, true, false, false]), 0);
});

Deno.test("auc() counts ties between the classes as half", () => {
  assertEquals(auc([3, 3, 3, 3], [true, false, true, false]), 0.5);
  // Pairs (positive, negative): (2,1) won, (2,2) tied, (3,1) won, (3,2) won -> 3.5 of 4.
  assertEquals(auc([1, 2, 2, 3], [false, false, true, true]), 0.875);
});

Deno.test("auc() equals the count over all pairs on random scores with many ties", () => {
  const rng = new Rng(7, "auc test");
  for (let round = 0; round < 50; round++) {
    const n = 2 + rng.below(40);
    const scores = Array.from({ length: n }, () => rng.below(10));
    const positive = Array.from({ length: n }, (_, i) => i === 0 ? true : i === 1 ? false : rng.below(3) === 0);
    let won = 0;
    let pairs = 0;
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < n; j++) {
        if (!positive[i] || positive[j]) continue;
        pairs++;
        won += scores[i]! > scores[j]! ? 1 : scores[i] === scores[j] ? 0.5 : 0;
      }
    }
    const difference = Math.abs(auc(scores, positive) - won / pairs);
    assertEquals(difference < 1e-12, true, `auc differs from the pair count by ${difference}`);
  }
});

Deno.test("auc() is NaN when a class is empty", () => {
  assertEquals(auc([1, 2], [true, true]), NaN);
  assertEquals(auc([], []), NaN);
});

Deno.test("auc() refuses different lengths and scores that are not finite", () => {
  assertThrows(() => auc([1, 2], [true]), RangeError, "2 scores for 1 labels");
  assertThrows(() => auc([1, NaN], [true, false]), RangeError, "score 1 is NaN");
});
