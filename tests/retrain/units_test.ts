/**
 * The files in configs/ that start retrainings: cron's line and systemd's units. `cron_minutes.ts` and `systemd_minutes.ts` let a
 * cron and a systemd really run them.
 */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { join } from "node:path";
import { ROOT } from "../e2e/harness.ts";

const read = (name: string) => Deno.readTextFileSync(join(ROOT, "configs", name));

async function run(program: string, ...args: string[]): Promise<{ code: number; text: string } | null> {
  try {
    const { code, stdout, stderr } = await new Deno.Command(program, { args, env: { SYSTEMD_COLORS: "0" } }).output();
    return { code, text: new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr) };
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    console.log(`skipped: there is no ${program} here`);
    return null;
  }
}

Deno.test("systemd finds nothing wrong with the units, and the timer fires once a night", async () => {
  const folder = Deno.makeTempDirSync();
  try {
    // verify looks for the program; any that exists will do.
    const service = read("metalora-retrain.service").replace("/usr/local/bin/metalora ", `${Deno.execPath()} `);
    assertStringIncludes(service, `ExecStart=${Deno.execPath()} retrain run.yaml`);
    Deno.writeTextFileSync(join(folder, "metalora-retrain.service"), service);
    Deno.writeTextFileSync(join(folder, "metalora-retrain.timer"), read("metalora-retrain.timer"));
    const names = ["service", "timer"].map((kind) => join(folder, `metalora-retrain.${kind}`));
    const verified = await run("systemd-analyze", "verify", "--man=no", ...names);
    if (verified === null) return;
    const ours = verified.text.split("\n").filter((line) => line.includes("metalora"));
    assertEquals([verified.code, ours], [0, []], verified.text);
    const calendar = /^OnCalendar=(.*)$/m.exec(read("metalora-retrain.timer"))![1]!;
    const elapses = await run("systemd-analyze", "calendar", "--iterations=3", calendar);
    const days = [...elapses!.text.matchAll(/(\d{4}-\d\d-\d\d) 03:17:00/g)].map(([, day]) => day);
    assertEquals(new Set(days).size, 3, elapses!.text);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});

Deno.test("cron's line runs the command in its folder, and speaks only when the exit code is not 0", async () => {
  const lines = read("crontab").split("\n").filter((line) => line !== "" && !line.startsWith("#"));
  const table = Object.fromEntries(lines.slice(0, -1).map((line) => line.split("=", 2)));
  assertEquals(Object.keys(table), ["METALORA", "RUNS"]);
  const [, schedule, action] = /^((?:\S+ ){5})(.*)$/.exec(lines.at(-1)!)!;
  assertMatch(schedule!, /^\d+ \d+ \* \* \* $/);
  assert(!action!.includes("%"), "cron takes % for the end of the line");
  const folder = Deno.makeTempDirSync();
  try {
    const program = join(folder, "metalora");
    for (const [code, said] of [[0, ""], [3, `metalora retrain in ${folder}: exit code 3, see retrain.log\n`]] as const) {
      Deno.writeTextFileSync(program, `#!/bin/sh\necho "$(pwd) $*"; exit ${code}\n`, { mode: 0o755 });
      const env = { METALORA: program, RUNS: folder };
      const { stdout } = await new Deno.Command("/bin/sh", { args: ["-c", action!], env, cwd: "/" }).output();
      assertEquals(new TextDecoder().decode(stdout), said);
    }
    assertEquals(Deno.readTextFileSync(join(folder, "retrain.log")), `${folder} retrain run.yaml\n`.repeat(2));
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});
