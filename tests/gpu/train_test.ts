/**
 * Whole runs of `metalora train --device cuda`, as a person starts them, on the tiny model of the end-to-end tests: they repeat
 * themselves, they go on after a stop as if there had been none, and they learn what the CPU learns.
 */
import { assert, assertEquals } from "@std/assert";
import { command, inTurns, rows, type Workspace, workspace } from "../e2e/harness.ts";
import { available, BACKEND } from "./subject.ts";

/** A test that needs the device. */
function gpuTest(name: string, fn: () => Promise<void>): void {
  Deno.test({ name, ignore: !available, fn });
}

const DEVICE = [`--device=${BACKEND}`, "--threads=1"];

/** Half of the rows say something else than the validation rows would, so that similarities have both signs. */
function noisy(): Workspace {
  const space = workspace();
  space.write("train.jsonl", rows(0, 18).map((row, i) => i % 2 ? { ...row, completion: " 9Z#9Z#9Z" } : row));
  return space;
}

const VARIANTS: Record<string, string[]> = {
  "plain LoRA": ["reweight.method=none"],
  "plain LoRA, accumulating, Adam on the host": [
    "reweight.method=none",
    ...["train.batch_size=3", "train.accumulate=2", "optimizer.placement=host"],
  ],
  "META-LORA": ["reweight.method=meta-lora"],
  "META-LORA, a validation batch of several passes": [
    "reweight.method=meta-lora",
    ...["train.batch_size=2", "reweight.validation.batch_size=6"],
  ],
  "META-LORA, exact-adam": ["reweight.method=meta-lora", "reweight.similarity=exact-adam"],
  "META-LORA, core": ["reweight.method=meta-lora", "reweight.similarity=core"],
  "META-LORA, pooled": ["reweight.method=meta-lora", "reweight.similarity=pooled"],
};

/** Everything that a run says of itself but for times and memory. */
async function outcome(space: Workspace, output: string) {
  const metrics = space.jsonl(output, "metrics.jsonl")
    .map(({ seconds: _, tokens_per_second: __, memory_bytes: ___, ...line }) => line);
  return { adapter: await space.adapterHash(output), metrics, weights: space.read(output, "weights.jsonl") };
}

for (const [name, sets] of Object.entries(VARIANTS)) {
  gpuTest(`two runs end with the same bytes: ${name}`, async () => {
    using space = noisy();
    const all = [...sets, "train.steps=12", "train.eval_every=5"];
    const runs: [string, string[]][] = [["first", all], ["second", all], ["seeded", [...all, "seed=1"]]];
    const [first] = await inTurns(runs.map(([output, settings]) => () => space.train(output, settings, DEVICE)));
    assertEquals(first.steps, 12);
    assert(first.loss > 0 && first.loss < 8, `a loss of ${first.loss}`);
    assertEquals(await outcome(space, "second"), await outcome(space, "first"));
    assert(await space.adapterHash("seeded") !== await space.adapterHash("first"), "another seed must train another adapter");
  });

  gpuTest(`N + M steps are N steps, an end, --resume and M steps, bit for bit: ${name}`, async () => {
    using space = noisy();
    const all = [...sets, "optimizer.schedule=constant", "checkpoints={ every: 3, keep: 2 }"];
    const runs = [["whole", 13], ["parts", 6]].map(([output, steps]) => () =>
      space.train(output as string, [...all, `train.steps=${steps}`], DEVICE)
    );
    await inTurns(runs);
    const resume = ["--resume", "--allow-change=train.steps"];
    const longer = await space.train("parts", [...all, "train.steps=13"], [...DEVICE, ...resume]);
    assertEquals(longer.steps, 13);
    const [parts, whole] = [await outcome(space, "parts"), await outcome(space, "whole")];
    assertEquals([parts.adapter, parts.weights], [whole.adapter, whole.weights]);
  });
}

/** Starts a run without an end, sends `signal` once it has made some steps, and waits for it. @returns what it has said */
async function interrupted(
  space: Workspace,
  sets: readonly string[],
  signal: Deno.Signal,
): Promise<{ code: number; err: string }> {
  const all = ["output=parts", "train.steps=1000000", "train.log_every=10", ...sets].flatMap((set) => ["--set", set]);
  const child = command(["train", "run.yaml", ...DEVICE, ...all], space.path).spawn();
  const patience = setTimeout(() => child.kill("SIGKILL"), 120_000);
  let err = "", sent = false;
  for await (const text of child.stderr.pipeThrough(new TextDecoderStream())) {
    err += text;
    if (sent || !err.includes("step 20/")) continue;
    child.kill(signal);
    sent = true;
  }
  const [{ code }] = await Promise.all([child.status, child.stdout.cancel()]);
  clearTimeout(patience);
  assert(sent, `the run has ended before its step 20: ${err}`);
  return { code, err };
}

for (const signal of ["SIGTERM", "SIGKILL"] as const) {
  gpuTest(`a run that ${signal} ends goes on with --resume to the bits of one that was left alone`, async () => {
    using space = noisy();
    const all = [...VARIANTS["META-LORA"]!, "optimizer.schedule=constant", "checkpoints={ every: 7, keep: 2 }"];
    const { code, err } = await interrupted(space, all, signal);
    assertEquals(code, signal === "SIGTERM" ? 143 : 137, err);
    const reached = Math.max(...space.checkpoints("parts").map((name) => Number(name.slice("step-".length))));
    if (signal === "SIGTERM") {
      const saved = `stopped at step ${reached}: saved in parts/checkpoints/step-${reached}. Go on with --resume\n`;
      assert(err.endsWith(saved), err);
    }
    const steps = `train.steps=${reached + 9}`;
    const [resumed] = await inTurns([
      () => space.train("parts", [...all, steps], [...DEVICE, "--resume", "--allow-change=train"]),
      () => space.train("whole", [...all, steps], DEVICE),
    ]);
    assertEquals(resumed.steps, reached + 9);
    const [parts, whole] = [await outcome(space, "parts"), await outcome(space, "whole")];
    assertEquals([parts.adapter, parts.weights], [whole.adapter, whole.weights]);
  });
}

for (const method of ["none", "meta-lora"]) {
  gpuTest(`the losses of 10 steps are within 2 % of the CPU's: ${method}`, async () => {
    using space = noisy();
    const all = [`reweight.method=${method}`, "train.steps=10"];
    await inTurns(
      [["gpu", BACKEND], ["cpu", "cpu"]].map(([output, backend]) => () =>
        space.train(output!, all, [`--device=${backend}`, "--threads=1"])
      ),
    );
    const losses = (output: string) =>
      space.jsonl(output, "metrics.jsonl").filter(({ kind }) => kind === "train" || kind === "validation");
    const [gpu, cpu] = [losses("gpu"), losses("cpu")];
    assertEquals(gpu.map(({ step, kind }) => `${step} ${kind}`), cpu.map(({ step, kind }) => `${step} ${kind}`));
    assertEquals(cpu.length, 10);
    let worst = 0;
    for (const [i, { step, kind, loss }] of gpu.entries()) {
      const far = Math.abs(loss / cpu[i]!.loss - 1);
      assert(far < 0.02, `step ${step} (${kind}): a loss of ${loss}, on the CPU ${cpu[i]!.loss}`);
      worst = Math.max(worst, far);
    }
    assert(cpu.at(-1)!.loss < cpu[0]!.loss, "the run learns nothing: the test tells nothing");
    console.log(`  largest difference of a step's loss: ${(100 * worst).toFixed(2)} %`);
  });
}
