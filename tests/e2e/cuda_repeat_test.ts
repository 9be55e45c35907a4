/**
 * A fault on a GPU is told by a call that waits, operators later: another process repeats what the run was doing and finds the
 * operator. Here: that it is the very pass, in memory that the lost context has given back, and that nobody stays behind.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { command, rows, type Workspace, workspace } from "./harness.ts";
import { checksOf, faultTest, found, freely, ILLEGAL, oneLine, processesIn, RUNTIME, train } from "./stand_ins.ts";

const LONG_BATCH = { STAND_IN_FAULT_AGAIN: "700 5embed 1" };
const embed = (ids: number, what: string) => found(`look up ${ids} ids in an embedding [260,32]`, what);

const BATCHES: Record<string, { env: Record<string, string>; settings: string[]; says: string }> = {
  "a batch before a long one": { env: { STAND_IN_FAULT: "700 5embed 11" }, settings: [], says: embed(128, "step 11") },
  "a long one": { env: { STAND_IN_FAULT: "700 5embed 12" }, settings: [], says: embed(192, "step 12") },
  "a validation batch": {
    env: { STAND_IN_FAULT: "700 5embed 4" },
    settings: ["reweight.method=meta-lora"],
    says: embed(192, "step 4"),
  },
};

faultTest(
  "the pass that is repeated has the samples of the one that failed",
  checksOf(BATCHES, async ({ env, settings, says }) => {
    using space = workspace();
    const long = (row: ReturnType<typeof rows>[0]) => ({ ...row, completion: row.completion.repeat(5) });
    space.write("train.jsonl", rows(0, 20).map((row, i) => i >= 4 && i < 8 ? long(row) : row));
    space.write("validation.jsonl", rows(100, 6).map((row, i) => i >= 4 ? long(row) : row));
    const sets = ["train.steps=14", "data.shuffle=false", ...settings].map((set) => `--set=${set}`);
    const result = await train(space, { ...RUNTIME, ...LONG_BATCH, ...env }, "--device=cuda", ...sets);
    assertEquals(oneLine(result), says);
    assertMatch(result.err, /^a kernel failed: repeating step \d+ one operator at a time, to learn which$/m);
  }),
);

/** What a process of its own and the run cannot hold both. */
const TIGHT = { STAND_IN_FREE_MIB: "700", STAND_IN_FAULT: "700 5embed 1" };

faultTest("memory for the repetition", {
  async "is what the lost context held"() {
    using space = workspace();
    const env = { ...RUNTIME, ...TIGHT, STAND_IN_POOL: space.file("pool") };
    assertEquals(oneLine(await train(space, env, "--device=cuda")), embed(128, "step 1"));
  },
  async "if there is none, the line says why the operator is not known"() {
    using space = workspace();
    const env = { ...RUNTIME, ...TIGHT, STAND_IN_POOL: space.file("pool"), STAND_IN_RESET: "0" };
    assertEquals(
      oneLine(await train(space, env, "--device=cuda")),
      `Cannot download 32 bytes: ${ILLEGAL}; it may stem from an operator before this one, and step 1 could not be repeated to learn ` +
        "which: Cannot open CUDA device 0: other processes hold its memory (nvidia-smi shows them). Run again with " +
        "METALORA_SYNCHRONOUS=1",
    );
  },
});

faultTest("retrain records the line that names the operator", {
  async "of the training"() {
    using space = workspace();
    const result = await freely(space, { ...RUNTIME, STAND_IN_FAULT: "700 5embed 3", ...LONG_BATCH }, ...RETRAIN);
    assertEquals(oneLine(result), embed(128, "step 3"));
    assertEquals(space.jsonl("out", "history.jsonl").at(-1).reason, embed(128, "step 3"));
  },
  async "of the measurement, and goes on with it"() {
    using space = workspace();
    // Four steps and the evaluation of two data sets, in two parts each, come before.
    const result = await freely(space, { ...RUNTIME, STAND_IN_FAULT: "700 5embed 9", ...LONG_BATCH }, ...RETRAIN);
    assertEquals(oneLine(result), embed(128, "the measurement"));
    assertMatch(result.err, /^a kernel failed: repeating the measurement one operator at a time, to learn which$/m);
    assertEquals(space.jsonl("out", "history.jsonl").at(-1).reason, embed(128, "the measurement"));
    const { code, err } = await freely(space, RUNTIME, ...RETRAIN);
    assertEquals(code, 0, err);
  },
});
const RETRAIN = ["retrain", "run.yaml", "--device=cuda"];

/** Waits until processes of a folder are as a test wants them. */
async function until(space: Workspace, text: string, count: number): Promise<void> {
  const start = performance.now();
  while (processesIn(space.path, text).length !== count) {
    assert(performance.now() - start < 60_000, `${processesIn(space.path, text).length} processes, not ${count}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** A fault that the repetition does not meet, though it looks long. */
const ENDLESS = { ...RUNTIME, STAND_IN_FAULT: "700 5embed 1", STAND_IN_FAULT_AGAIN: "700 5embed 1000000000" };
const SLOW: Record<string, string[]> = {
  "when train is killed": ["train", "run.yaml", "--set=train.accumulate=1000000"],
  "when bench is killed": ["bench", "--model-shape=model", "--batch=1", "--length=16", "--steps=100000000"],
};

faultTest("a repetition ends with the program that asked for it", {
  async "a signal ends a run that is being repeated, with the line of the fault"() {
    using space = workspace();
    const child = command([...SLOW["when train is killed"]!, "--device=cuda"], space.path, ENDLESS).spawn();
    const output = child.output();
    await until(space, "--repeat", 1);
    child.kill("SIGTERM");
    const { code, stdout, stderr } = await output;
    const decode = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
    assertEquals(
      oneLine({ code, out: decode(stdout), err: decode(stderr) }),
      `Cannot download 32 bytes: ${ILLEGAL}; it may stem from an operator before this one, and step 1 could not be repeated to learn ` +
        "which: a signal came. Run again with METALORA_SYNCHRONOUS=1",
    );
    await until(space, "", 0);
  },
  ...checksOf(SLOW, async (args) => {
    using space = workspace();
    const child = command([...args, "--device=cuda"], space.path, ENDLESS).spawn();
    const output = child.output();
    await until(space, "--repeat", 1);
    child.kill("SIGKILL");
    await output;
    await until(space, "", 0);
  }),
});
