/** A run of `metalora train` from outside: what it writes, and that the same configuration gives the same bytes. */
import { FileLock } from "../../lib/train/lock.ts";
import { assert, assertEquals, assertMatch, assertNotEquals } from "@std/assert";
import { inTurns, readTensors, sha256, type Workspace, workspace } from "./harness.ts";

const GUIDED = ["reweight.method=meta-lora", "train.steps=8"];

Deno.test("train writes everything that design §5 names, and --json ends with the run's facts", async () => {
  using space = workspace();
  const sets = [...GUIDED, "checkpoints={ every: 3, keep: 2 }"];
  const result = await space.train("runs/a", sets);
  assertEquals(
    Object.keys(result).slice(0, 6),
    ["steps", "loss", "seconds", "tokens_per_second", "peak_memory_bytes", "output"],
  );
  assertEquals([result.steps, result.output], [8, "runs/a"]);
  assert(result.loss > 0 && result.loss < 6 && result.seconds > 0 && result.tokens_per_second > 0, JSON.stringify(result));
  assert(result.peak_memory_bytes > 30e6 && result.peak_memory_bytes < 400e6, JSON.stringify(result));
  assertEquals([result.validation.samples, result.test.samples], [6, 5]);

  assertEquals(space.tree("runs/a").filter((path) => !path.startsWith("checkpoints/step")), [
    "adapter/",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "checkpoints/",
    "config.yaml",
    "metrics.jsonl",
    "report.html",
    "weights.jsonl",
  ]);
  checkMetrics(space);
  checkWeights(space);
  await checkCheckpoints(space);
  checkAdapter(space);
});

/** 8 steps: a validation batch before training batches 0, 2 and 4, so 5 batches of training. */
function checkMetrics(space: Workspace): void {
  const lines = space.jsonl("runs/a/metrics.jsonl");
  const steps = lines.filter(({ kind }) => kind === "train" || kind === "validation");
  assertEquals(steps.map(({ step }) => step), [1, 2, 3, 4, 5, 6, 7, 8]);
  const kinds = ["validation", "train", "train", "validation", "train", "train", "validation", "train"];
  assertEquals(steps.map(({ kind }) => kind), kinds);
  for (const line of steps) {
    for (const key of ["epoch", "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "seconds", "memory_bytes"]) {
      assert(Number.isFinite(line[key]), `${key} in ${JSON.stringify(line)}`);
    }
    assertEquals("effective_sample_size" in line, line.kind === "train");
    if (line.kind !== "train") continue;
    assert(line.effective_sample_size >= 1 && line.effective_sample_size <= 4 + 1e-9, JSON.stringify(line));
    assert(line.max_weight >= 0.25 - 1e-9 && line.max_weight <= 1, JSON.stringify(line));
  }
  // Cosine from the peak to 0.
  assertEquals(steps.map(({ lr }) => Number(lr.toFixed(9))), steps.map((_, i) => cosine(1e-2, i, 8)));
  const evaluations = lines.filter(({ kind }) => kind.endsWith("evaluation"));
  assertEquals(evaluations.map(({ kind, step }) => [kind, step]), [["validation evaluation", 8], ["test evaluation", 8]]);
}

const cosine = (peak: number, step: number, total: number) =>
  Number((peak * 0.5 * (1 + Math.cos(Math.PI * step / total))).toFixed(9));

function checkWeights(space: Workspace): void {
  const lines = space.jsonl("runs/a/weights.jsonl");
  assertEquals(lines.map(({ id }) => id), Array.from({ length: 20 }, (_, i) => `row-${i}`));
  // 5 batches of 4 are each of the 20 samples once.
  assertEquals(lines.map(({ seen }) => seen), lines.map(() => 1));
  const total = lines.reduce((sum, { weight }) => sum + weight, 0);
  assert(Math.abs(total - 5) < 1e-9, `weights of 5 batches sum to ${total}`);
  for (const { weight, last_weight, similarity, loss, source, id } of lines) {
    assertEquals(weight, last_weight);
    assert(Number.isFinite(similarity) && loss > 0);
    assertEquals(source, Number(id.slice(4)) % 2 ? "odd" : "even");
  }
}

async function checkCheckpoints(space: Workspace): Promise<void> {
  // Every 3 of 8 steps makes 3 and 6.
  assertEquals([...Deno.readDirSync(space.file("runs/a/checkpoints"))].map(({ name }) => name).sort(), ["step-3", "step-6"]);
  const manifest = space.json("runs/a/checkpoints/step-6/manifest.json");
  const files = space.tree("runs/a/checkpoints/step-6").filter((path) => !path.endsWith("/") && path !== "manifest.json");
  assertEquals(Object.keys(manifest).sort(), files);
  for (const name of files) {
    const bytes = Deno.readFileSync(space.file("runs/a/checkpoints/step-6", name));
    assertEquals(manifest[name], { bytes: bytes.length, sha256: await sha256(bytes) });
  }
  const state = space.json("runs/a/checkpoints/step-6/state.json");
  assertEquals([state.step, state.consumed, state.seed], [6, 4, 0]);
  const moments = readTensors(space.file("runs/a/checkpoints/step-6/optimizer.safetensors"));
  assertEquals([...moments.keys()], ["m", "v"]);
  assert(moments.get("v")!.every((value) => value >= 0) && moments.get("v")!.some((value) => value > 0));
}

function checkAdapter(space: Workspace): void {
  const config = space.json("runs/a/adapter/adapter_config.json");
  assertEquals([config.peft_type, config.r, config.lora_alpha, config.base_model_name_or_path], ["LORA", 4, 4, "model"]);
  const tensors = readTensors(space.file("runs/a/adapter/adapter_model.safetensors"));
  assertEquals(tensors.size, 2 * 7 * 2);
  assert([...tensors.values()].every((values) => values.every(Number.isFinite) && values.some((value) => value !== 0)));
}

Deno.test("a run repeats itself byte for byte, from its own config.yaml, too, and on any number of threads", async () => {
  using space = workspace();
  // Arguments of each run: the same run in other ways, then runs that must differ.
  const same: [string, string[], string[]?][] = [
    ["again", GUIDED],
    ["threads", GUIDED, ["--threads=2"]],
    ["host", [...GUIDED, "optimizer.placement=host"]],
    ["lengths", [...GUIDED, "data.max_length=100"]],
  ];
  const different: [string, string[]][] = [["seed", [...GUIDED, "seed=1"]], ["lr", [...GUIDED, "optimizer.lr=2e-2"]]];
  await space.train("first", GUIDED);
  await inTurns([...same, ...different].map(([name, sets, options]) => () => space.train(name, sets, options)));
  const resolved = await space.ok("train", "first/config.yaml", "--set", "output=resolved", "--threads=1", "--json");
  assertEquals(JSON.parse(resolved.out).steps, 8);
  const hash = await space.adapterHash("first");
  for (const name of [...same.map(([name]) => name), "resolved"]) assertEquals(await space.adapterHash(name), hash, name);
  for (const [name] of different) assertNotEquals(await space.adapterHash(name), hash, name);
  // Only the output's name, and with it the configuration's hash, differs between a configuration and its resolved form's own.
  const settings = (output: string) => space.read(`${output}/config.yaml`).replace(/^# made from .*\n/m, "");
  assertEquals(settings("resolved").replace("output: resolved", "output: first"), settings("first"));
  const steady = (output: string) =>
    space.jsonl(output, "metrics.jsonl").map(({ seconds: _, tokens_per_second: __, memory_bytes: ___, ...line }) => line);
  assertEquals(steady("again"), steady("first"));
  assertEquals(space.read("again/weights.jsonl"), space.read("first/weights.jsonl"));
});

Deno.test("accumulating 2 batches of 2 is one batch of 4", async () => {
  using space = workspace();
  const runs = ["reweight.method=none", "reweight.method=meta-lora"].map((method, i) => ({ method, name: String(i) }));
  await inTurns(runs.flatMap(({ method, name }) => [
    () => space.train(`whole-${name}`, [method, "train.steps=6"]),
    () => space.train(`parts-${name}`, [method, "train.steps=6", "train.batch_size=2", "train.accumulate=2"]),
  ]));
  for (const { name, method } of runs) {
    const [whole, parts] = ["whole", "parts"].map((kind) => space.jsonl(`${kind}-${name}`, "metrics.jsonl"));
    for (const [i, { loss, grad_norm }] of whole!.entries()) {
      assertClose(parts![i]!.loss, loss, 1e-4, `${method}: loss of line ${i}`);
      if (grad_norm) assertClose(parts![i]!.grad_norm, grad_norm, 1e-3, `${method}: gradient norm of line ${i}`);
    }
    const read = (kind: string) => readTensors(space.file(`${kind}-${name}`, "adapter/adapter_model.safetensors"));
    const expected = read("whole");
    for (const [tensor, values] of read("parts")) {
      const scale = expected.get(tensor)!.reduce((max, value) => Math.max(max, Math.abs(value)), 0);
      values.forEach((value, j) =>
        assert(Math.abs(value - expected.get(tensor)![j]!) < 2e-3 * scale, `${method}: ${tensor}[${j}] is ${value}`)
      );
    }
  }
});

function assertClose(actual: number, expected: number, tolerance: number, what: string): void {
  assert(Math.abs(actual - expected) <= tolerance * Math.abs(expected), `${what}: ${actual} instead of ${expected}`);
}

Deno.test("epochs are passes over the data", async () => {
  using space = workspace();
  const result = await space.train("out", ["train.steps=null", "train.epochs=2", "reweight.method=mix"]);
  // 2 × 5 batches, and a validation batch before each second one.
  assertEquals(result.steps, 15);
  assertEquals(space.jsonl("out/weights.jsonl").map(({ seen }) => seen), Array(20).fill(2));
  const epochs = space.jsonl("out/metrics.jsonl").filter(({ kind }) => kind === "train").map(({ epoch }) => epoch);
  assertEquals(epochs, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]);
});

Deno.test("a run that leaves an adapter of no use says so, with exit code 1", async () => {
  using space = workspace();
  const sets = ["train.steps=1", "optimizer={ lr: 1e30, clip: 0 }"].flatMap((set) => ["--set", set]);
  const { code, err, out } = await space.run("train", "run.yaml", ...sets);
  assertEquals(code, 1);
  assertMatch(
    err,
    /^metalora: Do not use out\/adapter: the validation loss with it is NaN\. Lower optimizer\.lr or check the data$/m,
  );
  assertMatch(out, /^validation loss NaN/m);
});

Deno.test("a run whose only step was a validation batch tells no training loss", async () => {
  using space = workspace();
  const { out } = await space.ok(
    "train",
    "run.yaml",
    "--threads=1",
    "--set",
    "reweight.method=meta-lora",
    "--set",
    "train.steps=1",
  );
  assertEquals(out.split("\n").map((line) => line.split(" ").slice(0, 2).join(" ")), [
    "1 step",
    "validation loss",
    "test loss",
    "adapter in",
    "",
  ]);
});

Deno.test("--dry-run prints the memory plan and writes nothing", async () => {
  using space = workspace();
  const json = JSON.parse((await space.ok("train", "run.yaml", "--dry-run", "--json", "--threads=1")).out);
  const { total_bytes, would_start, problems, recompute, embedding, ...parts } = json;
  assertEquals([recompute, embedding], [{ rung: "none", layers: 0 }, "device"]);
  assertEquals([would_start, problems], [true, []]);
  assertEquals(Object.values(parts as Record<string, number>).reduce((a, b) => a + b, 0), total_bytes);
  for (const key of ["weights", "adapter", "optimizer", "activations", "workspace", "host"]) assert(json[key] > 0, key);
  const table = (await space.ok("train", "run.yaml", "--dry-run", "--threads=1", "--set", "reweight.method=meta-lora")).out;
  assertMatch(table, /^model: 3,712 adapter parameters, 4 steps on .*1 thread$/m);
  assertMatch(table, /^train +train\.jsonl: 20 samples$/m);
  const again = (await space.ok("train", "run.yaml", "--dry-run", "--threads=1", "--set", "train.recompute=qkv")).out;
  assertMatch(again, /^recompute +qkv in \d+ of \d+ layers$/m);
  const short = ["--set", "train.steps=1", "--set", "data.train.limit=1", "--set", "data.test=null"];
  const one = (await space.ok("train", "run.yaml", "--dry-run", "--threads=1", ...short)).out;
  assertMatch(one, /^model: 3,712 adapter parameters, 1 step on .*\ntrain +train\.jsonl: 1 sample\n/);
  assertMatch(table, /^reweighting +[\d.]+ [KMG]iB /m);
  assertMatch(table, /^total +[\d.]+ MiB$/m);
  assert(!space.exists("out"));
});

Deno.test("--dry-run exits as the run would that could not start, says why, and leaves the output as it is", async () => {
  using space = workspace();
  space.write("file", "");
  Deno.mkdirSync(space.file("own/adapter"), { recursive: true });
  Deno.mkdirSync(space.file("kept/releases"), { recursive: true });
  space.write("kept/history.jsonl", "");
  Deno.mkdirSync(space.file("peft"));
  space.write("peft/adapter_config.json", "{}");
  Deno.symlinkSync("nowhere", space.file("dangling"));
  Deno.symlinkSync("model", space.file("link"));
  const cases: [sets: string[], code: number, says: RegExp][] = [
    [["output=file"], 2, /^Cannot use the output file: it, or what it lies in, is no folder\. Choose another output$/],
    [["output=file/x"], 2, /^Cannot use the output file\/x: it, or what it lies in, is no folder\. Choose another output$/],
    [["output=/proc/x"], 1, /^Cannot write the output \/proc\/x: programs may not write there\. Choose another output$/],
    [["output=kept"], 2, /^Cannot use the output kept: metalora retrain keeps its releases there\. Choose another output$/],
    [["output=peft/x"], 2, /^Cannot use the output peft\/x: it lies in the folder of an adapter\. Choose another output$/],
    [["output=own"], 2, /^Cannot use the output own: it holds 'adapter', but no configuration that a run of metalora wrote\. /],
    [["output=dangling"], 2, /^Cannot use the output dangling: it, or what it lies in, is no folder\. Choose another output$/],
    [["output=model"], 2, /^Cannot use the output model: it is the folder of the model\. .*: choose another output$/],
    [["output=link/../model/"], 2, /^Cannot use the output link\/\.\.\/model\/: it is the folder of the model\. /],
    [["output=link"], 2, /^Cannot use the output link: it is the folder of the model\. /],
    [["train.memory=1 MiB"], 1, /^Cannot train: it takes \d+ MiB of memory, and train\.memory allows 1\.0 MiB\. /],
  ];
  const before = space.tree(".");
  for (const [sets, code, says] of cases) {
    const settings = sets.flatMap((set) => ["--set", set]);
    const { code: found, out, err } = await space.run("train", "run.yaml", "--dry-run", "--json", "--threads=1", ...settings);
    assertEquals(found, code, err);
    const { would_start, problems, total_bytes } = JSON.parse(out);
    assertEquals([would_start, problems.length, total_bytes > 1e6], [false, 1, true]);
    assertMatch(problems[0], says);
    assertEquals(err, `metalora: ${problems[0]}\n`);
    const real = await space.run("train", "run.yaml", "--threads=1", ...settings);
    assertEquals(real.code, code, real.err);
    assertMatch(real.err.trimEnd().split("\n").at(-1)!.replace(/^metalora: /, ""), says);
  }
  assertEquals(space.tree("."), before);
  using taken = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const statuses: [listen: string, code: number, says: RegExp][] = [
    ["foo", 2, /'foo' is no address/],
    ["0.0.0.0:1", 2, /there is no token/],
    [String(taken.addr.port), 1, /another program listens there/],
  ];
  for (const [listen, code, says] of statuses) {
    const { code: found, out, err } = await space.run("train", "run.yaml", "--dry-run", "--threads=1", `--status=${listen}`);
    assertEquals([found, out.includes("total")], [code, true], err);
    assertMatch(err, says);
  }
  await space.ok("train", "run.yaml", "--dry-run", "--threads=1", "--set", "output=new//x/../y");
  assertEquals(space.tree("."), before);
  const held = FileLock.take(space.file(".lock"), "x"); // what another run has
  try {
    const { code, err } = await space.run("train", "run.yaml", "--dry-run", "--threads=1", "--set", "output=.");
    assertEquals(code, 75, err);
    assertMatch(
      err,
      /^metalora: Cannot use the output \.: the run of process \d+ holds it\. Wait for it or choose another output\n$/,
    );
  } finally {
    held[Symbol.dispose]();
  }
});

Deno.test("an output that takes not even the lock of a run is left as it was", async () => {
  using space = workspace();
  const before = space.tree(".");
  for (const command of [["train", "run.yaml"], ["train", "run.yaml", "--dry-run"], ["retrain", "run.yaml"], ["demo"]]) {
    const output = command[0] === "demo" ? ["--output", "new/deep"] : ["--set", "output=new/deep"];
    const { code, err } = await space.runLimited(0, ...command, "--threads=1", ...output);
    const line = err.trimEnd().split("\n").at(-1)!;
    const advice = "Choose another output, or check its permissions and the free space";
    assertEquals([code, line], [1, `metalora: Cannot write the output new/deep: File too large (os error 27). ${advice}`]);
    assertEquals(space.tree("."), before, command.join(" "));
  }
});

Deno.test("a run whose gradient has died says so", async () => {
  using space = workspace();
  const { code, err } = await space.run(
    "train",
    "run.yaml",
    "--threads=1",
    "--set",
    "optimizer.lr=1e10",
    "--set",
    "train.steps=20",
  );
  assertEquals(code, 0, err);
  assertMatch(
    err,
    /^the gradient was 0 in the last 1\d steps: nothing was learned there\. Lower optimizer\.lr, or check the data$/m,
  );
  const { err: sound } = await space.ok("train", "run.yaml", "--threads=1");
  assert(!sound.includes("gradient"), sound);
});

Deno.test("of several interrupted runs, what the one that came furthest had saved stays until another is complete", async () => {
  using space = workspace();
  await space.train("out", ["train.steps=1"]);
  Deno.removeSync(space.file("out/adapter"), { recursive: true });
  const interrupted = (step: number) => Deno.mkdirSync(space.file(`out/checkpoints/step-${step}`), { recursive: true });
  const kept = () => space.tree("out/previous");
  const anew = async () => {
    const failing = ["--set", "optimizer.lr=1e30", "--set", "train.steps=20"];
    const { code, err } = await space.run("train", "run.yaml", "--threads=1", ...failing);
    assertEquals([code, space.exists("out/checkpoints")], [1, false]);
    return err;
  };
  for (const [step, most] of [[4399, 4399], [967, 4399], [5000, 5000]] as const) {
    interrupted(step);
    const err = await anew();
    assertEquals(kept(), ["checkpoints/", `checkpoints/step-${most}/`]);
    const says = step === most
      ? "keeps those checkpoints in out/previous until it is complete"
      : "keeps in out/previous those of step 4399 of a run before that, which came further, until it is complete";
    assert(err.startsWith(`out holds a run that was interrupted, saved at step ${step}; --resume goes on with it. `), err);
    assert(err.includes(`This one starts from the beginning and ${says}\n`), err);
  }
  await anew(); // interrupted before it had saved anything
  assertEquals(kept(), ["checkpoints/", "checkpoints/step-5000/"]);
  await space.train("out");
  assert(!space.exists("out/previous"));
});

Deno.test("an adapter never stands beside the configuration of another run, and a run that fails destroys none", async () => {
  using space = workspace();
  await space.train("out", ["checkpoints.every=1"]);
  const hash = await space.adapterHash("out"), config = space.read("out/config.yaml");
  const failing = ["--set", "optimizer.lr=1e30", "--set", "train.steps=20"];
  for (const _ of [1, 2]) {
    assertEquals((await space.run("train", "run.yaml", "--threads=1", ...failing)).code, 1);
    // The earlier run's adapter lies aside with its own configuration.
    assert(!space.exists("out/adapter"));
    assertMatch(space.read("out/config.yaml"), /lr: 1e\+30/);
    assertEquals([await space.adapterHash("out/previous"), space.read("out/previous/config.yaml")], [hash, config]);
    // What describes the earlier run is gone: nobody takes it for the new one's.
    assertEquals(["checkpoints", "weights.jsonl", "report.html"].filter((name) => space.exists("out", name)), []);
  }
  await space.train("out", ["seed=3"]);
  assertNotEquals(await space.adapterHash("out"), hash);
  assert(!space.exists("out/previous"));
});
