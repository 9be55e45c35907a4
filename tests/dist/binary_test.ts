/** A real binary, compiled with the runtime that npm carries, on its own: what a person downloads and starts. */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { join } from "node:path";
import { commands } from "../../lib/cli/commands.ts";
import { VERSION } from "../../lib/version.ts";
import { inTurns, type Result, ROOT, rows, type Workspace, workspace } from "../e2e/harness.ts";
import { buildBinary, fetchRuntime } from "./runtime.ts";

const runtime = await fetchRuntime();
const ignore = typeof runtime === "string";
if (ignore) console.log(`skipped: no binary is compiled here, ${runtime}`);

const folder = ignore ? "" : Deno.makeTempDirSync({ prefix: "metalora-dist-" });
const binary = join(folder, "metalora");

Deno.test.beforeAll(async () => {
  if (!ignore) await buildBinary(runtime, binary);
});
Deno.test.afterAll(() => {
  if (!ignore) Deno.removeSync(folder, { recursive: true });
});

/** Runs a program with nothing of this process's environment but what is given. */
async function start(program: string, args: readonly string[], cwd: string, env: Record<string, string> = {}): Promise<Result> {
  const { code, stdout, stderr } = await new Deno.Command(program, {
    args: [...args],
    cwd,
    clearEnv: true,
    env: { PATH: "/usr/bin:/bin", HOME: cwd, TMPDIR: cwd, NO_COLOR: "1", ...env },
    stdin: "null",
  }).output();
  return { code, out: new TextDecoder().decode(stdout), err: new TextDecoder().decode(stderr) };
}

/** `metalora train run.yaml` of a workspace; the hash of the adapter that it wrote. */
async function train(space: Workspace, output: string, program = binary): Promise<string> {
  const sets = ["reweight.method=meta-lora", `output=${output}`].flatMap((set) => ["--set", set]);
  const { code, out, err } = await start(
    program,
    ["train", "run.yaml", "--device=cpu", "--threads=1", "--json", ...sets],
    space.path,
  );
  assertEquals(code, 0, err);
  assertEquals(JSON.parse(out).steps, 4);
  return await space.adapterHash(output);
}

Deno.test("the binary has the size that was promised and nothing of the machine that built it", { ignore }, () => {
  const bytes = Deno.readFileSync(binary);
  assert(bytes.length < 130e6, `${bytes.length} bytes`);
  const text = new TextDecoder("latin1").decode(bytes);
  const foreign = {
    "the project's folder": `${ROOT}lib/`,
    "a test package": "fast-check/lib",
    "a test's module": "tests/e2e/harness.ts",
  };
  for (const [what, mark] of Object.entries(foreign)) assert(!text.includes(mark), `${what} is in the binary`);
});

Deno.test("the binary starts every command from an empty folder", { ignore }, async () => {
  using space = workspace();
  const empty = space.file("empty");
  Deno.mkdirSync(empty);
  assertEquals(await start(binary, ["--version"], empty), { code: 0, out: `metalora ${VERSION}\n`, err: "" });
  const { out: licences } = await start(binary, ["--licences"], empty);
  for (const text of ["Apache License", "yaml 2", "zod 4", "Eemeli Aro", "the Deno authors"]) {
    assertStringIncludes(licences, text);
  }
  await inTurns(commands.map(({ name }) => async () => {
    const { code, out, err } = await start(binary, [...name.split(" "), "--help"], empty);
    assertEquals([code, err], [0, ""], name);
    assertStringIncludes(out, `metalora ${name}`);
  }));
  assertEquals([...Deno.readDirSync(empty)].map((entry) => entry.name), [], "--help wrote something");
});

Deno.test(
  "the binary trains, twice at once and from read-only media, and writes the same adapter each time",
  { ignore },
  async () => {
    using space = workspace();
    const both = await Promise.all([train(space, "a"), train(space, "b")]);
    assertEquals(both[0], both[1]);

    const media = space.file("media");
    Deno.mkdirSync(media);
    Deno.copyFileSync(binary, join(media, "metalora"));
    if (await canMount()) {
      const script = `mount --bind media media && mount -o remount,ro,bind media && ! touch media/x 2>/dev/null && exec ` +
        `media/metalora train run.yaml --device=cpu --threads=1 --set output=c --set reweight.method=meta-lora`;
      const { code, err } = await start("unshare", ["-rm", "sh", "-c", script], space.path);
      assertEquals(code, 0, err);
      assertEquals(await space.adapterHash("c"), both[0]);
    } else {
      Deno.chmodSync(media, 0o555);
      assertEquals(await train(space, "c", join(media, "metalora")), both[0]);
      Deno.chmodSync(media, 0o755);
    }
  },
);

Deno.test("the binary serves its dashboard while it trains, and saves when it is stopped", { ignore }, async () => {
  using space = workspace();
  const sets = ["train.steps=100000", "checkpoints.every=0"].flatMap((set) => ["--set", set]);
  const run = new Deno.Command(binary, {
    args: ["train", "run.yaml", "--device=cpu", "--threads=1", "--status", "127.0.0.1:0", ...sets],
    cwd: space.path,
    env: { TMPDIR: space.path, NO_COLOR: "1" },
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).spawn();
  const lines = run.stderr.pipeThrough(new TextDecoderStream()).getReader();
  let told = "";
  while (!/step +\d/.test(told)) {
    const { value, done } = await lines.read();
    assert(!done, told);
    told += value;
  }
  const [url] = /http:\/\/\S+\//.exec(told)!;
  const status = await (await fetch(`${url}status`)).json();
  assertEquals(typeof status.version, "number", JSON.stringify(status).slice(0, 300));
  const page = await fetch(url);
  assertEquals([page.status, page.headers.get("content-type")?.split(";")[0]], [200, "text/html"]);
  assertStringIncludes(await page.text(), "<script");
  run.kill("SIGTERM");
  while (!(await lines.read()).done);
  assertEquals((await run.status).code, 143);
  assertEquals(space.checkpoints("out").length, 1);
});

Deno.test(
  "the binary retrains: publishes, finds nothing to do, is watched at its next training, and goes back",
  { ignore },
  async () => {
    using space = workspace();
    const cpu = ["--device=cpu", "--threads=1"];
    const night = async (...args: string[]) => {
      const { code, out, err } = await start(binary, ["retrain", "run.yaml", "--json", ...args], space.path);
      assertEquals(code, 0, err);
      const { outcome, release, current } = JSON.parse(out);
      return [outcome, release, current, Deno.readLinkSync(space.file("out/current"))];
    };
    assertEquals(await night(...cpu), ["published", "0001", "0001", "releases/0001"]);
    assertEquals(await night(...cpu), ["unchanged", null, "0001", "releases/0001"]);

    space.write("train.jsonl", rows(20, 20));
    const child = new Deno.Command(binary, {
      args: ["retrain", "run.yaml", "--json", ...cpu, "--status", "127.0.0.1:0", "--set", "train.steps=5000"],
      cwd: space.path,
      env: { TMPDIR: space.path, NO_COLOR: "1" },
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    const lines = child.stderr.pipeThrough(new TextDecoderStream()).getReader();
    let told = "";
    while (!/step +\d/.test(told)) told += (await lines.read()).value ?? assert(false, told);
    const [url] = /http:\/\/\S+\//.exec(told)!;
    const { state, steps } = await (await fetch(`${url}status`)).json();
    assertEquals([state, steps], ["training", 5000]);
    assertStringIncludes(await (await fetch(url)).text(), "<script");
    while (!(await lines.read()).done);
    const [{ code }, record] = await Promise.all([child.status, new Response(child.stdout).json()]);
    assertEquals([code, record.outcome, record.release, record.start], [0, "published", "0002", "0001"]);

    assertEquals(await night("--rollback"), ["rolled back", null, "0001", "releases/0001"]);
  },
);

Deno.test("the binary runs its demo, with the model that is inside", { ignore }, async () => {
  using space = workspace();
  const args = ["demo", "--seeds=1", "--set", "train.steps=2", "--output", "demo", "--json"];
  const { code, out, err } = await start(binary, args, space.path);
  assertEquals(code, 0, err);
  assertEquals(JSON.parse(out).runs.length, 6);
  assert(space.exists("demo/model/model.safetensors"));
});

Deno.test("a temporary folder that cannot be used gives one line with the remedy", { ignore }, async () => {
  using space = workspace();
  const args = ["bench", "--dry-run", "--device=cpu"];
  const folderless = await start(binary, args, space.path, { TMPDIR: "/proc" });
  assertEquals([folderless.code, folderless.out], [1, ""]);
  assertMatch(folderless.err, /^metalora: Cannot load the cpu library: .* \/proc, which is full, read-only .* Set TMPDIR .*\n$/);

  if (!await canMount()) return console.log("skipped: nothing may be mounted here, so no folder is noexec");
  const script = `mkdir t && mount -t tmpfs -o noexec tmpfs t && TMPDIR=$PWD/t exec "$@"`;
  const noexec = await start("unshare", ["-rm", "sh", "-c", script, "sh", binary, ...args], space.path);
  assertEquals([noexec.code, noexec.out], [1, ""]);
  assertMatch(noexec.err, /^metalora: Cannot load the cpu library: .*\/t, where nothing may be executed .* Set TMPDIR .*\n$/);
});

/** Whether a process may mount in a name space of its own. */
async function canMount(): Promise<boolean> {
  try {
    const args = ["-rm", "sh", "-c", "mount -t tmpfs -o noexec tmpfs /mnt"];
    return (await new Deno.Command("unshare", { args, stderr: "null" }).output()).success;
  } catch {
    return false;
  }
}
