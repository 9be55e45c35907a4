/** eval, score, preview and bench from outside. */
import { assert, assertEquals, assertMatch, assertNotEquals } from "@std/assert";
import { command, ROOT, rows, type Workspace, workspace, writeTinyModel } from "./harness.ts";

// deno-lint-ignore no-explicit-any
const jsonLines = (text: string): any[] => text.trimEnd().split("\n").map((line) => JSON.parse(line));

async function evaluate(space: Workspace, ...args: string[]) {
  return jsonLines((await space.ok("eval", ...args, "--threads=1", "--json")).out);
}

Deno.test("eval measures the base model, a run's adapter and any adapter on any data", async () => {
  using space = workspace();
  const before = await space.ok("eval", "run.yaml", "--threads=1", "--json");
  assertEquals(before.err, "out/adapter does not exist: measuring the base model\ntest       test.jsonl: 5 samples\n");
  const base = JSON.parse(before.out);
  assertEquals(Object.keys(base).slice(0, 4), ["loss", "tokens", "samples", "perplexity"]);
  assertEquals([base.samples, base.adapter, base.truncated, base.dropped], [5, null, 0, []]);
  assert(Math.abs(base.perplexity - Math.exp(base.loss)) < 1e-9 * base.perplexity);

  const trained = await space.train("out", ["train.steps=20"]);
  const [own] = await evaluate(space, "run.yaml");
  const whole = { adapter: "out/adapter", truncated: 0, dropped: [] };
  assertEquals(own, { ...trained.test, ...whole });
  assert(own.loss < base.loss - 0.5);
  assertEquals(await evaluate(space, "run.yaml", "--adapter", "none"), [base]);
  // A model and an adapter without a configuration; the format shows in the data.
  assertEquals(await evaluate(space, "--model", "model", "--adapter", "out/adapter", "--data", "test.jsonl"), [own]);
  assertEquals(await evaluate(space, "run.yaml", "--data", "validation.jsonl"), [{ ...trained.validation, ...whole }]);
  assertEquals((await evaluate(space, "run.yaml", "--set", "data.test=null"))[0], { ...trained.validation, ...whole });

  const lines = await evaluate(space, "run.yaml", "--per-sample");
  const [samples, total] = [lines.slice(0, -1), lines.at(-1)];
  assertEquals(samples.map(({ id }) => id), ["row-200", "row-201", "row-202", "row-203", "row-204"]);
  assertEquals(samples.map((line) => Object.keys(line)), samples.map(() => ["id", "line", "loss", "tokens"]));
  const sum = samples.reduce((all, { loss, tokens }) => all + loss * tokens, 0);
  assertEquals(total, own);
  assert(Math.abs(sum / total.tokens - total.loss) < 1e-9);
  const text = (await space.ok("eval", "run.yaml", "--threads=1")).out;
  assertMatch(text, new RegExp(`^loss ${own.loss.toFixed(4)}, perplexity [\\d.]+, [\\d.]+ % of 5 answers exact`));
});

Deno.test("eval takes the run's adapter for missing only where it is", async () => {
  using space = workspace();
  Deno.mkdirSync(space.file("out/adapter"), { recursive: true });
  Deno.symlinkSync("adapter_config.json", space.file("out/adapter/adapter_config.json")); // there, but nobody can read it
  const { code, err } = await space.run("eval", "run.yaml", "--threads=1");
  assertEquals(code, 2);
  assertMatch(err, /^metalora: Cannot [^\n]*out\/adapter[^\n]*: Too many levels of symbolic links[^\n]*\n$/);
});

Deno.test("eval refuses an adapter that is damaged where it looks itself as it does where it is named, and measures no base model", async () => {
  using space = workspace();
  await space.ok("retrain", "run.yaml", "--threads=1", "--device=cpu", "--set", "output=published");
  Deno.mkdirSync(space.file("out/adapter"), { recursive: true });
  const damages: [output: string, adapter: string, damage: () => void][] = [
    ["out", "out/adapter", () => {}], // an empty folder
    [
      "published",
      "published/current/adapter",
      () => Deno.removeSync(space.file("published/current/adapter/adapter_config.json")),
    ],
    [
      "published",
      "published/current/adapter",
      () => Deno.removeSync(space.file("published/current/adapter"), { recursive: true }),
    ],
    ["published", "published/current/adapter", () => Deno.removeSync(space.file("published/releases/0001"), { recursive: true })],
  ];
  for (const [output, adapter, damage] of damages) {
    damage();
    const { code, err, out } = await space.run("eval", "run.yaml", "--set", `output=${output}`);
    const line =
      `Cannot read the adapter ${adapter}/adapter_config.json: there is no such file. Name a folder that holds a PEFT adapter`;
    assertEquals([code, err, out], [2, `metalora: ${line}\n`, ""]);
    assertEquals((await space.run("eval", "run.yaml", "--adapter", adapter)).err, err);
  }
});

Deno.test("eval gives each sample the same loss, whatever lies beside it in a batch", async () => {
  using space = workspace();
  const lines = await evaluate(space, "--model", "model", "--data", "train.jsonl", "--per-sample");
  space.write("one.jsonl", [space.jsonl("train.jsonl")[7]]);
  const [alone] = await evaluate(space, "--model", "model", "--data", "one.jsonl", "--per-sample");
  assertEquals(alone.id, "row-7");
  assert(Math.abs(alone.loss - lines[7].loss) < 1e-6 * alone.loss, `${alone.loss} alone, ${lines[7].loss} among others`);
});

Deno.test("eval and score tell what was truncated and dropped, and the line of each sample", async () => {
  using space = workspace();
  const [first, second, ...others] = rows(0, 5);
  const long = { id: "long", prompt: "a", completion: "b".repeat(70) };
  space.write("train.jsonl", [first, { ...second, completion: "" }, long, { ...second, prompt: "c".repeat(90) }, ...others]);
  const told = "train.jsonl: 5 samples, 1 truncated; dropped 1 (empty response), 1 (response longer than max_length)\n";
  const evaluated = await space.ok("eval", "run.yaml", "--data", "train.jsonl", "--adapter=none", "--per-sample", "--json");
  const lines = jsonLines(evaluated.out);
  assertEquals(evaluated.err, `data       ${told}`);
  assertEquals(lines.slice(0, -1).map(({ line }) => line), [1, 4, 5, 6, 7]);
  const { samples, truncated, dropped } = lines.at(-1);
  const reasons = ["empty response", "response longer than max_length"].map((reason) => ({ reason, count: 1 }));
  assertEquals([samples, truncated, dropped], [5, 1, reasons]);
  const scored = await space.ok("score", "run.yaml", "--json");
  assertEquals(scored.err, `train      ${told}validation validation.jsonl: 6 samples\n`);
  assertEquals(jsonLines(scored.out).map(({ line }) => line), [1, 4, 5, 6, 7]);
});

Deno.test("score gives the similarities that a run at the same adapter finds", async () => {
  using space = workspace();
  const lines = jsonLines((await space.ok("score", "run.yaml", "--threads=1", "--json")).out);
  assertEquals(lines.map(({ id }) => id), Array.from({ length: 20 }, (_, i) => `row-${i}`));
  assertEquals(lines.map((line) => Object.keys(line)), lines.map(() => ["id", "line", "similarity", "weight"]));
  const sum = lines.reduce((all, { weight }) => all + weight, 0);
  assert(Math.abs(sum - 1) < 1e-9, `weights sum to ${sum}`);
  // A rate so small that the adapter stays where it starts; all 6 validation rows at once.
  const still = "reweight={ method: meta-lora, validation: { batch_size: 6, every: 1, ema: 0, train_on: false } }";
  await space.train("still", [still, "optimizer.lr=1e-30", "train.steps=5"]);
  for (const [i, { similarity }] of space.jsonl("still/weights.jsonl").entries()) {
    const scored = lines[i].similarity;
    assert(Math.abs(similarity - scored) < 1e-5 * Math.abs(scored), `row-${i}: ${scored} scored, ${similarity} while training`);
  }
  // At a trained adapter they are others; as a table, the most useful come first.
  await space.train("out", ["train.steps=8"]);
  const { out } = await space.ok("score", "run.yaml", "--threads=1", "--adapter", "out/adapter");
  const table = out.trimEnd().split("\n").slice(1).map((line) => Number(line.trim().split(/\s+/)[0]));
  assertEquals(table, table.toSorted((a, b) => b - a));
  assertNotEquals(table, lines.map(({ similarity }) => similarity).sort((a, b) => b - a));
});

Deno.test("preview shows ids, labels and text of every sample", async () => {
  using space = workspace();
  const { out, err } = await space.ok("preview", "run.yaml", "--json");
  const lines = jsonLines(out);
  assertEquals(lines.length, 20);
  assertEquals(Object.keys(lines[0]), ["id", "ids", "labels", "text"]);
  const ids = [257, ...new TextEncoder().encode("0: say red red 0"), 258];
  const prompt = 1 + "0: say red".length;
  assertEquals(lines[0], {
    id: "row-0",
    ids,
    labels: ids.map((id, t) => t < prompt ? -100 : id),
    text: "<s>0: say red red 0</s>",
  });
  assertEquals(err, "train.jsonl: 20 shown, 0 truncated\n");
});

Deno.test("bench plans a batch that no machine could hold, and refuses to run it with one line", async () => {
  using space = workspace();
  const config = space.json("model/config.json");
  space.write("model/config.json", { ...config, max_position_embeddings: 131072 });
  const args = ["bench", "--model-shape=model", "--batch=65536", "--length=131072", "--threads=1"];
  const planned = await space.run(...args, "--dry-run", "--json");
  const { total_bytes, would_start, problems } = JSON.parse(planned.out);
  assert(total_bytes > 65536 * 131072 * 4 * config.hidden_size, `${total_bytes} bytes`);
  assertEquals([planned.code, would_start, planned.err], [1, false, `metalora: ${problems}\n`]);
  const { code, out, err } = await space.run(...args);
  assertEquals([code, out], [1, ""]);
  assertMatch(
    err,
    /^metalora: Cannot run this: it takes \d+\.\d\d GiB of memory, .*\. Nothing near it fits: lower --batch, .*\n$/,
  );
});

Deno.test("bench names --precision bf16 where that fits", async () => {
  using space = workspace();
  const args = ["bench", "--model-shape=smollm2-135m", "--batch=1", "--length=16", "--dry-run", "--threads=1"];
  const { code, err } = await space.run(...args, "--set=train.memory=600 MiB");
  assertEquals(code, 1);
  assertMatch(err, /train\.memory allows 600 MiB\. Set --precision bf16, which takes \d+ MiB\n$/);
});

Deno.test("bench takes samples as long as a model of few positions was made for", async () => {
  using space = workspace();
  writeTinyModel(space.file("short"), { maxPositions: 64 });
  const { out } = await space.ok("bench", "--model-shape=short", "--steps=1", "--threads=1", "--json");
  assertEquals(JSON.parse(out).length, 64);
  const planned = await space.ok("bench", "--model-shape=model", "--threads=1", "--dry-run", "--json");
  assertEquals([JSON.parse(planned.out).would_start, planned.err], [true, ""]);
});

Deno.test("bench prints what design §6 names, for a named shape and for a model folder", async () => {
  using space = workspace();
  const bench = async (...args: string[]) =>
    JSON.parse((await space.ok("bench", ...args, "--steps=1", "--threads=1", "--json")).out);
  const keys = ["shape", "batch", "length", "precision", "step_ms", "tokens_per_second", "mfu", "peak_memory_bytes"];
  const plain = await bench("--model-shape", "model", "--batch=2", "--length=16");
  assertEquals(keys.filter((key) => !(key in plain)), []);
  assertEquals([plain.shape, plain.batch, plain.length, plain.precision, plain.method], ["model", 2, 16, "f32", "none"]);
  assert(
    plain.step_ms > 0 && plain.tokens_per_second > 0 && plain.mfu > 0 && plain.peak_memory_bytes > 30e6,
    JSON.stringify(plain),
  );
  const guided = await bench(
    "--model-shape",
    "stories260k",
    "--batch=2",
    "--length=16",
    "--method=meta-lora",
    "--precision=bf16",
  );
  assertEquals([guided.precision, guided.method], ["bf16", "meta-lora"]);
  // A step's time has its share of a validation batch in it: one every 10 batches.
  assert(guided.validation_ms > 0 && guided.step_ms > guided.train_ms, JSON.stringify(guided));
  const text =
    (await space.ok("bench", "--model-shape", "stories260k", "--batch=1", "--length=8", "--steps=1", "--threads=1")).out;
  assertMatch(text, /^stories260k, 1 × 8 tokens, f32, method none, on .*\n {2}step +[\d.]+ ms/);
});

Deno.test("config check finds nothing wrong with the configurations in configs/ but files that are not on this machine", async () => {
  using space = workspace();
  for (const { name } of Deno.readDirSync(`${ROOT}configs`)) {
    if (!name.endsWith(".yaml")) continue;
    const { out } = await space.run("config", "check", `${ROOT}configs/${name}`, "--json");
    const { config, problems = [] } = JSON.parse(out);
    assert(config, out);
    for (const problem of problems) assertMatch(problem, / there is no (folder|file) /, name);
  }
});

Deno.test("a METALORA_LIBRARY_DIR that is no folder, or has a library that is none, ends a command with one line", async () => {
  using space = workspace();
  Deno.mkdirSync(space.file("folder"));
  space.write("folder/libmetalora_cpu.so", "no library");
  const folders = {
    nowhere: /^metalora: Cannot use METALORA_LIBRARY_DIR: 'nowhere' is no folder\. Name one, or leave it out\n$/,
    folder:
      /^metalora: Cannot use folder\/libmetalora_cpu\.so of METALORA_LIBRARY_DIR: .+\. Rebuild it, or leave METALORA_LIBRARY_DIR out\n$/,
  };
  for (const [folder, says] of Object.entries(folders)) {
    const { code, stderr } = await command(["bench", "--steps=1", "--device=cpu"], space.path, { METALORA_LIBRARY_DIR: folder })
      .output();
    assertEquals(code, 1);
    assertMatch(new TextDecoder().decode(stderr), says);
  }
});

Deno.test("bench refuses keys that its options decide or that mean nothing to it", async () => {
  using space = workspace();
  for (const key of ["train.batch_size=2", "data.max_length=8", "model=x", "reweight.validation.batch_size=2"]) {
    const { code, err } = await space.run("bench", "--steps=1", "--set", key);
    assertEquals(code, 2);
    assertMatch(err, /^metalora: Cannot use --set [\w.]+ in bench: it takes --model-shape, --batch, /);
  }
});

Deno.test("bench --dry-run says what it would time, and what of it is computed again", async () => {
  using space = workspace();
  const args = ["bench", "--model-shape=stories260k", "--batch=1", "--length=8", "--threads=1", "--dry-run"];
  const { out, err } = await space.ok(...args, "--set=train.recompute=block", "--set=optimizer.placement=host");
  assertMatch(out, /^stories260k, 1 × 8 tokens, f32, method none, on .*\n(.+\n)+recompute {4}block in 5 of 5 layers\n$/);
  assertEquals(err, "optimizer.placement: host changes nothing on the CPU, where all memory is the host's\n");
  const { recompute, embedding } = JSON.parse((await space.ok(...args, "--json")).out);
  assertEquals([recompute, embedding], [{ rung: "none", layers: 0 }, "device"]);
});

Deno.test("eval reads only what it measures: the training file may be gone, unless validation data is split off it", async () => {
  using space = workspace();
  const whole = await space.ok("eval", "run.yaml");
  Deno.removeSync(space.file("train.jsonl"));
  assertEquals(await space.ok("eval", "run.yaml"), whole);
  assertMatch((await space.ok("eval", "run.yaml", "--set", "data.test=null")).err, /^validation validation\.jsonl: /m);
  const split = ["data.test=null", "data.validation=null", "data.validation_split=0.5"].flatMap((set) => ["--set", set]);
  const { code, err } = await space.run("eval", "run.yaml", ...split);
  assertEquals([code, /^metalora: Cannot .*train\.jsonl/m.test(err)], [2, true], err);
});
