/** Nights of retraining that are killed at random moments, beside the same nights left alone. */
import { assert, assertEquals } from "@std/assert";
import type { ReleaseFacts, RetrainRecord } from "../../lib/retrain/records.ts";
import { command, rows, sha256, type Workspace, workspace } from "../e2e/harness.ts";
import { Rng } from "../../lib/data/random.ts";

const SETS = [
  "train.steps=40",
  "checkpoints={ every: 4, keep: 2 }",
  "reweight.method=meta-lora",
  "retrain={ margin: 100, keep: 3 }",
].flatMap((set) => ["--set", set]);

const args = (
  output: string,
) => ["retrain", "run.yaml", "--threads=1", "--device=cpu", "--json", "--set", `output=${output}`, ...SETS];

/** What happened. */
export interface Tally {
  kills: number;
  /** Nights that came to an end. */
  nights: number;
  /** Kills after which something of an attempt was there to go on with. */
  resumed: number;
  /** Kills while candidates were measured or published. */
  late: number;
}

/** One night to its end. */
async function wholeNight(space: Workspace, output: string): Promise<RetrainRecord> {
  const { code, stdout, stderr } = await command(args(output), space.path).output();
  assertEquals(code, 0, new TextDecoder().decode(stderr));
  return JSON.parse(new TextDecoder().decode(stdout));
}

/** `current` is absent before the first publication; else it leads to a whole release. @returns its name */
async function requireValid(space: Workspace, output: string): Promise<string | null> {
  if (!space.exists(output, "current/release.json")) {
    assert(
      !space.exists(output, "releases/0001/release.json") || !space.exists(output, "history.jsonl"),
      "current leads nowhere",
    );
    return null;
  }
  const facts: ReleaseFacts = space.json(output, "current/release.json");
  assertEquals(
    await sha256(Deno.readFileSync(space.file(output, "current/adapter/adapter_model.safetensors"))),
    facts.adapter_sha256,
  );
  assertEquals(Deno.readLinkSync(space.file(output, "current")), `releases/${facts.release}`);
  return facts.release;
}

/** What is left of a history when nothing may differ. */
const essence = (records: readonly RetrainRecord[]) =>
  records.map(({ outcome, release, start, attempt, adapter_sha256, reason }) => ({
    outcome,
    release,
    start,
    attempt,
    adapter_sha256,
    reason,
  }));

/**
 * Kills `kills` invocations with SIGKILL: half of them at any moment, half while a candidate is measured and published. Behind
 * each kill `current` must be valid; each night must end with the very release of a night that was left alone.
 */
export async function killNights(
  kills: number,
  { seed, say = () => {} }: { seed: number; say?: (line: string) => void },
): Promise<Tally> {
  using space = workspace();
  const rng = new Rng(seed, "kill");
  const tally: Tally = { kills: 0, nights: 0, resumed: 0, late: 0 };
  for (let day = 1; tally.kills < kills; day++) {
    space.write("train.jsonl", rows(1000 + 20 * day, 20));
    const start = performance.now();
    const expected = await wholeNight(space, "alone");
    const usual = performance.now() - start;
    const before = await requireValid(space, "killed");
    const perNight = Math.min(kills - tally.kills, 5);
    for (let k = 0; k < perNight; k++) {
      const late = k % 2 === 1;
      const process = command(args("killed"), space.path).spawn();
      const ended = process.output();
      if (late) {
        // The candidate is complete: it is measured now, then published.
        while (!space.exists("killed/candidate/adapter") && await Promise.race([ended, sleep(2)]) === undefined);
      }
      await Promise.race([ended, sleep(rng.uniform() * (late ? 0.35 : 1) * usual)]);
      try {
        process.kill("SIGKILL");
      } catch { // it was done
      }
      const { signal } = await ended;
      if (signal !== "SIGKILL") break; // came to its end
      tally.kills++;
      if (space.exists("killed/attempt.json")) tally.resumed++;
      if (space.exists("killed/candidate/adapter")) tally.late++;
      const now = await requireValid(space, "killed");
      assert(now === before || now === expected.release, `current is ${now}`);
    }
    const record = await wholeNight(space, "killed");
    assertEquals(await requireValid(space, "killed"), expected.release);
    const last: RetrainRecord = record.outcome === "unchanged" ? space.jsonl("killed/history.jsonl").at(-1) : record;
    assertEquals(essence([last]), essence([expected]));
    assertEquals(essence(space.jsonl("killed/history.jsonl")), essence(space.jsonl("alone/history.jsonl")));
    assertEquals(
      space.tree("killed").filter((path) => !path.includes("metrics")),
      space.tree("alone").filter((path) => !path.includes("metrics")),
    );
    tally.nights++;
    say(`night ${day}: release ${expected.release}, ${tally.kills} kills`);
  }
  return tally;
}

const sleep = (ms: number) => new Promise<undefined>((resolve) => setTimeout(() => resolve(undefined), ms));
