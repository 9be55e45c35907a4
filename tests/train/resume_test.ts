/** N + M steps equal N, stop, resume, M, bit for bit; and what --resume refuses, passes over and repairs. */
import { assert, assertEquals, assertMatch, assertStringIncludes, assertThrows } from "@std/assert";
import fc from "fast-check";
import { Native } from "../../ffi/native.ts";
import { loadConfig } from "../../lib/config/load.ts";
import { UserError } from "../../lib/errors.ts";
import { requireKnownKeys } from "../../lib/train/changes.ts";
import type { Ending, RunEvent } from "../../lib/train/events.ts";
import { RunFolder } from "../../lib/train/folder.ts";
import { Interrupted, StopFlag } from "../../lib/train/interrupt.ts";
import { type RunOptions, train } from "../../lib/train/session.ts";
import { rows, type Workspace, workspace, writeTinyModel } from "../e2e/harness.ts";

Native.load("cpu"); // before any test, whose sanitizer would take the library for a leak

/** A signal that arrives just before the `at`-th micro-batch or the end of a step, whichever is looked at then. */
class StopAt extends StopFlag {
  #left: number;

  constructor(at: number) {
    super();
    this.#left = at;
  }

  override check(): void {
    if (--this.#left === 0) throw new Interrupted();
  }
}

interface Run {
  ending: Ending;
  events: RunEvent[];
  notes: string[];
}

function run(
  space: Workspace,
  output: string,
  sets: readonly string[],
  { stop = new StopFlag(), ...options }: RunOptions & { stop?: StopFlag } = {},
): Run {
  const { config } = loadConfig(space.file("run.yaml"), [`output=${space.file(output)}`, ...sets]);
  const events: RunEvent[] = [];
  using folder = RunFolder.open(config.output);
  folder.requireOwn(config.model);
  const ending = train(config, { device: { threads: 1 }, ...options }, (event) => events.push(event), stop);
  return { ending, events, notes: events.flatMap((event) => event.type === "note" ? [event.text] : []) };
}

/** Everything that a run says about itself but for times and memory. */
function outcome(space: Workspace, output: string) {
  const metrics = space.jsonl(output, "metrics.jsonl")
    .map(({ seconds: _, tokens_per_second: __, memory_bytes: ___, ...line }) => line);
  const adapter = Deno.readFileSync(space.file(output, "adapter", "adapter_model.safetensors")).toHex();
  return { adapter, metrics, weights: space.read(output, "weights.jsonl") };
}

/** A workspace whose model has room for the reference preset's template, and whose rows are half wrong. */
function noisy(): Workspace {
  const space = workspace();
  writeTinyModel(space.file("model"), { maxPositions: 512 });
  space.write("train.jsonl", rows(0, 18).map((row, i) => i % 2 ? { ...row, completion: " 9Z#9Z#9Z" } : row));
  return space;
}

const guided = (...more: string[]) => ["reweight.method=meta-lora", ...more];
const VARIANTS: Record<string, string[]> = {
  "none": ["reweight.method=none"],
  "none, accumulating": ["train.accumulate=2", "train.batch_size=3"],
  "mix": ["reweight.method=mix"],
  "exact": guided(),
  "exact, accumulating": guided("train.accumulate=2", "train.batch_size=3"),
  "exact-adam": guided("reweight.similarity=exact-adam"),
  "core": guided("reweight.similarity=core"),
  "pooled": guided("reweight.similarity=pooled"),
  "clip, not trained on validation": guided("reweight.weights=clip", "reweight.validation.train_on=false"),
  "preset paper": ["reweight={ preset: paper, validation: { every: 2 } }"],
  "preset reference": ["reweight={ preset: reference, validation: { every: 2 } }"],
};

for (const [name, sets] of Object.entries(VARIANTS)) {
  Deno.test(`a run that is stopped anywhere and resumed makes the same bits as one that is not: ${name} (property)`, () => {
    using space = noisy();
    const all = ["train.steps=11", "train.eval_every=4", "checkpoints={ every: 3, keep: 2 }", ...sets];
    assertEquals(run(space, "whole", all).ending.kind, "complete");
    const expected = outcome(space, "whole");
    let n = 0, stops = 0, resumed = 0;
    const places = fc.array(fc.integer({ min: 1, max: 24 }), { minLength: 1, maxLength: 4 });
    fc.assert(
      fc.property(places, (at) => {
        const output = `parts-${n++}`;
        let { ending } = run(space, output, all, { stop: new StopAt(at[0]!) });
        for (const next of [...at.slice(1), Infinity]) {
          if (ending.kind === "complete") break;
          assert(ending.kind === "stopped");
          stops++;
          assertEquals(ending.checkpoint === null, ending.step === 0);
          const again = run(space, output, all, { resume: true, stop: new StopAt(next) });
          const started = again.events.find((event) => event.type === "started")!;
          assertEquals(started.resumedAt, ending.step);
          if (ending.step > 0) resumed++;
          ending = again.ending;
        }
        assertEquals(ending.kind, "complete");
        assertEquals(outcome(space, output), expected);
        Deno.removeSync(space.file(output), { recursive: true });
      }),
      { numRuns: 5, seed: 7 },
    );
    assert(stops >= 5 && resumed >= 3, `${stops} stops, ${resumed} of them with a checkpoint`);
  });
}

const SHORT = guided("train.steps=9", "checkpoints={ every: 2, keep: 3 }");

/** A run stopped behind the step 7, with checkpoints of the steps 4, 6 and 7. */
function stopped(space: Workspace, sets: readonly string[] = SHORT): void {
  const { ending } = run(space, "out", sets, { stop: new StopAt(15) });
  assertEquals(ending, { kind: "stopped", step: 7, checkpoint: space.file("out/checkpoints/step-7") });
  assertEquals(space.checkpoints("out").sort(), ["step-4", "step-6", "step-7"]);
}

const DAMAGES: Record<string, [what: string, damage: (space: Workspace, folder: string) => void]> = {
  "a file that was cut": ["optimizer.safetensors has 100 bytes instead of", (space, folder) => {
    Deno.truncateSync(space.file(folder, "optimizer.safetensors"), 100);
  }],
  "a byte that changed": ["reweighting.safetensors is not what was written", (space, folder) => {
    const path = space.file(folder, "reweighting.safetensors");
    const bytes = Deno.readFileSync(path);
    bytes[bytes.length - 1]! ^= 1;
    Deno.writeFileSync(path, bytes);
  }],
  "a file that is gone": ["adapter/adapter_model.safetensors is missing", (space, folder) => {
    Deno.removeSync(space.file(folder, "adapter/adapter_model.safetensors"));
  }],
  "a manifest that is gone": ["manifest.json is missing or no JSON", (space, folder) => {
    Deno.removeSync(space.file(folder, "manifest.json"));
  }],
  "an empty folder": ["manifest.json is missing or no JSON", (space, folder) => {
    Deno.removeSync(space.file(folder), { recursive: true });
    Deno.mkdirSync(space.file(folder));
  }],
};

for (const [name, [what, damage]] of Object.entries(DAMAGES)) {
  Deno.test(`a damaged checkpoint is passed over with one line, and the one before it leads to the same bits: ${name}`, () => {
    using space = noisy();
    run(space, "whole", SHORT);
    stopped(space);
    damage(space, "out/checkpoints/step-7");
    const { ending, notes } = run(space, "out", SHORT, { resume: true });
    assertEquals(ending.kind, "complete");
    assertEquals(notes.length, 1);
    assert(notes[0]!.startsWith(`passing over the checkpoint of step 7: ${what}`), notes[0]);
    assert(notes[0]!.endsWith("; continuing from step 6"), notes[0]);
    assertEquals(outcome(space, "out"), outcome(space, "whole"));
  });
}

Deno.test("where every checkpoint is damaged, or there is none, a resumed run starts from the beginning and says so", () => {
  using space = noisy();
  run(space, "whole", SHORT);
  stopped(space);
  for (const name of space.checkpoints("out")) DAMAGES["a byte that changed"]![1](space, `out/checkpoints/${name}`);
  const all = run(space, "out", SHORT, { resume: true });
  assertEquals(all.notes.length, 3);
  assert(all.notes.every((note) => note.endsWith("; starting from the beginning")), all.notes.join());
  const none = run(space, "none", SHORT, { resume: true });
  assertEquals(none.notes, [`nothing to resume in ${space.file("none")}: starting from the beginning`]);
  for (const output of ["out", "none"]) assertEquals(outcome(space, output), outcome(space, "whole"));
});

Deno.test("a run that was killed behind its last step, before the adapter stood there, evaluates again and tells it once", () => {
  using space = noisy();
  const sets = guided("train.steps=8", "checkpoints={ every: 4, keep: 1 }");
  run(space, "out", sets);
  const expected = outcome(space, "out");
  Deno.removeSync(space.file("out/adapter"), { recursive: true });
  assertEquals(run(space, "out", sets, { resume: true }).ending.kind, "complete");
  assertEquals(outcome(space, "out"), expected);
});

Deno.test("a complete run whose adapter is damaged writes it again from its newest checkpoint, or says that it has none", () => {
  using space = noisy();
  run(space, "out", SHORT);
  const expected = outcome(space, "out"), adapter = space.file("out/adapter");
  const damages: [what: string, damage: () => void][] = [
    ["adapter_config.json", () => Deno.removeSync(`${adapter}/adapter_config.json`)],
    ["adapter_config.json", () => Deno.truncateSync(`${adapter}/adapter_config.json`, 20)],
    ["adapter_model.safetensors", () => Deno.removeSync(`${adapter}/adapter_model.safetensors`)],
    ["adapter_model.safetensors", () => Deno.truncateSync(`${adapter}/adapter_model.safetensors`, 2000)],
  ];
  for (const [name, damage] of damages) {
    damage();
    const { ending, notes } = run(space, "out", SHORT, { resume: true });
    assertEquals(ending.kind, "complete");
    assertEquals(notes, [`passing over ${adapter}: ${name} is missing or damaged; continuing from step 8`]);
    assertEquals([outcome(space, "out"), space.exists("out/previous")], [expected, false]);
  }
  for (const [name, damage] of damages) {
    const bare = [...SHORT, "checkpoints.every=0"];
    run(space, "out", bare);
    damage();
    const before = space.tree("out");
    const error = assertThrows(() => run(space, "out", bare, { resume: true }), UserError);
    const what = `adapter/${name} is missing or damaged, and there is no whole checkpoint to write it again from`;
    const advice = "Restore that file, or train without --resume to make the run anew";
    assertEquals([error.message, error.exitCode], [`Cannot resume ${space.file("out")}: ${what}. ${advice}`, 1]);
    assertEquals(space.tree("out"), before);
  }
});

Deno.test("a run that begins anew keeps the checkpoints of one whose adapter is damaged until it is complete", () => {
  using space = noisy();
  run(space, "out", SHORT);
  Deno.truncateSync(space.file("out/adapter/adapter_model.safetensors"), 100);
  const { ending, notes } = run(space, "out", SHORT, { stop: new StopAt(2) });
  assertEquals([ending.kind, notes.length], ["stopped", 1]);
  assertStringIncludes(notes[0]!, "saved at step 8; --resume goes on with it");
  assertEquals(space.checkpoints("out/previous").sort(), ["step-4", "step-6", "step-8"]);
});

Deno.test("a complete run is not resumed, and nothing in it changes", () => {
  using space = noisy();
  run(space, "out", SHORT);
  const before = space.tree("out"), report = space.read("out/report.html");
  const { ending, events } = run(space, "out", SHORT, { resume: true });
  assertEquals([ending.kind, events], ["was complete", []]);
  assertEquals([space.tree("out"), space.read("out/report.html")], [before, report]);
});

Deno.test("a complete run tells again what it amounts to, from its metrics", () => {
  using space = noisy();
  stopped(space);
  const first = run(space, "out", SHORT, { resume: true }).ending;
  const again = run(space, "out", SHORT, { resume: true }).ending;
  assert(first.kind === "complete" && again.kind === "was complete");
  const { seconds, tokens_per_second, peak_memory_bytes, ...rest } = again.result;
  const { seconds: _, tokens_per_second: __, peak_memory_bytes: ___, ...expected } = first.result;
  assertEquals(rest, expected);
  assertEquals([seconds > 0, tokens_per_second > 0, peak_memory_bytes > 0], [true, true, true]);
  assert(first.result.tokens_per_second * first.result.seconds - tokens_per_second * seconds < 1e-6, "other tokens");
  Deno.removeSync(space.file("out/metrics.jsonl"));
  const blind = run(space, "out", SHORT, { resume: true }).ending;
  assert(blind.kind === "was complete");
  const { output, steps } = JSON.parse(JSON.stringify(blind.result));
  assertEquals([output, steps], [space.file("out"), null]);
});

Deno.test("of validation data that is split off, the training file is what changed", () => {
  using space = noisy();
  const sets = [...SHORT, "data.validation=null", "data.validation_split=4"];
  run(space, "out", sets);
  const path = space.file("train.jsonl");
  Deno.writeTextFileSync(path, Deno.readTextFileSync(path).split("\n").slice(1).join("\n"));
  const { message } = assertThrows(() => run(space, "out", sets, { resume: true }), UserError, "data.train.path: content ");
  assertEquals(message.includes("data.validation.path"), false, message);
});

Deno.test("a changed configuration is refused with every change, and goes on where each is allowed", () => {
  using space = noisy();
  stopped(space);
  const before = space.tree("out");
  const changed = ["optimizer.lr=0.02", "train.steps=12", "reweight.validation.ema=0.5"];
  const refused = (allowChange: string[]) => {
    const error = assertThrows(
      () => run(space, "out", [...SHORT, ...changed], { resume: true, allowChange }),
      UserError,
      "its configuration has changed: ",
    );
    assertEquals(error.exitCode, 2);
    assertEquals(space.tree("out"), before);
    return error.message.split("its configuration has changed: ")[1];
  };
  assertEquals(
    refused([]),
    "optimizer.lr: 0.01 -> 0.02; train.steps: 9 -> 12; reweight.validation.ema: 0.8 -> 0.5. Set it back, or allow it: " +
      "--allow-change optimizer.lr --allow-change train.steps --allow-change reweight.validation.ema",
  );
  assertMatch(refused(["optimizer", "train.steps"])!, /^reweight\.validation\.ema: 0\.8 -> 0\.5\. Set it back/);
  const allowChange = ["optimizer", "train.steps", "reweight"];
  const { ending } = run(space, "out", [...SHORT, ...changed], { resume: true, allowChange });
  assert(ending.kind === "complete" && ending.result.steps === 12);
});

Deno.test("a complete run without checkpoints is not taken for one of other data", () => {
  using space = noisy();
  const sets = [...SHORT, "checkpoints.every=0"];
  run(space, "out", sets);
  assertEquals(run(space, "out", sets, { resume: true }).ending.kind, "was complete");
  const path = space.file("train.jsonl");
  Deno.writeTextFileSync(path, Deno.readTextFileSync(path).split("\n").slice(1).join("\n"));
  assertThrows(() => run(space, "out", sets, { resume: true }), UserError, "data.train");
});

Deno.test("a complete run goes on when its length may have changed: N + M steps at a constant rate equal N, then M", () => {
  using space = noisy();
  const constant = [...SHORT, "optimizer.schedule=constant"];
  run(space, "whole", [...constant, "train.steps=14"]);
  run(space, "out", [...constant, "train.steps=8"]);
  const longer = { resume: true, allowChange: ["train.steps"] };
  const { ending } = run(space, "out", [...constant, "train.steps=14"], longer);
  assertEquals(ending.kind, "complete");
  const { adapter, weights } = outcome(space, "out"), expected = outcome(space, "whole");
  assertEquals([adapter, weights], [expected.adapter, expected.weights]);
  assert(!space.exists("out/previous"));
});

Deno.test("what changes no bit may differ without being allowed: what is computed again, where Adam's moments lie", () => {
  using space = noisy();
  stopped(space);
  run(space, "whole", SHORT);
  const changed = ["train.recompute=qkv", "train.memory=9 GiB", "optimizer.placement=host"];
  assertEquals(run(space, "out", [...SHORT, ...changed], { resume: true }).ending.kind, "complete");
  assertEquals(outcome(space, "out"), outcome(space, "whole"));
});

Deno.test("batches of another size that fill an epoch fill it from the resumed one on, too", () => {
  using space = noisy(); // 18 samples
  const { ending } = run(space, "out", [...SHORT, "train.batch_size=5", "checkpoints.every=1", "train.steps=1"]);
  assertEquals(ending.kind, "complete");
  const changed = ["train.batch_size=6", "checkpoints={ every: 1, keep: 9 }", "train.steps=5"];
  const allowChange = ["train", "checkpoints", "optimizer", "reweight"];
  assertEquals(run(space, "out", [...SHORT, ...changed], { resume: true, allowChange }).ending.kind, "complete");
  const positions = space.checkpoints("out").map((name) =>
    JSON.parse(space.read("out", "checkpoints", name, "state.json")).train_order.position
  );
  assertEquals(positions.map((position) => position % 6), positions.map(() => 0), `positions ${positions}`);
});

Deno.test("data and models whose content changed are refused, those that only moved are not", () => {
  using space = noisy();
  stopped(space);
  Deno.renameSync(space.file("train.jsonl"), space.file("moved.jsonl"));
  Deno.renameSync(space.file("model"), space.file("base"));
  const moved = [...SHORT, `data.train.path=${space.file("moved.jsonl")}`, `model=${space.file("base")}`];
  assertEquals(run(space, "out", moved, { resume: true, stop: new StopAt(2) }).ending.kind, "stopped");
  space.write("moved.jsonl", rows(0, 12));
  const refused = (pattern: RegExp) => {
    const error = assertThrows(() => run(space, "out", moved, { resume: true }), UserError);
    assertEquals(error.exitCode, 2);
    assertMatch(error.message, pattern);
  };
  refused(/has changed: data\.train\.path: content [0-9a-f]{8} -> content [0-9a-f]{8}\. /);
  writeTinyModel(space.file("base"), { maxPositions: 512, change: (tensors) => tensors.get("model.norm.weight")!.values[0] = 2 });
  refused(/has changed: model: content [0-9a-f]{8} -> content [0-9a-f]{8}; data\.train\.path: /);
  const { ending, notes } = run(space, "out", moved, { resume: true, allowChange: ["data", "model"] });
  assertEquals(ending.kind, "complete");
  assertEquals(notes, ["the training data is another: what is known of its samples starts anew"]);
});

Deno.test("what decides the sizes of a state cannot be allowed to change, and only keys that exist can be allowed", () => {
  using space = noisy();
  stopped(space);
  const rank = [...SHORT, "adapter.rank=8"];
  assertThrows(
    () => run(space, "out", rank, { resume: true, allowChange: ["adapter"] }),
    UserError,
    "does not fit any more: adapter.rank: 4 -> 8. Set it back, or train without --resume",
  );
  assertThrows(
    () => requireKnownKeys(["train.step"]),
    UserError,
    "Cannot use --allow-change train.step: there is no such key. Did you mean 'train.steps'?",
  );
  const other = [...SHORT, "reweight.similarity=pooled"];
  const { ending, notes } = run(space, "out", other, { resume: true, allowChange: ["reweight.similarity"] });
  assertEquals(ending.kind, "complete");
  assertEquals(notes, ["the validation gradient of the checkpoint is of another kind: it is made anew"]);
});

Deno.test("the newest checkpoints and the one with the lowest validation loss are kept", () => {
  using space = noisy();
  // The learning rate is far too large after the first steps: the validation loss gets worse.
  const sets = ["train.steps=12", "train.eval_every=2", "optimizer={ lr: 0.1, schedule: constant, clip: 0 }"];
  const { events } = run(space, "out", [...sets, "checkpoints={ every: 2, keep: 2 }", "faults.spike=0"]);
  const losses = events.flatMap((event) =>
    event.type === "evaluated" && event.name === "validation" ? [[event.step, event.evaluation.loss] as const] : []
  );
  const [best] = losses.toSorted((a, b) => a[1] - b[1])[0]!;
  assertEquals(losses.map(([step]) => step), [2, 4, 6, 8, 10, 12]);
  assert(best < 10, `the best step is ${best}: this test tells nothing`);
  assertEquals(space.checkpoints("out").sort(), [`step-${best}`, "step-10", "step-12"].sort());
  const saved = events.flatMap((event) => event.type === "saved" ? [event] : []);
  assertEquals(saved.filter((event) => event.best).at(-1)!.step, best);
  const newest = space.json("out/checkpoints/step-12/state.json");
  assertEquals([newest.best.step, newest.validation_loss], [best, losses.at(-1)![1]]);
});

Deno.test("lines of metrics.jsonl that are lost are told of, and the run goes on behind those that are left", () => {
  using space = noisy();
  stopped(space);
  const lines = space.read("out/metrics.jsonl").split("\n");
  space.write("out/metrics.jsonl", `${lines.slice(0, 3).join("\n")}\n${lines[3]!.slice(0, 10)}`);
  const { notes } = run(space, "out", SHORT, { resume: true });
  assertEquals(notes, ["metrics.jsonl has lost lines of earlier steps"]);
  assertEquals(space.jsonl("out/metrics.jsonl").map(({ step }) => step), [1, 2, 3, 8, 9, 9, 9]);
});

Deno.test("a line of metrics.jsonl that somebody has damaged costs a resumed run its report, not its adapter", () => {
  using space = noisy();
  run(space, "whole", SHORT);
  stopped(space);
  const lines = space.read("out/metrics.jsonl").split("\n");
  lines[1] = "x".repeat(lines[1]!.length);
  space.write("out/metrics.jsonl", lines.join("\n"));
  const { ending, notes } = run(space, "out", SHORT, { resume: true });
  assertEquals([ending.kind, notes.length, space.exists("out/report.html")], ["complete", 1, false]);
  assert(notes[0]!.startsWith(`report.html is not written: ${space.file("out/metrics.jsonl")}:2:`), notes[0]);
  const adapter = (output: string) => Deno.readFileSync(space.file(output, "adapter/adapter_model.safetensors")).toHex();
  assertEquals(adapter("out"), adapter("whole"));
});

Deno.test("with texts, events say what the samples of a batch are; without, only their names", () => {
  using space = noisy();
  for (const texts of [false, true]) {
    const { events } = run(space, "out", SHORT, { texts });
    const stepped = events.flatMap((event) => event.type === "stepped" && event.kind === "train" ? [event] : []);
    for (const { samples } of stepped) {
      assertEquals(samples.length, 4);
      for (const { id, index, weight, prompt, response } of samples) {
        assertEquals([id, typeof weight], [`row-${index}`, "number"]);
        assertEquals([typeof prompt, typeof response], texts ? ["string", "string"] : ["undefined", "undefined"]);
      }
    }
    assertEquals(structuredClone(events), events);
  }
});
