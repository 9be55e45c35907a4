/** Runs that are watched, interrupted, killed, or meet another run in the same output. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { command, sha256, type Workspace, workspace } from "./harness.ts";

const PATIENCE = 60_000; // milliseconds until something that takes less than one second has failed

/** Makes sure that a checkpoint is as its manifest says. */
async function requireWhole(space: Workspace, name: string): Promise<void> {
  const manifest: Record<string, { bytes: number; sha256: string }> = space.json("out/checkpoints", name, "manifest.json");
  for (const [file, { sha256: hash }] of Object.entries(manifest)) {
    assertEquals(await sha256(Deno.readFileSync(space.file("out/checkpoints", name, file))), hash);
  }
}

/** A run that goes on until it is stopped. */
class Endless implements AsyncDisposable {
  readonly child: Deno.ChildProcess;
  #stderr = "";
  readonly #read: Promise<void>;
  #waiting: { text: string; found: () => void } | undefined;

  constructor(space: Workspace, output: string, sets: readonly string[] = []) {
    const all = [`output=${output}`, "train.steps=1000000", "train.log_every=10", "reweight.method=meta-lora", ...sets];
    this.child = command(["train", "run.yaml", "--threads=1", ...all.flatMap((set) => ["--set", set])], space.path).spawn();
    this.#read = this.#collect();
  }

  async #collect(): Promise<void> {
    for await (const text of this.child.stderr.pipeThrough(new TextDecoderStream())) {
      this.#stderr += text;
      if (this.#waiting && this.#stderr.includes(this.#waiting.text)) this.#waiting.found();
    }
    this.#waiting?.found(); // it has ended; the caller sees by what it says
  }

  /** What it has said, once it has said `text`. */
  async says(text: string): Promise<string> {
    if (!this.#stderr.includes(text)) {
      const { promise, resolve } = Promise.withResolvers<void>();
      const deadline = setTimeout(resolve, PATIENCE);
      this.#waiting = { text, found: resolve };
      await promise;
      clearTimeout(deadline);
    }
    assert(this.#stderr.includes(text), `'${text}' is not in: ${this.#stderr}`);
    return this.#stderr;
  }

  /** Stops it. @returns its exit code, and the signal that it ended by when it did not end by itself */
  async stop(signal: Deno.Signal): Promise<{ code: number; signal: string | null; err: string }> {
    this.child.kill(signal);
    const [status] = await Promise.all([this.child.status, this.#read, this.child.stdout.cancel()]);
    return { code: status.code, signal: status.signal, err: this.#stderr };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.stop("SIGKILL");
    } catch { // it has been stopped
    }
  }
}

for (const signal of ["SIGINT", "SIGTERM", "SIGKILL"] as const) {
  Deno.test(`${signal} while training leaves no adapter, only whole checkpoints, and nothing that stops the next run`, async () => {
    using space = workspace();
    await using run = new Endless(space, "out", ["checkpoints={ every: 1, keep: 3 }"]);
    await run.says("step 40/");
    const ended = await run.stop(signal);
    assertEquals([ended.code, ended.signal], signal === "SIGKILL" ? [137, signal] : [143, null]);
    assert(!space.exists("out/adapter"));
    const checkpoints = space.checkpoints("out");
    assert(checkpoints.length >= 2, checkpoints.join());
    for (const name of checkpoints) await requireWhole(space, name);
    if (signal !== "SIGKILL") {
      // Saved where it was stopped, and said so.
      const step = Number(
        /stopped at step (\d+): saved in out\/checkpoints\/step-\1\. Go on with --resume\n$/.exec(ended.err)![1],
      );
      assertEquals(Math.max(...checkpoints.map((name) => Number(name.slice(5)))), step);
      assertEquals(space.jsonl("out/metrics.jsonl").at(-1).step, step);
      assert(!space.exists("out/.lock"));
    }
    // Every line that stands in the metrics is a whole one.
    const text = space.read("out/metrics.jsonl");
    assert(text.split("\n").slice(0, -1).every((line) => JSON.parse(line).step > 0));
    // As if it had been killed while it wrote the adapter.
    Deno.mkdirSync(space.file("out/.adapter.77-0.tmp"));
    await space.train("out");
    const expected = ["adapter/", "config.yaml", "metrics.jsonl", "report.html", "weights.jsonl"];
    assertEquals(space.tree("out").filter((path) => !path.startsWith("adapter/a")), expected);
  });
}

Deno.test("an output that another run holds is refused with exit code 75 and left alone", async () => {
  using space = workspace();
  await using run = new Endless(space, "out");
  await run.says("step 10/");
  const second = await space.run("train", "run.yaml", "--threads=1");
  assertEquals([second.code, second.out], [75, ""]);
  assertEquals(
    second.err,
    `metalora: Cannot use the output out: the run of process ${run.child.pid} holds it. Wait for it or choose another output\n`,
  );
  // The first one goes on, and other outputs are free.
  await run.says("step 100/");
  await space.train("elsewhere");
  assertEquals((await run.stop("SIGTERM")).code, 143);
});

Deno.test("a lock file that nobody holds is no lock, even if its process number is in use again", async () => {
  using space = workspace();
  Deno.mkdirSync(space.file("out"));
  // Deno 2.9 and later ask the kernel; before, the number counts.
  const inUse = "tryLockSync" in Deno.FsFile.prototype ? Deno.pid : 2 ** 30;
  space.write("out/.lock", `${inUse}\n`);
  await space.train("out");
  assert(!space.exists("out/.lock"));
});

Deno.test("in a pipe, progress is plain lines on stderr and stdout has the result alone", async () => {
  using space = workspace();
  const settings = ["train.steps=25", "train.log_every=10", "train.eval_every=20", "reweight.method=meta-lora"].flatMap((
    set,
  ) => ["--set", set]);
  const { out, err } = await space.ok("train", "run.yaml", "--threads=1", ...settings, "--json");
  assertEquals(out.split("\n").length, 2);
  // deno-lint-ignore no-control-regex
  assert(!/[\r\x1b]/.test(out + err), err);
  const lines = err.trimEnd().split("\n");
  assertMatch(lines[0]!, /^model: 3,712 adapter parameters, method meta-lora \(exact, mix\), 25 steps$/);
  assertEquals(lines.slice(1, 4), [
    "train      train.jsonl: 20 samples",
    "validation validation.jsonl: 6 samples",
    "test       test.jsonl: 5 samples",
  ]);
  assertMatch(lines[4]!, /, 1 thread; memory planned \d+ MiB$/);
  const steps = lines.filter((line) => /^step \d+\/25 {2}/.test(line));
  assertEquals(steps.map((line) => line.split(" ")[1]), ["10/25", "20/25", "25/25"]);
  for (const line of steps) {
    assertMatch(line, /^step \d+\/25 {2}loss \d\.\d{4} {2}[\d,]+ tokens\/s( {2}ESS \d\.\d\/4)? {2}(\d+s left|done in \d+s)$/);
  }
  assertMatch(
    lines.find((line) => line.startsWith("step 20: validation"))!,
    /^step 20: validation loss \d\.\d{4}, perplexity [\d.]+, /,
  );
});
