import { assert, assertEquals, assertNotEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import type { Dataset, Sample } from "../../lib/data/dataset.ts";
import { contentKey, separate, splitDataset } from "../../lib/data/overlap.ts";
import { UserError } from "../../lib/errors.ts";

function sample(id: string, prompt: string, response = "r"): Sample {
  const truncated = prompt === "b" || prompt === "d";
  return { id, line: 1, prompt, response, ids: Int32Array.of(1, 2), labels: Int32Array.of(-100, 2), source: null, truncated };
}

function dataset(path: string, prompts: string[]): Dataset {
  const samples = prompts.map((prompt, i) => sample(`${path}:${i}`, prompt));
  return { path, samples, sha256: "", dropped: [{ reason: "empty response", count: 1 }], truncated: 2 };
}

const ids = ({ samples }: Dataset) => samples.map(({ id }) => id);

Deno.test("contentKey() ignores case, spacing and Unicode form, and nothing else", () => {
  const key = (prompt: string, response: string) => contentKey({ prompt, response });
  assertEquals(key(" What  is\n2+2? ", "Four"), key("what is 2+2?", "four\n"));
  assertEquals(key("caf\u00e9", "x"), key("cafe\u0301", "x"));
  assertNotEquals(key("what is 2+2?", "four"), key("what is 2+3?", "four"));
  assertNotEquals(key("ab", "c"), key("a", "bc"));
});

Deno.test("separate() refuses samples in both, with their number and the first ids", () => {
  const train = dataset("train.jsonl", ["a", "b", "c", "d", "e"]);
  const validation = dataset("valid.jsonl", ["X", "B", " c ", "d", "e"]);
  const run = (on: "error" | "drop" | "allow") => separate(train, validation, { on, names: ["training", "validation"] });
  const error = assertThrows(() => run("error"), UserError) as UserError;
  assertEquals(error.exitCode, 2);
  assertEquals(
    error.message,
    "Cannot use train.jsonl as training data: 4 of its 5 samples are in the validation data valid.jsonl, too " +
      "(train.jsonl:1, train.jsonl:2, train.jsonl:3, …). Remove them, or set data.on_overlap to drop (leaves them out) or allow",
  );
  assertEquals([ids(run("drop")), run("drop").truncated], [["train.jsonl:0"], 0]);
  assertEquals(run("drop").dropped, [{ reason: "empty response", count: 1 }, {
    reason: "also in the validation data",
    count: 4,
  }]);
  assert(run("allow") === train);
  assert(separate(train, dataset("v", ["x"]), { on: "error", names: ["training", "validation"] }) === train);
  const all = () => separate(validation, validation, { on: "drop", names: ["training", "validation"] });
  assertThrows(all, UserError, "Nothing would be left");
});

Deno.test("splitDataset() keeps every sample once, equal samples together, both parts in file order", () => {
  const prompts = fc.array(fc.constantFrom(..."abcdefghij"), { minLength: 2, maxLength: 40 }).filter((list) =>
    new Set(list).size > 1
  );
  fc.assert(
    fc.property(prompts, fc.double({ min: 0.05, max: 0.9, noNaN: true }), fc.nat(50), (list, share, seed) => {
      const whole = dataset("t", list);
      let parts: ReturnType<typeof splitDataset>;
      try {
        parts = splitDataset(whole, share, seed);
      } catch (error) {
        // Only where no group of equal samples is small enough, or all of them are wanted.
        assert(error instanceof UserError);
        return;
      }
      const { train, validation } = parts;
      const place = (id: string) => Number(id.split(":")[1]);
      for (const part of [train, validation]) assertEquals(ids(part), ids(part).sort((a, b) => place(a) - place(b)));
      assertEquals([...ids(train), ...ids(validation)].sort(), ids(whole).sort());
      assert(separate(train, validation, { on: "error", names: ["training", "validation"] }) === train);
      assertEquals(splitDataset(whole, share, seed), parts);
    }),
    { seed: 1, numRuns: 200 },
  );
});

Deno.test("splitDataset() takes a share below 1 and a number from 1, and draws by the seed", () => {
  const whole = dataset("t", Array.from({ length: 100 }, (_, i) => `p${i}`));
  assertEquals(splitDataset(whole, 0.1, 0).validation.samples.length, 10);
  assertEquals(splitDataset(whole, 32, 0).validation.samples.length, 32);
  assertEquals(splitDataset(whole, 0.001, 0).validation.samples.length, 1);
  assertNotEquals(ids(splitDataset(whole, 10, 0).validation), ids(splitDataset(whole, 10, 1).validation));
  assertThrows(() => splitDataset(whole, 100, 0), UserError, "it has 100 samples, 100 of them different");
  assertThrows(() => splitDataset(dataset("t", ["a", "a"]), 1, 0), UserError, "2 samples, 1 of them different");
});
