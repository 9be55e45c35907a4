/** A power cut at every single step of a change leaves all of it or nothing, whoever comes next. */
import { assert, assertEquals } from "@std/assert";
import { createHash } from "node:crypto";
import { join } from "node:path";
import { type Comparison, RECORD_FORMAT, type RetrainRecord } from "../../lib/retrain/records.ts";
import { decide } from "../../lib/retrain/decide.ts";
import { rollback } from "../../lib/retrain/rollback.ts";
import { Store } from "../../lib/retrain/store.ts";

class PowerCut extends Error {}

/**
 * Lets the first `steps` changes to the disk happen; from the next one on nothing is changed any more, not even by code that
 * tidies up. @returns how many changes were made
 */
async function untilPowerCut(steps: number, act: () => Promise<void>): Promise<number> {
  let made = 0;
  const change = () => {
    if (made === steps) throw new PowerCut();
    made++;
  };
  const restore: (() => void)[] = [];
  // deno-lint-ignore no-explicit-any
  const patch = (target: any, name: string, changes: (...args: any[]) => boolean = () => true) => {
    const original = target[name];
    target[name] = function (...args: unknown[]) {
      if (changes(...args)) change();
      return original.apply(this, args);
    };
    restore.push(() => target[name] = original);
  };
  for (const name of ["renameSync", "mkdirSync", "removeSync", "symlinkSync", "copyFileSync"]) patch(Deno, name);
  patch(Deno, "openSync", (_, options) => options?.write === true && (options.create || options.createNew || options.truncate));
  for (const name of ["writeSync", "truncateSync"]) patch(Deno.FsFile.prototype, name);
  try {
    await act();
  } catch (error) {
    if (!(error instanceof PowerCut)) throw error;
  } finally {
    for (const each of restore) each();
  }
  return made;
}

const adapterOf = (release: string) => `adapter of ${release}`;
const sha256 = (text: string) => createHash("sha256").update(text).digest("hex");

function recordOf(store: Store, varying: Partial<RetrainRecord>): RetrainRecord {
  const number = (store.history.at(-1)?.number ?? 0) + 1;
  return {
    format: RECORD_FORMAT,
    number,
    attempt: number,
    outcome: "rejected",
    reason: "a test",
    exit_code: 0,
    time: "2030-01-01T00:00:00.000Z",
    seconds: 1,
    version: "0",
    release: null,
    current: store.current,
    start: null,
    inputs: null,
    changed: [],
    comparison: null,
    cost: null,
    adapter_sha256: null,
    ...varying,
  };
}

async function publish(output: string): Promise<void> {
  using store = await Store.hold(output);
  const release = store.nextRelease, text = adapterOf(release);
  const candidate = join(output, `candidate-of-${release}`);
  if (!exists(candidate)) {
    Deno.mkdirSync(join(candidate, "adapter"), { recursive: true });
    Deno.writeTextFileSync(join(candidate, "adapter/adapter_config.json"), "{}");
    Deno.writeTextFileSync(join(candidate, "adapter/adapter_model.safetensors"), text);
    Deno.writeTextFileSync(join(candidate, "config.yaml"), "seed: 0\n");
  }
  const facts = { format: RECORD_FORMAT, previous: store.current, adapter_sha256: sha256(text), adapter: {} as never };
  store.publish(candidate, facts, recordOf(store, { outcome: "published", release, current: release }));
}

function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}

/** Current release, history and result; makes sure that they fit each other and that nothing half-done is left. */
async function state(output: string) {
  using store = await Store.hold(output);
  const { current, history, releases } = store;
  for (const release of releases) assert(store.isWhole(release), `release ${release} is not whole`);
  if (current !== null) {
    assertEquals(Deno.readTextFileSync(join(output, "current/adapter/adapter_model.safetensors")), adapterOf(current));
  }
  assertEquals(history.map(({ number }) => number), history.map((_, i) => i + 1));
  const left = Array.from(Deno.readDirSync(join(output, "releases")), ({ name }) => name).filter((name) => name !== ".lock");
  assertEquals(left.sort(), releases);
  assertEquals(history.at(-1)?.current ?? null, current);
  const result = exists(join(output, "result.json")) ? JSON.parse(Deno.readTextFileSync(join(output, "result.json"))) : null;
  assertEquals(result, history.at(-1) ?? null);
  return { current, releases, outcomes: history.map(({ outcome }) => outcome) };
}

const CHANGES: Record<string, (output: string) => Promise<void>> = {
  "the first publication": publish,
  "a publication": publish,
  "a record": async (output) => {
    using store = await Store.hold(output);
    store.record(recordOf(store, {}));
  },
  "a rollback": async (output) => void await rollback({ output }),
};

for (const [name, act] of Object.entries(CHANGES)) {
  Deno.test(`a power cut at any step of ${name} leaves the state before or the state behind it`, async () => {
    for (let steps = 0, done = false, behindSeen = 0, beforeSeen = 0; !done; steps++) {
      const output = Deno.makeTempDirSync();
      try {
        if (name !== "the first publication") { for (let i = 0; i < 2; i++) await publish(output); }
        const before = await state(output);
        // What the candidate is, is there before the publication begins.
        const made = await untilPowerCut(steps, async () => {
          const release = String(before.releases.length + 1).padStart(4, "0");
          const candidate = join(output, `candidate-of-${release}`);
          if (!exists(candidate)) {
            Deno.mkdirSync(join(candidate, "adapter"), { recursive: true });
            Deno.writeTextFileSync(join(candidate, "adapter/adapter_config.json"), "{}");
            Deno.writeTextFileSync(join(candidate, "adapter/adapter_model.safetensors"), adapterOf(release));
          }
          await act(output);
        });
        done = made < steps;
        const after = await state(output);
        const same = JSON.stringify(after) === JSON.stringify(before);
        if (same) beforeSeen++;
        else {
          behindSeen++;
          assertEquals(after.outcomes.length, before.outcomes.length + 1);
        }
        // And the next one succeeds from there.
        await publish(output);
        const next = await state(output);
        assertEquals(next.outcomes.length, after.outcomes.length + 1);
        assertEquals(next.current, next.releases.at(-1)!);
      } finally {
        Deno.removeSync(output, { recursive: true });
      }
      if (done) assert(behindSeen >= 3 && beforeSeen >= 3, `${behindSeen} behind, ${beforeSeen} before`);
    }
  });
}

Deno.test("a half-written line at the end of the history is dropped, and a link that is gone comes back", async () => {
  const output = Deno.makeTempDirSync();
  try {
    await publish(output);
    Deno.writeTextFileSync(join(output, "history.jsonl"), '{"number": 2, "outc', { append: true });
    Deno.removeSync(join(output, "current"));
    {
      using store = await Store.hold(output);
      assertEquals(store.notes, ["the link current was gone: it points to release 0001 again"]);
      assertEquals([store.current, store.history.length], ["0001", 1]);
    }
    await publish(output);
    assertEquals((await state(output)).outcomes, ["published", "published"]);
  } finally {
    Deno.removeSync(output, { recursive: true });
  }
});

Deno.test("a damaged line inside the history is told of and passed over", async () => {
  const output = Deno.makeTempDirSync();
  try {
    for (let i = 0; i < 3; i++) await publish(output);
    const path = join(output, "history.jsonl");
    const [first, second, third] = Deno.readTextFileSync(path).split("\n") as [string, string, string];
    for (const damaged of [second.slice(0, 20), "null", "{}"]) {
      Deno.writeTextFileSync(path, [first, damaged, third, ""].join("\n"));
      using store = await Store.hold(output);
      assertEquals(store.notes, [`line 2 of ${path} is damaged: it is passed over`]);
      assertEquals([store.history.map(({ number }) => number), store.nextRelease], [[1, 3], "0004"]);
    }
  } finally {
    Deno.removeSync(output, { recursive: true });
  }
});

Deno.test("decide() publishes up to the margin, the better one by its metric, and never what is no number", () => {
  const evaluation = (loss: number, accuracy = 0.5) => ({ loss, accuracy, tokens: 10, samples: 4, perplexity: Math.exp(loss) });
  const base = { data: "test", path: "t", sha256: "", release: "0007", base: null } as const;
  const compare = (varying: Partial<Comparison>) =>
    decide({ ...base, metric: "loss", margin: 0, candidate: evaluation(1), published: evaluation(1), ...varying });
  assertEquals(compare({}), {
    publish: true,
    reason: "loss 1.0000 on the test data against 1.0000 of release 0007: the same, margin 0",
  });
  assertEquals(compare({ candidate: evaluation(1.01) }).publish, false);
  assertEquals(compare({ candidate: evaluation(1.01), margin: 0.02 }).publish, true);
  assertEquals(compare({ candidate: evaluation(0.99), margin: -0.02 }).publish, false);
  assertEquals(compare({ candidate: evaluation(NaN), margin: 9 }), {
    publish: false,
    reason: "the candidate's loss on the test data is no number",
  });
  assertEquals(compare({ candidate: evaluation(Infinity), published: null }).publish, false);
  assertEquals(compare({ published: evaluation(NaN) }).publish, true);
  const accuracy = compare({ metric: "accuracy", candidate: evaluation(0.1, 0.4) });
  assertEquals(accuracy, {
    publish: false,
    reason: "accuracy 40.00 % on the test data against 50.00 % of release 0007: worse by 10.00 %, margin 0",
  });
  assertEquals(compare({ metric: "accuracy", candidate: evaluation(9, 0.4), margin: 0.1 }).publish, true);
  assertEquals(compare({ published: null, release: null, base: evaluation(0.5) }), {
    publish: true,
    reason: "first release: loss 1.0000 on the test data, 0.5000 without adapter; it is worse than the model without adapter",
  });
});
