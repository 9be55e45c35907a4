/** Batches that cannot be right are skipped, told of, and end a run when there are too many in a row. */
import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { Native } from "../../ffi/native.ts";
import { loadConfig } from "../../lib/config/load.ts";
import { UserError } from "../../lib/errors.ts";
import type { RunEvent } from "../../lib/train/events.ts";
import { FaultWatch } from "../../lib/train/faults.ts";
import { RunFolder } from "../../lib/train/folder.ts";
import { train } from "../../lib/train/session.ts";
import { requireDiskRoom } from "../../lib/train/space.ts";
import { rows, type Workspace, workspace, writeTinyModel } from "../e2e/harness.ts";

Native.load("cpu"); // before any test, whose sanitizer would take the library for a leak

function run(space: Workspace, sets: readonly string[]): RunEvent[] {
  const { config } = loadConfig(space.file("run.yaml"), [`output=${space.file("out")}`, ...sets]);
  const events: RunEvent[] = [];
  using folder = RunFolder.open(config.output);
  folder.requireOwn(config.model);
  train(config, { device: { threads: 1 } }, (event) => events.push(event));
  return events;
}

const AT = "@".charCodeAt(0); // a token of its own: the tokenizer's tokens are bytes

/** A model whose embedding of the character "@" is no number: only samples with it have a loss that is none. */
function withOddCharacter(): Workspace {
  const space = workspace();
  writeTinyModel(space.file("model"), {
    untied: true,
    change: (tensors) => {
      const head = tensors.get("lm_head.weight")!, embedding = tensors.get("model.embed_tokens.weight")!;
      head.values = embedding.values.slice(); // they share their numbers until now
      embedding.values.fill(NaN, 32 * AT, 32 * (AT + 1));
    },
  });
  return space;
}

for (const method of ["none", "mix", "meta-lora"]) {
  Deno.test(`a batch whose loss is no number is skipped, told of with its samples, and the adapter stays finite: ${method}`, () => {
    using space = withOddCharacter();
    space.write("train.jsonl", rows(0, 20).map((row, i) => i === 6 ? { ...row, prompt: "@" } : row));
    const events = run(space, [`reweight.method=${method}`, "train.steps=20"]);
    const skipped = events.flatMap((event) => event.type === "stepped" && event.fault !== null ? [event] : []);
    assert(skipped.length >= 2, "one in every pass over the data");
    for (const event of skipped) {
      assertEquals([event.kind, event.skipped, event.gradNorm], ["train", true, null]);
      assertEquals(event.fault, "the loss of the training sample row-6 is NaN");
      assert(event.samples.some(({ id }) => id === "row-6"));
    }
    const lines = space.jsonl("out/metrics.jsonl").filter(({ fault }) => fault !== undefined);
    assertEquals(lines.map(({ loss, samples, skipped }) => [loss, samples.length, skipped]), skipped.map(() => [null, 4, true]));
    assertEquals(lines.map(({ samples }) => samples), skipped.map(({ samples }) => samples.map(({ id }) => id)));
    const notes = events.flatMap((event) => event.type === "note" ? [event.text] : []);
    assertEquals(notes.length, skipped.length);
    assertMatch(notes[0]!, /^step \d+: skipped a batch \((row-\d+, ){3}row-\d+\): the loss of the training sample row-6 is NaN$/);
    // It took every step that it was to take, with the other batches, and never learned from the sample.
    const weights = space.jsonl("out/weights.jsonl");
    assertEquals([weights[6].seen, weights[6].loss], [0, null]);
    assert(space.exists("out/adapter"));
  });
}

Deno.test("a validation batch whose loss is no number leaves the validation gradient as it was", () => {
  using space = withOddCharacter();
  space.write("validation.jsonl", rows(100, 6).map((row, i) => i === 1 ? { ...row, prompt: "@" } : row));
  const sets = [
    "reweight={ method: meta-lora, validation: { batch_size: 2, every: 1 } }",
    "data.shuffle=false",
    "train.steps=16",
  ];
  const events = run(space, sets);
  const validation = events.flatMap((event) => event.type === "stepped" && event.kind === "validation" ? [event] : []);
  const faulty = validation.filter(({ fault }) => fault !== null);
  assert(faulty.length > 0 && faulty.length < validation.length);
  for (const { fault } of faulty) assertEquals(fault, "the loss of the validation sample row-101 is NaN");
  const weighted = events.flatMap((event) => event.type === "stepped" && event.kind === "train" ? [event] : []);
  assert(weighted.every(({ samples }) => samples.every(({ similarity }) => Number.isFinite(similarity))));
});

Deno.test("too many faulty batches in a row end the run, name the first, and no adapter is published", () => {
  using space = withOddCharacter();
  space.write("train.jsonl", rows(0, 20).map((row, i) => i >= 8 ? { ...row, prompt: `@ ${i}` } : row));
  const sets = ["data.shuffle=false", "train.steps=20", "faults.give_up=3", "checkpoints={ every: 1, keep: 1 }"];
  const error = assertThrows(() => run(space, sets), UserError);
  assertEquals(error.exitCode, 1);
  assertEquals(
    error.message,
    "Cannot continue at step 3: the loss of the training sample row-8 is NaN. Lower optimizer.lr (now 0.01) or check that " +
      "sample and the model's weights; 3 batches in a row could not be used (faults.give_up)",
  );
  assert(!space.exists("out/adapter"));
  assertEquals(space.checkpoints("out"), ["step-2"]);
  const lines = Deno.readTextFileSync(space.file("out/metrics.jsonl")).trim().split("\n").map((line) => JSON.parse(line));
  const faulty = lines.filter(({ fault }) => fault !== undefined);
  assertEquals(
    faulty.map(({ samples }) => samples.length),
    [4, 4, 4],
    "every batch that could not be used is logged, the last too",
  );
});

Deno.test("an adapter that is no number is neither saved nor published", () => {
  using space = workspace();
  // The first step throws the adapter out of what f32 holds; the second one is never made.
  for (const more of [[], ["checkpoints.every=1"]]) {
    const sets = ["optimizer={ lr: 1e39, schedule: constant, clip: 0 }", "train.steps=1", ...more];
    assertThrows(
      () => run(space, sets),
      UserError,
      "Cannot save the adapter of step 1: some of its numbers are NaN or infinite.",
    );
    assert(!space.exists("out/adapter"));
    assertEquals(space.checkpoints("out"), []);
    assertEquals(space.tree("out").filter((path) => path.startsWith(".")), []);
  }
});

Deno.test("a loss far above those before it is a spike, unless spikes are not looked for", () => {
  const losses = Array.from({ length: 30 }, (_, i) => 2 + 0.2 * Math.sin(i));
  const watch = (spike: number) => {
    const all = new FaultWatch({ spike, giveUp: 3 });
    for (const loss of losses) all.sound(loss);
    return all;
  };
  const ten = watch(10);
  assertEquals(ten.spike(6.5), null); // 10 · max(σ, 0.5) above the mean of 2
  assertMatch(ten.spike(7.5)!, /^the loss of the training batch is 7\.5000, far above the 2\.0\d+ of the batches before it$/);
  assertEquals(watch(0).spike(1e9), null);
  const fresh = new FaultWatch({ spike: 10, giveUp: 3 });
  for (const loss of losses.slice(0, 19)) fresh.sound(loss);
  assertEquals(fresh.spike(1e9), null); // too few to know what is usual
  // In a row, until a sound one comes between; and it can be continued.
  assertEquals([ten.faulty("a"), ten.faulty("b")], [null, null]);
  const again = new FaultWatch({ spike: 10, giveUp: 3 });
  again.restore(JSON.parse(JSON.stringify(ten.state)));
  assertEquals([again.faulty("c"), again.spike(7.5) !== null], ["a", true]);
  again.sound(2);
  assertEquals(again.faulty("d"), null);
});

Deno.test("a spike is skipped in a run, and the run goes on", () => {
  using space = workspace();
  writeTinyModel(space.file("model"), {
    untied: true,
    change: (tensors) => {
      // Behind an "@" the model is sure of the token 0.
      const head = tensors.get("lm_head.weight")!, embedding = tensors.get("model.embed_tokens.weight")!;
      head.values = embedding.values.slice();
      head.values.fill(1, 0, 32);
      embedding.values.fill(100, 32 * AT, 32 * (AT + 1));
    },
  });
  // Rows in file order: the odd one comes after 25 batches.
  space.write("train.jsonl", rows(1000, 108).map((row, i) => i === 102 ? { ...row, completion: "@@@@" } : row));
  const sets = ["data.shuffle=false", "train.steps=26", "faults.spike=3", "optimizer.lr=1e-4"];
  const events = run(space, sets);
  const faults = events.flatMap((event) => event.type === "stepped" && event.fault !== null ? [event] : []);
  assertEquals(faults.length, 1);
  assertMatch(faults[0]!.fault!, /far above/);
  assert(faults[0]!.samples.some(({ id }) => id === "row-1102"));
});

Deno.test("what does not fit on the disk is refused with both sizes, before it is written", () => {
  requireDiskRoom(".", 1000, "save the checkpoint of step 5", 1000);
  requireDiskRoom(".", 1e15, "save the checkpoint of step 5", null);
  const error = assertThrows(() => requireDiskRoom("runs/a", 3 * 2 ** 30, "save the checkpoint of step 5", 2 ** 20), UserError);
  assertEquals(
    error.message,
    "Cannot save the checkpoint of step 5: it takes 3.00 GiB, and the disk of runs/a has 1.0 MiB left. " +
      "Free some space, or choose another output",
  );
  assertThrows(() => requireDiskRoom(".", 2 ** 70, "train"), UserError, "Cannot train: it takes ");
  const small: [bytes: number, free: number, says: string][] = [
    [100_000, 50_000, "it takes 97 KiB, and the disk of . has 48 KiB left"],
    [100_000, 0, "it takes 97 KiB, and the disk of . has 0 bytes left"],
    [100_000, 99_999, "it takes 100,000 bytes, and the disk of . has 99,999 bytes left"],
    [2 ** 40 + 1, 2 ** 40, "it takes 1,099,511,627,777 bytes, and the disk of . has 1,099,511,627,776 bytes left"],
  ];
  for (const [bytes, free, says] of small) {
    assertThrows(() => requireDiskRoom(".", bytes, "train", free), UserError, `Cannot train: ${says}. Free some space`);
  }
});
