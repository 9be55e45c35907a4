/** A clock that is set, days ahead or back, while the program runs: nothing depends on it. Needs faketime (Debian's package). */
import { assert, assertEquals, assertMatch } from "@std/assert";
import type { RetrainRecord } from "../../lib/retrain/records.ts";
import { Endless } from "./endless.ts";
import { rows, type Workspace, workspace } from "./harness.ts";

/** Debian's place of the library. */
const LIBRARY = `/usr/lib/${Deno.build.arch}-linux-gnu/faketime/libfaketimeMT.so.1`;
const ignore = (() => {
  try {
    return !Deno.statSync(LIBRARY).isFile;
  } catch {
    console.log("skipped: a clock that jumps (Debian: apt-get install faketime)");
    return true;
  }
})();

/** A clock that programs are started under. Only the wall clock is set: the monotonic one never jumps, as on a real machine. */
class Clock {
  readonly #file: string;
  readonly starter: readonly string[];

  constructor(space: Workspace) {
    this.#file = space.file("clock");
    this.set("+0");
    const settings = [`FAKETIME_TIMESTAMP_FILE=${this.#file}`, "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"];
    this.starter = ["env", `LD_PRELOAD=${LIBRARY}`, ...settings];
  }

  /** @param offset From the true time, such as "-800d". */
  set(offset: string): void {
    const file = `${this.#file}.new`;
    Deno.writeTextFileSync(file, offset);
    Deno.renameSync(file, this.#file);
  }
}

/** How far a written time is off the true one, in days. */
const daysOff = (time: string) => Math.round((Date.parse(time) - Date.now()) / 86_400_000);

Deno.test({
  name: "a clock that jumps while a run goes on changes no result, no duration and no rate",
  ignore,
  async fn() {
    using space = workspace();
    const clock = new Clock(space);
    const sets = ["train.steps=3000", "train.log_every=100", "checkpoints={ every: 200, keep: 2 }"];
    const whole = await space.train("whole", ["reweight.method=meta-lora", ...sets]);
    await using run = new Endless(space, "out", sets, { starter: clock.starter, options: ["--json"] });
    await run.says("step 500/");
    clock.set("+400d");
    await run.says("step 1000/");
    clock.set("-800d");
    const { code, err } = await run.ended();
    assertEquals(code, 0, err);
    assertEquals(await space.adapterHash("out"), await space.adapterHash("whole"));
    assertMatch(err, /done in \d+s\n/);
    assert(!/ -\d|NaN|Infinity/.test(err), err);
    // The clock was another one.
    const finished = /<dd>([^<]*) UTC by metalora/.exec(space.read("out/report.html"))![1]!;
    assertEquals(daysOff(`${finished.replace(" ", "T")}Z`), -800);
    // And yet each step follows the one before it, within the seconds that the run really took.
    let before = 0;
    for (const { kind, seconds, tokens_per_second: rate } of space.jsonl("out/metrics.jsonl")) {
      if (kind.endsWith("evaluation")) continue;
      assert(
        seconds >= before && seconds < whole.seconds + 86_400 && rate > 0 && Number.isFinite(rate),
        `${before} ${seconds} ${rate}`,
      );
      before = seconds;
    }
  },
});

Deno.test({
  name: "retraining under a clock that jumps keeps the order of its history and sees what changed",
  ignore,
  async fn() {
    using space = workspace();
    const clock = new Clock(space);
    const night = async (output: string, offsets: readonly [begin: string, meanwhile: string], starter = clock.starter) => {
      clock.set(offsets[0]);
      const sets = ["train.steps=400", "train.log_every=1", "retrain={ margin: 100, keep: 2 }"];
      await using run = new Endless(space, output, sets, { command: "retrain", starter });
      await run.says("step 100/");
      clock.set(offsets[1]);
      const { code, err } = await run.ended();
      assertEquals(code, 0, err);
    };
    const jumps = [["+0", "+400d"], ["-30d", "-800d"], ["+10d", "+9d"]] as const;
    for (const [day, jump] of jumps.entries()) {
      space.write("train.jsonl", rows(1000 + 20 * day, 20));
      await night("out", jump);
      await night("alone", ["+0", "+0"], []);
    }
    const history = (output: string): RetrainRecord[] => space.jsonl(output, "history.jsonl");
    assertEquals(history("out").map(({ time }) => daysOff(time)), [400, -800, 9]);
    for (const { seconds, cost } of history("out")) {
      assert(seconds > 0 && seconds < 86_400 && cost!.training_seconds > 0 && cost!.training_seconds < seconds, `${seconds}`);
    }
    const essence = (output: string) =>
      history(output).map(({ number, outcome, release, start, adapter_sha256 }) => ({
        number,
        outcome,
        release,
        start,
        adapter_sha256,
      }));
    assertEquals(essence("out"), essence("alone"));
    assertEquals(space.tree("out/releases").filter((name) => /^\d+\/$/.test(name)), ["0002/", "0003/"]); // the oldest went
    assertEquals(Deno.readLinkSync(space.file("out/current")), "releases/0003");
  },
});
