/**
 * Retraining by Debian's cron, every minute for five minutes: too long for the tests, so it is run by hand, as root.
 *
 *   deno run -A tests/retrain/cron_minutes.ts
 *
 * Takes the line of configs/crontab with another schedule and other names, puts it into root's table, starts cron and watches:
 * minute 1 publishes, 2 finds nothing to do, 3 has new data and a training that takes more than a minute, 4 finds it still at
 * work (75), which cron mails; then the machine "loses power" (SIGKILL), the configuration is put right, and minute 5 publishes.
 */
import { assert, assertEquals } from "@std/assert";
import { dirname, join } from "node:path";
import type { RetrainRecord } from "../../lib/retrain/records.ts";
import { command, ROOT, rows, type Workspace, workspace } from "../e2e/harness.ts";

const MINUTE = 60_000;

async function has(program: string): Promise<boolean> {
  try {
    return (await new Deno.Command("which", { args: [program], stdout: "null" }).output()).success;
  } catch {
    return false;
  }
}

async function crontab(table: string | null): Promise<void> {
  const child = new Deno.Command("crontab", { args: table === null ? ["-r"] : ["-"], stdin: "piped", stderr: "null" }).spawn();
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(table ?? ""));
  await writer.close();
  await child.status;
}

/** A program `metalora` that is this one from source. */
function wrapper(space: Workspace): string {
  const path = space.file("metalora");
  const flags = ["read", "write", "env", "sys", "ffi", "net"].map((name) => `--allow-${name}`).join(" ");
  const run = `"${Deno.execPath()}" run --quiet --no-check "--config=${ROOT}deno.json" ${flags} "${ROOT}main.ts"`;
  Deno.writeTextFileSync(
    path,
    `#!/bin/sh\nexec ${run} "$@" --threads=1 --device=cpu\n`,
    {
      mode: 0o755,
    },
  );
  return path;
}

if (!await has("cron") || !await has("crontab") || Deno.uid() !== 0) {
  console.log("skipped: needs cron and root (Debian: apt-get install cron)");
  Deno.exit(0);
}

using space = workspace();
const before = await new Deno.Command("crontab", { args: ["-l"], stderr: "null" }).output();
const program = wrapper(space);
const configured = space.read("run.yaml");
const table = Deno.readTextFileSync(join(ROOT, "configs/crontab"))
  .replace(/^METALORA=.*$/m, `METALORA=${program}`).replace(/^RUNS=.*$/m, `RUNS=${dirname(program)}`)
  .replace(/^\d+ \d+ \* \* \* /m, "* * * * * ");
assert(table.includes(`\n* * * * * cd "$RUNS"`), table);
const say = (text: string) => console.log(`${new Date().toISOString().slice(11, 19)} ${text}`);

/** Waits for a line of retrain.log that holds a text and was not there before. */
let read = 0;
async function logs(text: string, patience = 2.5 * MINUTE): Promise<void> {
  const end = performance.now() + patience;
  for (;;) {
    const log = space.exists("retrain.log") ? space.read("retrain.log") : "";
    const at = log.indexOf(text, read);
    if (at >= 0) {
      read = at + text.length;
      return say(`retrain.log: ${log.slice(log.lastIndexOf("\n", at) + 1).split("\n")[0]}`);
    }
    assert(performance.now() < end, `never in retrain.log: ${text}\n${log}`);
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

await crontab(table);
const cron = new Deno.Command("cron", { args: ["-f"], stdout: "null", stderr: "null" }).spawn();
try {
  say("cron has the table of configs/crontab, every minute");
  await logs("published release 0001");
  await logs("nothing to do: data, configuration and base model are unchanged since attempt 1");
  space.write("train.jsonl", rows(20, 20));
  space.write("run.yaml", configured.replace("steps: 4", "steps: 1000000").replace("every: 0", "every: 1000"));
  await logs("attempt 2, from release 0001");
  await logs("holds it. Wait for it");
  // The power goes. With the settings put right the inputs are others, so the next minute begins anew.
  const pid = /process (\d+) holds it/.exec(space.read("retrain.log"))![1]!;
  Deno.kill(Number(pid), "SIGKILL");
  say(`killed the training of process ${pid}`);
  space.write("run.yaml", configured);
  await logs("published release 0002");
  const history: RetrainRecord[] = space.jsonl("out/history.jsonl");
  assertEquals(history.map(({ outcome, release }) => [outcome, release]), [["published", "0001"], ["published", "0002"]]);
  assertEquals(Deno.readLinkSync(space.file("out/current")), "releases/0002");
} finally {
  cron.kill("SIGTERM");
  await cron.status;
  await crontab(before.success ? new TextDecoder().decode(before.stdout) : null);
}
const { stdout } = await command(["retrain", "run.yaml", "--threads=1", "--device=cpu"], space.path).output();
say(`by hand: ${new TextDecoder().decode(stdout).trimEnd()}`);
say("cron published, had nothing to do, met a run at work, and published behind a kill");
