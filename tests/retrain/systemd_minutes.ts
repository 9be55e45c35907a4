/**
 * Retraining by systemd, every minute for four minutes: too long for the tests, so it is run by hand, as root.
 *
 *   deno run -A tests/retrain/systemd_minutes.ts [BINARY]
 *
 * Boots a systemd of its own in new name spaces (systemd_boot.sh) with the units of configs/ as they are and a drop-in that lets
 * the timer fire each minute. BINARY is dist/metalora unless told; where there is none, one is compiled with the runtime of
 * tests/dist/runtime.ts. Minute 1 publishes, 2 finds nothing to do, 3 has new data and is stopped while it trains, 4 goes on and
 * publishes. Then the timer gets its own schedule back, and a night that was missed is made up for at once.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "node:path";
import type { RetrainRecord } from "../../lib/retrain/records.ts";
import { buildBinary, fetchRuntime } from "../dist/runtime.ts";
import { ROOT, rows, workspace } from "../e2e/harness.ts";

const MINUTE = 60_000;
const SERVICE = "metalora-retrain.service", TIMER = "metalora-retrain.timer";
const NOW = "[Timer]\nRandomizedDelaySec=0\nAccuracySec=1s\n";

const say = (text: string) => console.log(`${new Date().toISOString().slice(11, 19)} ${text}`);
const pause = () => new Promise((resolve) => setTimeout(resolve, 200));

async function output(program: string, ...args: string[]): Promise<{ code: number; text: string }> {
  const { code, stdout, stderr } = await new Deno.Command(program, { args }).output();
  return { code, text: new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr) };
}

function exists(path: string): boolean {
  try {
    return Deno.statSync(path) !== null;
  } catch {
    return false;
  }
}

if (Deno.uid() !== 0 || !exists("/lib/systemd/systemd") || !exists("/usr/bin/nsenter")) {
  console.log("skipped: needs root, systemd and util-linux (Debian: apt-get install systemd util-linux)");
  Deno.exit(0);
}

using space = workspace();
using around = {
  path: Deno.makeTempDirSync({ prefix: "metalora-systemd-" }),
  [Symbol.dispose]() {
    Deno.removeSync(this.path, { recursive: true });
  },
};
const units = join(around.path, "units"), dropIns = join(units, `${TIMER}.d`);
Deno.mkdirSync(dropIns, { recursive: true });
for (const name of [SERVICE, TIMER]) Deno.copyFileSync(join(ROOT, "configs", name), join(units, name));
Deno.writeTextFileSync(join(dropIns, "minute.conf"), `${NOW}OnCalendar=\nOnCalendar=*-*-* *:*:00\n`);
const folder = join(around.path, "metalora");
Deno.mkdirSync(`${folder}.root`);
const program = await findBinary(join(around.path, "program"));
Deno.renameSync(space.path, folder);
Deno.mkdirSync(space.path); // for whoever tidies up

async function findBinary(built: string): Promise<string> {
  const given = Deno.args[0] ?? join(ROOT, "dist/metalora");
  if (exists(given)) return Deno.realPathSync(given);
  const runtime = await fetchRuntime();
  if (typeof runtime === "string") throw new Error(`Cannot run ${given}: there is no such file, and ${runtime}`);
  await buildBinary(runtime, built);
  return built;
}

const file = (name: string) => join(folder, name);
const write = (name: string, text: string) => Deno.writeTextFileSync(file(name), text);
const history = (): RetrainRecord[] =>
  Deno.readTextFileSync(file("out/history.jsonl")).trimEnd().split("\n").map((line) => JSON.parse(line));

const spaces = ["--mount", "--pid", "--ipc", "--uts", "--net", "--fork", "--kill-child"];
const boot = new URL("systemd_boot.sh", import.meta.url).pathname;
const machine = new Deno.Command("unshare", { args: [...spaces, "sh", boot, folder, program, units], stdin: "null" }).spawn();
let running = true;
machine.status.then(() => running = false);

/** The systemd, by its number outside: the only child of `unshare`. */
function init(): string {
  return Deno.readTextFileSync(`/proc/${machine.pid}/task/${machine.pid}/children`).trim();
}

/** Runs a program of that machine. */
async function run(args: string[]): Promise<{ code: number; text: string }> {
  assert(running, "the machine has ended");
  return await output("nsenter", "--target", init(), "--all", ...args);
}

const inside = async (...args: string[]) => (await run(args)).text.trim();

async function ok(...args: string[]): Promise<void> {
  const { code, text } = await run(args);
  assertEquals(code, 0, `${args.join(" ")}: ${text}`);
}

async function until(what: string, done: () => Promise<boolean>, patience = 2.5 * MINUTE): Promise<void> {
  for (const end = performance.now() + patience; !await done(); await pause()) {
    assert(performance.now() < end, `${what}: never\n${running ? await inside("journalctl", "--no-pager") : ""}`);
  }
}

/** Waits for a text in what the service said, behind the text before it. */
let read = 0;
async function says(text: string): Promise<void> {
  await until(text, async () => {
    const log = await inside("journalctl", "--unit", SERVICE, "--output=cat", "--no-pager");
    const at = log.indexOf(text, read);
    if (at < 0) return false;
    read = at + text.length;
    say(`journal: ${log.slice(log.lastIndexOf("\n", at) + 1).split("\n")[0]}`);
    return true;
  });
}

async function property(name: string): Promise<string> {
  return await inside("systemctl", "show", "--value", "--property", name, SERVICE);
}

/** What the service's process may do, as the kernel tells it. */
async function checkSandbox(): Promise<void> {
  const pid = await property("MainPID");
  const status = await inside("cat", `/proc/${pid}/status`);
  assertMatch(status, /^Uid:\s+64990\s/m);
  assertMatch(status, /^NoNewPrivs:\s+1$/m);
  const mounts = (await inside("cat", `/proc/${pid}/mountinfo`)).split("\n").map((line) => line.split(" "));
  const options = (path: string) => mounts.findLast(([, , , , at]) => at === path)?.[5]?.split(",")[0];
  assertEquals(["/", "/usr", "/srv/metalora", "/tmp"].map(options), ["ro", "ro", "rw", "rw"]);
  assertEquals((await inside("sh", "-c", "ls /tmp | grep -v ^systemd-private- || true")).includes("metalora"), false);
  const unpacked = await inside("sh", "-c", `find /tmp/systemd-private-*-${SERVICE}-*/tmp -name '*.so'`);
  assertMatch(unpacked, /\.so$/);
  say(`process ${pid} of user metalora: no new privileges, everything read-only but /srv/metalora, /tmp its own, ${unpacked}`);
}

/** The control groups that the machine leaves behind; they empty a moment after it is gone. */
async function removeGroups(): Promise<void> {
  const mounted = Deno.readTextFileSync("/proc/mounts").split("\n").find((line) => line.split(" ")[2] === "cgroup2");
  if (mounted === undefined) return;
  const group = join(mounted.split(" ")[1]!, "metalora-test");
  const remove = ["-c", `find ${group} -depth -type d -exec rmdir {} + 2>/dev/null`];
  for (let i = 0; i < 20 && exists(group); i++, await pause()) await output("sh", ...remove);
}

try {
  await until(
    "systemd is up",
    async () => exists(`${folder}.root`) && (await inside("systemctl", "is-system-running")) === "running",
  );
  say(`${(await inside("systemctl", "--version")).split("\n")[0]} runs as process 1`);
  await ok("systemctl", "daemon-reload");
  await ok("systemctl", "enable", "--now", TIMER);
  await says("published release 0001");
  await says("nothing to do: data, configuration and base model are unchanged since attempt 1");

  write("train.jsonl", rows(20, 20).map((row) => JSON.stringify(row) + "\n").join(""));
  write("run.yaml", Deno.readTextFileSync(file("run.yaml")).replace("steps: 4", "steps: 20000"));
  await says("attempt 2, from release 0001");
  await says("step ");
  await checkSandbox();
  await ok("systemctl", "stop", SERVICE);
  await says("stopped at step");
  assertEquals([await property("Result"), await property("ExecMainStatus")], ["success", "143"]);
  assertEquals(await inside("systemctl", "--failed", "--quiet", "--no-legend"), "");
  await says("going on with attempt 2, which was interrupted");
  await says("continuing from step");
  await says("published release 0002");
  assertEquals(history().map(({ outcome, release }) => [outcome, release]), [
    ["published", "0001"],
    ["stopped", null],
    ["published", "0002"],
  ]);

  // The timer as it is; it was due the night before, says its stamp.
  await ok("systemctl", "stop", TIMER);
  await until("the service is at rest", async () => (await property("ActiveState")) === "inactive");
  await ok("sh", "-c", `printf '${NOW}' >/etc/systemd/system/${TIMER}.d/minute.conf`);
  await ok("systemctl", "daemon-reload");
  await ok("touch", "--date=3 days ago", `/var/lib/systemd/timers/stamp-${TIMER}`);
  await ok("systemctl", "start", TIMER);
  await says("nothing to do");
  say(`next: ${await inside("systemctl", "show", "--value", "--property", "NextElapseUSecRealtime", TIMER)}`);
} finally {
  if (running) machine.kill("SIGKILL"); // and with it, by --kill-child, its systemd and all below that
  await machine.status;
  await removeGroups();
}
say("systemd published, had nothing to do, stopped a training that went on later, and made up for a night that was missed");
