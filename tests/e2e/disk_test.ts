/** Disks that fill up, or turn read-only, in the middle of a run; in disks of their own, which only root can mount. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { Disk, noDisks } from "./disk.ts";
import { Endless } from "./endless.ts";
import { requireWhole, sha256, type Workspace, workspace } from "./harness.ts";

if (noDisks !== null) console.log(`skipped: disks that fail (${noDisks})`);
const ignore = noDisks !== null;

const SETS = ["train.steps=6000", "checkpoints={ every: 200, keep: 2 }"];
const OUT = "disk/out";

/** Requires one line of failure, whole checkpoints, and nothing half-written. @returns the newest checkpoint's step */
async function requireSound(space: Workspace, { code, err }: { code: number; err: string }, says: RegExp): Promise<number> {
  assertEquals(code, 1, err);
  const errors = err.split("\n").filter((line) => line.startsWith("metalora: "));
  assertEquals(errors.length, 1, err);
  assertMatch(errors[0]!, says);
  assert(!errors[0]!.includes(".tmp"), errors[0]);
  const names = space.checkpoints(OUT);
  assert(names.length > 0, err);
  for (const name of names) await requireWhole(space, name, OUT);
  assert(!space.exists(OUT, "adapter"));
  return Math.max(...names.map((name) => Number(name.slice("step-".length))));
}

/** Resumes the run of `disk/out`, and requires that it makes what a run without trouble makes. */
async function requireSameAsUndisturbed(space: Workspace, step: number): Promise<void> {
  await using resumed = new Endless(space, OUT, SETS, { options: ["--resume"] });
  await using undisturbed = new Endless(space, "whole", SETS);
  const [{ code, err }, other] = [await resumed.ended(), await undisturbed.ended()];
  assertEquals([code, other.code], [0, 0], err + other.err);
  assert(err.includes(`continuing from step ${step}\n`), err);
  assertEquals(await space.adapterHash(OUT), await space.adapterHash("whole"));
  assertEquals(space.tree(OUT).filter((path) => path.includes(".tmp") || path.includes(".lock")), []);
}

Deno.test({
  name: "a disk that turns read-only ends a run with one line; mended, the run goes on to the same adapter",
  ignore,
  async fn() {
    using space = workspace();
    using disk = new Disk(space.path);
    await using run = new Endless(space, OUT, SETS);
    await run.says("step 1000/");
    assert(disk.fail());
    const ended = await run.ended();
    disk.mend();
    const step = await requireSound(
      space,
      ended,
      /^metalora: Cannot write (the output|the folder|disk).*: .*(Read-only file system|Input\/output error).*\. .*/,
    );
    await requireSameAsUndisturbed(space, step);
  },
});

Deno.test({
  name: "a disk that fills up ends a run with one line; with room again, the run goes on to the same adapter",
  ignore,
  async fn() {
    using space = workspace();
    using disk = new Disk(space.path);
    await using run = new Endless(space, OUT, SETS);
    await run.says("step 1000/");
    disk.fill();
    const step = await requireSound(
      space,
      await run.ended(),
      /^metalora: Cannot (write [^:]*: No space left on device|save the checkpoint of step \d+: it takes .* left\.)/,
    );
    disk.free();
    await requireSameAsUndisturbed(space, step);
  },
});

Deno.test({
  name:
    "a disk that fills up, or turns read-only, under a retraining leaves what is published, and the next one comes to the same",
  ignore,
  async fn() {
    using space = workspace();
    using disk = new Disk(space.path);
    const retrain = async (output: string, ...sets: string[]) => {
      await using run = new Endless(space, output, [...SETS, ...sets], { command: "retrain" });
      return await run.ended();
    };
    const release = (output: string) =>
      sha256(Deno.readFileSync(space.file(output, "current/adapter/adapter_model.safetensors")));
    const short = "train.steps=20";
    for (const output of [OUT, "whole"]) assertEquals((await retrain(output, short)).code, 0);
    // The second goes on from where the first could still write a checkpoint, long before its own step.
    for (const [trouble, mend, step] of [["fill", "free", 1000], ["fail", "mend", 3000]] as const) {
      await using run = new Endless(space, OUT, SETS, { command: "retrain" });
      await run.says(`step ${step}/`);
      disk[trouble]();
      const { code, err } = await run.ended();
      assertEquals([code, err.split("\n").filter((line) => line.startsWith("metalora: ")).length], [1, 1], err);
      disk[mend]();
      assertEquals(Deno.readLinkSync(space.file(OUT, "current")), "releases/0001", trouble);
    }
    const margin = "retrain.margin=100";
    const next = await retrain(OUT, margin), alone = await retrain("whole", margin);
    assertEquals([next.code, alone.code], [0, 0], next.err + alone.err);
    assertEquals(Deno.readLinkSync(space.file(OUT, "current")), "releases/0002");
    assertEquals(await release(OUT), await release("whole"));
  },
});
