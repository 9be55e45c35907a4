/** Standard output and error that take nothing, such as a log on a full disk, and what `--json` says about a failure. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { programArguments, text, type Workspace, workspace } from "./harness.ts";

const FULL = "No space left on device (os error 28)";

/** Runs with redirections of a shell, such as `2>/dev/full`; behind a pipe, too, the exit code is the program's. */
async function redirected(space: Workspace, redirections: string, ...args: string[]) {
  const script = ["-o", "pipefail", "-c", `"$@" ${redirections}`, "bash", Deno.execPath(), ...programArguments(args)];
  const env = { NO_COLOR: "1" };
  return text(await new Deno.Command("bash", { args: script, cwd: space.path, env, stdin: "null" }).output());
}

const SHORT = ["--threads=1", "--device=cpu"];

Deno.test("a log on a full disk ends no training: what it would have said is lost, nothing else", async () => {
  using space = workspace();
  await space.train("out");
  const expected = await space.adapterHash("out");
  for (const [i, redirections] of ["2>/dev/full", ">/dev/full 2>&1", "2>&1 | :"].entries()) {
    const { code } = await redirected(space, redirections, "train", "run.yaml", ...SHORT, "--set", `output=run${i}`);
    assertEquals([code, await space.adapterHash(`run${i}`)], [0, expected], redirections);
    const failed = await redirected(space, redirections, "train", "nowhere.yaml", ...SHORT);
    assertEquals(failed.code, 2, `${redirections}: a failure is one all the same`);
  }
});

Deno.test("a result that standard output does not take: 1 for train --json, when everything is saved", async () => {
  using space = workspace();
  const { code, err } = await redirected(space, ">/dev/full", "train", "run.yaml", ...SHORT, "--json");
  assertEquals(code, 1);
  const last = err.trimEnd().split("\n").at(-1);
  const advice = "Free some space where it goes, or send it elsewhere";
  assertEquals(
    last,
    `metalora: Cannot write to standard output: ${FULL}. ${advice} (the run is complete, its adapter is in out/adapter)`,
  );
  assert(space.exists("out/adapter/adapter_model.safetensors") && space.exists("out/report.html"));
  const lost = await redirected(space, ">/dev/full", "eval", "run.yaml", ...SHORT);
  assertEquals([lost.code, lost.err], [
    1,
    `test       test.jsonl: 5 samples\nmetalora: Cannot write to standard output: ${FULL}. ${advice}\n`,
  ]);
});

Deno.test("retrain publishes although nothing that it says can be written, and exits and records as it went", async () => {
  using space = workspace();
  const first = await redirected(space, ">/dev/full 2>&1", "retrain", "run.yaml", ...SHORT, "--json");
  assertEquals([first.code, space.json("out/result.json").outcome], [0, "published"]);
  assertEquals(Deno.readLinkSync(space.file("out/current")), "releases/0001");
  space.write("train.jsonl", space.jsonl("train.jsonl").map((row) => ({ ...row, completion: " 9Z#9Z#9Z" })));
  const worse = ["--set", "retrain.from=fresh", "--set", "train.steps=30"];
  const second = await redirected(space, ">/dev/full", "retrain", "run.yaml", ...SHORT, ...worse);
  assertEquals([second.code, space.json("out/result.json").outcome], [3, "rejected"]);
  assertMatch(
    second.err,
    /\nmetalora: Cannot write to standard output: .* \(the outcome is 'rejected', out\/result\.json has the record\)\n$/,
  );
  assertEquals(space.jsonl("out/history.jsonl").map(({ outcome }) => outcome), ["published", "rejected"]);
});

Deno.test("a failure with --json is one object on stdout beside the line on stderr", async () => {
  using space = workspace();
  space.write("broken.yaml", "model: model\n");
  Deno.mkdirSync(space.file("empty"));
  const cases: [code: number, ...args: string[]][] = [
    [2, "train", "nowhere.yaml"],
    [2, "train", "run.yaml", "--dry-run", "--set", "model=empty"],
    [2, "retrain", "run.yaml", "--set", "data.train.path=nowhere.jsonl"],
    [2, "eval", "run.yaml", "--set", "data.test.path=nowhere.jsonl"],
    [2, "score", "run.yaml", "--set", "data.validation=null"],
    [2, "bench", "--model-shape=nowhere"],
    [2, "doctor", "--frobnicate"],
    [1, "retrain", "run.yaml", "--rollback", "--set", "output=elsewhere"],
  ];
  for (const [code, ...args] of cases) {
    const result = await space.run(...args, "--json");
    const shown = `${args.join(" ")}: ${JSON.stringify(result)}`;
    const line = result.err.trimEnd().split("\n").at(-1)!;
    assertEquals([result.code, line.startsWith("metalora: ")], [code, true], shown);
    assertEquals(JSON.parse(result.out), { error: line.slice("metalora: ".length), exit_code: code }, shown);
  }
});

/** A pipe that takes 4096 bytes at a time and is non-blocking, as some programs leave theirs; what a program wrote to it. */
const NON_BLOCKING = `
import fcntl, os, subprocess, sys, time
read, write = os.pipe()
fcntl.fcntl(write, 1031, 4096)  # F_SETPIPE_SZ
fcntl.fcntl(write, fcntl.F_SETFL, fcntl.fcntl(write, fcntl.F_GETFL) | os.O_NONBLOCK)
child = subprocess.Popen(sys.argv[1:], stdout=write)
os.close(write)
time.sleep(0.3)
while piece := os.read(read, 1000):
    sys.stdout.buffer.write(piece)
    time.sleep(0.002)
sys.exit(child.wait())
`;

const python = new Deno.Command("sh", { args: ["-c", "command -v python3"], stdout: "null" }).outputSync().success;
if (!python) console.log("skipped: python3 is not installed");

Deno.test({
  name: "a pipe that would block takes everything in the end, once",
  ignore: !python,
  fn: async () => {
    using space = workspace();
    for (const args of [["config", "schema"], ["help", "train"]]) {
      const { out } = await space.ok(...args);
      const piped = ["-c", NON_BLOCKING, Deno.execPath(), ...programArguments(args)];
      const options = { args: piped, cwd: space.path, env: { NO_COLOR: "1" } };
      assertEquals(text(await new Deno.Command("python3", options).output()), { code: 0, out, err: "" });
    }
  },
});
