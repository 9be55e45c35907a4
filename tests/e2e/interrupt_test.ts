/** Runs that are watched, interrupted, killed, or meet another run in the same output. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { Endless } from "./endless.ts";
import { command, requireWhole, rows, type Workspace, workspace } from "./harness.ts";

for (const signal of ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"] as const) {
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

/** Samples enough to keep an evaluation, or one step, busy until it is stopped. */
const many = (count: number) => rows(10_000, count);

/** A run that is stopped inside something long, and resumed with everything short again. */
const LONG: { name: string; says: string; sets: string[]; prepare: (space: Workspace) => void; step: number }[] = [
  {
    name: "an evaluation",
    says: "step 2/",
    sets: ["train.steps=6", "train.eval_every=2", "train.log_every=1"],
    prepare: (space) => space.write("test.jsonl", many(12_000)),
    step: 2,
  },
  {
    name: "the evaluation at the end",
    says: "step 6/",
    sets: ["train.steps=6"],
    prepare: (space) => space.write("test.jsonl", many(12_000)),
    step: 6,
  },
  {
    name: "a validation batch, whose step it was",
    says: "memory planned",
    sets: ["train.steps=6", "reweight.validation={ batch_size: 3000, every: 4 }"],
    prepare: (space) => space.write("validation.jsonl", many(3000)),
    step: 0,
  },
  {
    name: "a step of many micro-batches",
    says: "memory planned",
    sets: ["train.steps=6", "train.accumulate=3000", "reweight.method=none"],
    prepare: () => {},
    step: 0,
  },
];

for (const { name, says, sets, prepare, step } of LONG) {
  Deno.test(`SIGTERM inside ${name} ends the run between two micro-batches, and resuming makes it whole`, async () => {
    using space = workspace();
    prepare(space);
    await using run = new Endless(space, "out", sets);
    await run.says(says);
    const { code, err } = await run.stop("SIGTERM");
    assertEquals(code, 143, err);
    assert(err.includes("stopping: the state is saved first; a second signal ends the run at once\n"), err);
    const saved = `stopped at step ${step}: saved in out/checkpoints/step-${step}. Go on with --resume\n`;
    assert(err.endsWith(step > 0 ? saved : "stopped before the first step: nothing to save\n"), err);
    assertEquals(space.checkpoints("out"), step > 0 ? [`step-${step}`] : []);
    // No line tells of what was not finished.
    const lines = space.read("out/metrics.jsonl").trimEnd().split("\n").filter((line) => line !== "");
    assertEquals(lines.length, step);
    if (step === 0) return;
    const all = ["reweight.method=meta-lora", "train.log_every=10", ...sets];
    await space.train("whole", all);
    await space.train("out", all, ["--threads=1", "--resume"]);
    assertEquals(await space.adapterHash("out"), await space.adapterHash("whole"));
    const kinds = (output: string) => space.jsonl(output, "metrics.jsonl").map(({ step, kind, loss }) => [step, kind, loss]);
    assertEquals(kinds("out"), kinds("whole"));
  });
}

Deno.test("a run that is begun anew by mistake says so, and keeps what the interrupted one had saved until it is complete", async () => {
  using space = workspace();
  const sets = ["checkpoints={ every: 1000, keep: 1 }"];
  let saved = "";
  {
    await using run = new Endless(space, "out", sets);
    await run.says("step 3000/"); // far more than the others come to
    await run.stop("SIGTERM");
    saved = space.checkpoints("out")[0]!;
  }
  const step = saved.slice("step-".length);
  const says =
    `out holds a run that was interrupted, saved at step ${step}; --resume goes on with it. This one starts from the ` +
    "beginning and keeps those checkpoints in out/previous until it is complete\n";
  assertEquals((await space.ok("train", "run.yaml", "--dry-run", "--threads=1")).err, says);
  {
    await using anew = new Endless(space, "out", sets);
    assert((await anew.says("step 10/")).startsWith(says));
    await anew.stop("SIGKILL");
  }
  {
    await using mistaken = new Endless(space, "out", sets, { options: ["--resume"] });
    await mistaken.says(
      `out/previous/checkpoints has step ${step} of a run before this one. To go on with that, put it in the place of ` +
        "out/checkpoints\n",
    );
    await mistaken.stop("SIGKILL");
  }
  // Put back, it goes on where it was.
  assert(!space.exists("out/checkpoints"));
  Deno.renameSync(space.file("out/previous/checkpoints"), space.file("out/checkpoints"));
  await using again = new Endless(space, "out", sets, { options: ["--resume"] });
  await again.says(`continuing from step ${step}\n`);
  await again.says("step ");
  await again.stop("SIGTERM");
  const { err } = await space.ok("train", "run.yaml", "--threads=1");
  assertMatch(err, /^out holds a run that was interrupted, /);
  assert(!space.exists("out/previous"));
  // Nor is anything said of a run that is complete.
  assert(!(await space.ok("train", "run.yaml", "--threads=1")).err.includes("interrupted"));
});

Deno.test("a second signal ends a run at once, and the next one goes on from the last checkpoint", async () => {
  using space = workspace();
  // One micro-batch that takes long: nothing looks at the first signal before it is through.
  const sets = ["train.batch_size=6000", "train.accumulate=2", "reweight.method=none"];
  await using run = new Endless(space, "out", sets);
  await run.says("memory planned");
  run.child.kill("SIGTERM");
  await run.says("a second signal ends the run at once");
  const { code, signal, err } = await run.stop("SIGINT");
  assertEquals([code, signal], [130, null]);
  assert(!err.includes("stopped at") && !err.includes("stopped before"), err);
  assert(!space.exists("out/.lock"));
  await space.train("out", ["train.steps=2"]);
});

Deno.test("a signal right after a run has made its folder, before there is anything else, leaves nothing of it", async () => {
  using space = workspace();
  await using run = new Endless(space, "new/out", [], { options: ["--status=127.0.0.1:0"] });
  while (!space.exists("new/out/.lock")) await new Promise((resolve) => setTimeout(resolve, 1));
  const { code, signal, err } = await run.stop("SIGTERM");
  assertEquals([code, signal, space.exists("new")], [143, null, false], err);
  assert(err.endsWith("stopped before training began: nothing to save\n"), err);
});

Deno.test("a demo that is stopped says so, and leaves no lock", async () => {
  using space = workspace();
  const child = command(["demo", "--threads=1", "--output=demo"], space.path).spawn();
  const reader = child.stderr.pipeThrough(new TextDecoderStream()).getReader();
  let err = "";
  while (!err.includes("base model, not trained")) err += (await reader.read()).value ?? assert(false, err);
  child.kill("SIGINT");
  for (let read; !(read = await reader.read()).done;) err += read.value;
  const [{ code, signal }] = await Promise.all([child.status, child.stdout.cancel()]);
  assertEquals([code, signal, space.exists("demo/.lock")], [143, null, false], err);
  assert(err.endsWith("\nstopped: the demo has not come to demo/summary.json. Run it again\n"), err);
});

Deno.test("a terminal that hangs up twice is one signal, and none under nohup", async () => {
  using space = workspace();
  await using run = new Endless(space, "out");
  await run.says("step 10/");
  run.child.kill("SIGHUP");
  const { code, err } = await run.stop("SIGHUP");
  assertEquals(code, 143, err);
  assertMatch(err, /\nstopped at step \d+: saved in /);
  await using other = new Endless(space, "other", [], { starter: ["nohup"] });
  await other.says("step 10/");
  other.child.kill("SIGHUP");
  await other.says("step 2000/");
  assertEquals((await other.stop("SIGTERM")).code, 143);
});

Deno.test("train --json says on stdout where a signal stopped it", async () => {
  using space = workspace();
  const args = ["train", "run.yaml", "--threads=1", "--json", "--set", "train.steps=1000000"];
  const child = command(args, space.path).spawn();
  const out = new Response(child.stdout).json();
  const reader = child.stderr.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; !text.includes("step 10/"); text += (await reader.read()).value ?? assert(false, text));
  child.kill("SIGTERM");
  while (!(await reader.read()).done);
  const { error, step, ...rest } = await out;
  assertEquals((await child.status).code, 143);
  assertEquals(error, `stopped at step ${step}: saved in out/checkpoints/step-${step}. Go on with --resume`);
  assertEquals(rest, { exit_code: 143, checkpoint: `out/checkpoints/step-${step}` });
});

Deno.test("train --resume says where it goes on, where it begins, and that a complete run needs nothing", async () => {
  using space = workspace();
  const sets = ["train.steps=20", "checkpoints.every=10"].flatMap((set) => ["--set", set]);
  const resume = ["train", "run.yaml", "--threads=1", "--resume", "--json", ...sets];
  const planned = async (...args: string[]) => (await space.ok(...resume, "--dry-run", ...args)).err;
  assertEquals(await planned(), "nothing to resume in out: starting from the beginning\n");
  const first = await space.ok(...resume);
  assert(first.err.includes("nothing to resume in out: starting from the beginning\n"), first.err);
  const again = await space.ok(...resume);
  const { steps, loss, output, test } = JSON.parse(first.out);
  const told = JSON.parse(again.out);
  assertEquals(Object.keys(told).sort(), Object.keys(JSON.parse(first.out)).sort());
  assertEquals([told.steps, told.loss, told.output, told.test], [steps, loss, output, test]);
  assert(again.err.endsWith("nothing to do: the run in out is complete. Train without --resume to make it anew\n"), again.err);
  assertEquals(await planned(), "nothing to do: the run in out is complete. Train without --resume to make it anew\n");
  const changed = await space.run(...resume, "--set", "train.steps=25");
  assertEquals(changed.code, 2);
  assert(
    changed.err.endsWith(
      "metalora: Cannot resume out: its configuration has changed: train.steps: 20 -> 25. Set it back, or allow it: " +
        "--allow-change train.steps\n",
    ),
    changed.err,
  );
  assertEquals(await planned("--set", "train.steps=25", "--allow-change=train.steps"), "continuing from step 20\n");
  const allowed = await space.ok(...resume, "--set", "train.steps=25", "--allow-change=train.steps");
  assertEquals(JSON.parse(allowed.out).steps, 25);
  for (const more of [[], ["--dry-run"]]) {
    const shorter = await space.run(...resume, "--set", "train.steps=15", "--allow-change=train.steps", ...more);
    const says =
      "Cannot resume out: it is at step 20 already, beyond the 15 steps of this run. Give it more steps, or train without " +
      "--resume";
    assertEquals([shorter.code, shorter.err.trimEnd().split("\n").at(-1)], [2, `metalora: ${says}`]);
  }
  assert(allowed.err.includes("continuing from step 20\n"), allowed.err);
  for (
    const [args, says] of [
      [["--allow-change=train.steps"], "Cannot use --allow-change without --resume"],
      [
        ["--resume", "--allow-change=train.stops"],
        "Cannot use --allow-change train.stops: there is no such key. Did you mean 'train.steps'?",
      ],
    ] as const
  ) {
    const refused = await space.run("train", "run.yaml", ...args);
    assertEquals([refused.code, refused.err], [2, `metalora: ${says}\n`]);
  }
});

Deno.test("train --resume waits for no named pipe in the place of a checkpoint's manifest or of the configuration", async () => {
  using space = workspace();
  const pipe = (path: string) => {
    Deno.removeSync(space.file(path));
    assert(new Deno.Command("mkfifo", { args: [space.file(path)] }).outputSync().success);
  };
  const sets = ["train.steps=20", "checkpoints={ every: 10, keep: 2 }"];
  {
    await using run = new Endless(space, "out", sets.slice(1));
    await run.says("step 30/");
    await run.stop("SIGTERM");
  }
  const [newest] = space.checkpoints("out").sort((a, b) => Number(b.slice(5)) - Number(a.slice(5)));
  pipe(`out/checkpoints/${newest}/manifest.json`);
  await using resumed = new Endless(space, "out", sets.slice(1), { options: ["--resume"] });
  await resumed.says(`passing over the checkpoint of step ${newest!.slice(5)}: manifest.json is missing or no JSON; `);
  await resumed.stop("SIGTERM");
  await space.train("complete", sets);
  pipe("complete/config.yaml");
  const settings = ["output=complete", ...sets].flatMap((set) => ["--set", set]);
  const { code, err } = await space.run("train", "run.yaml", "--threads=1", "--resume", ...settings);
  assertEquals([code, err.split("\n").length], [2, 2], err);
  assertMatch(err, /^metalora: Cannot use the output complete: it holds 'config\.yaml', but no configuration /);
});

Deno.test("a disk that is full when a checkpoint is written ends the run with one line; the checkpoint before it is whole", async () => {
  using space = workspace();
  // 128 KiB a file: metrics.jsonl outgrows that after some hundred steps, and so does no file of the first checkpoints.
  const sets = ["train.steps=5000", "checkpoints={ every: 50, keep: 2 }"].flatMap((set) => ["--set", set]);
  const { code, err } = await space.runLimited(256, "train", "run.yaml", "--threads=1", ...sets);
  assertEquals(code, 1, err);
  assertMatch(
    err,
    /\nmetalora: Cannot write the output out: File too large.* Choose another output, or check .* the free space\n$/,
  );
  const checkpoints = space.checkpoints("out");
  assertEquals(checkpoints.length, 2);
  for (const name of checkpoints) await requireWhole(space, name);
  assertEquals(space.tree("out").filter((path) => path.includes(".tmp")), []);
  // With room again it goes on.
  const step = Math.max(...checkpoints.map((name) => Number(name.slice(5))));
  const resumed = await space.ok(
    "train",
    "run.yaml",
    "--threads=1",
    "--resume",
    ...sets,
    `--set=train.steps=${step + 5}`,
    "--allow-change=train",
  );
  assert(resumed.err.includes(`continuing from step ${step}\n`), resumed.err);
});

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
