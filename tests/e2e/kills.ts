/** Kills short runs at random moments and resumes them, over and over, until each is complete. */
import { assertEquals } from "@std/assert";
import { command, inTurns, type Workspace } from "./harness.ts";

/** What became of the kills. */
export interface KillCount {
  /** Kills of a run that was going on. */
  kills: number;
  /** Runs that were killed and resumed until they were complete. */
  runs: number;
  /** Kills that left an unfinished folder or file: they hit the middle of a save. */
  saving: number;
  /** Kills before the first checkpoint was complete. */
  early: number;
  /** Kills behind the last step, while the run was being published. */
  publishing: number;
}

/** A run whose every step saves a checkpoint, so that most of its time is saving. */
const SETS = [
  "train.steps=40",
  "train.eval_every=10",
  "checkpoints={ every: 1, keep: 2 }",
  "reweight.method=meta-lora",
  "reweight.similarity=exact-adam",
];

const train = (output: string, ...more: string[]) => [
  "train",
  "run.yaml",
  "--device=cpu",
  "--threads=1",
  ...[`output=${output}`, ...SETS].flatMap((set) => ["--set", set]),
  ...more,
];

/**
 * Kills at `kills` random moments, and requires of every run that is complete in the end the very adapter, metrics and
 * weights of a run that nobody killed.
 * @param width runs at once
 */
export async function killAtRandom(
  space: Workspace,
  kills: number,
  { seed, width }: { seed: number; width: number },
): Promise<KillCount> {
  await space.ok(...train("whole"));
  const started = performance.now();
  await space.ok(...train("again")); // the first one may have had to compile the program
  const whole = performance.now() - started;
  const expected = await outcome(space, "whole");
  const count: KillCount = { kills: 0, runs: 0, saving: 0, early: 0, publishing: 0 };
  let state = seed;
  const random = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
  const untilComplete = async () => {
    while (count.kills < kills) {
      const output = `out-${count.runs++}`;
      while (!(await once(space, output, count, count.kills < kills ? random() * whole : Infinity))) {
        // killed: again
      }
      assertEquals(await outcome(space, output), expected, output);
      Deno.removeSync(space.file(output), { recursive: true });
    }
  };
  await inTurns(Array.from({ length: width }, () => untilComplete), width);
  return count;
}

/** Starts or resumes a run and kills it after some milliseconds. @returns whether it was complete before that */
async function once(space: Workspace, output: string, count: KillCount, milliseconds: number): Promise<boolean> {
  const child = command(train(output, "--resume"), space.path).spawn();
  let going = true;
  const killer = milliseconds < Infinity ? killLater(child, milliseconds, () => going && !late(space, output, count)) : undefined;
  const { code, signal, stderr } = await child.output();
  going = false;
  await killer;
  if (signal === null) {
    assertEquals(code, 0, new TextDecoder().decode(stderr));
    return true;
  }
  assertEquals(signal, "SIGKILL");
  count.kills++;
  const unfinished = space.tree(output).some((path) => /(^|\/)\.[^/]+\.tmp/.test(path));
  if (unfinished) count.saving++;
  if (space.checkpoints(output).length === 0) count.early++;
  if (space.checkpoints(output).includes("step-40") && !space.exists(output, "adapter")) count.publishing++;
  return false;
}

/** Every 8th kill waits for the last steps, so that some meet the end of a run. */
const late = (space: Workspace, output: string, { kills }: KillCount) =>
  kills % 8 !== 7 || space.exists(output, "checkpoints/step-39");

async function killLater(child: Deno.ChildProcess, milliseconds: number, wait: () => boolean): Promise<void> {
  const pause = (milliseconds: number) => new Promise((resolve) => setTimeout(resolve, milliseconds));
  if (wait()) {
    while (wait()) await pause(1);
    await pause(milliseconds / 20);
  } else await pause(milliseconds);
  try {
    child.kill("SIGKILL");
  } catch { // it has ended
  }
}

/** What a run left, without times and memory. */
async function outcome(space: Workspace, output: string) {
  const metrics = space.jsonl(output, "metrics.jsonl")
    .map(({ seconds: _, tokens_per_second: __, memory_bytes: ___, ...line }) => line);
  const left = space.tree(output).filter((path) => !path.startsWith("checkpoints/step"));
  return { adapter: await space.adapterHash(output), metrics, weights: space.read(output, "weights.jsonl"), left };
}
