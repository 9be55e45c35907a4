/** The same model and the same samples, stored in other ways, train the same adapter. */
import { assert, assertEquals, assertNotEquals } from "@std/assert";
import { inTurns, rows, storiesModel, type TinyOptions, workspace, writeTinyModel } from "./harness.ts";

Deno.test("weights in f32, bf16 or f16, in one file or in shards, with a head of their own or tied, are one model", async () => {
  using space = workspace();
  const same: Record<string, TinyOptions> = {
    f32: {},
    bf16: { dtype: "BF16" },
    f16: { dtype: "F16" },
    shards: { shards: 3 },
    "sharded-bf16": { shards: 2, dtype: "BF16" },
    untied: { untied: true },
    "zero-biases": { attentionBias: 0 },
  };
  const different: Record<string, TinyOptions> = {
    biases: { attentionBias: 0.5 },
    weights: { change: (tensors) => tensors.get("model.layers.1.mlp.up_proj.weight")!.values[5]! += 0.25 },
  };
  await inTurns(
    Object.entries({ ...same, ...different }).map(([name, options]) => async () => {
      const dir = space.file(`models/${name}`);
      Deno.mkdirSync(space.file("models"), { recursive: true });
      writeTinyModel(dir, options);
      // Another name of the model would stand in adapter_config.json, not in the weights.
      await space.train(`runs/${name}`, [`model=models/${name}`, "reweight.method=meta-lora"]);
    }),
  );
  const hash = await space.adapterHash("runs/f32");
  for (const name of Object.keys(same)) assertEquals(await space.adapterHash(`runs/${name}`), hash, name);
  for (const name of Object.keys(different)) assertNotEquals(await space.adapterHash(`runs/${name}`), hash, name);
});

Deno.test("bf16 arithmetic trains to nearly the same losses", async () => {
  using space = workspace();
  const [f32, bf16] = await inTurns(
    ["f32", "bf16"].map((type) => () => space.train(type, [`train.precision=${type}`, "train.steps=10"])),
  );
  // The weights are bf16 numbers already; what is rounded is B inside the products.
  assert(
    Math.abs(bf16.validation.loss - f32.validation.loss) < 0.02 * f32.validation.loss,
    `${bf16.validation.loss}, ${f32.validation.loss}`,
  );
  assertNotEquals(await space.adapterHash("f32"), await space.adapterHash("bf16"));
});

Deno.test("JSONL, a JSON list, Windows line ends and a field map are the same data", async () => {
  using space = workspace();
  const data = rows(0, 20);
  space.write("list.json", JSON.stringify(data, null, 1));
  space.write("windows.jsonl", "\ufeff" + data.map((row) => JSON.stringify(row)).join("\r\n\r\n"));
  space.write(
    "mapped.jsonl",
    data.map(({ id, prompt, completion }) => ({ id, question: prompt, answer: completion, prompt: 7 })),
  );
  const runs: Record<string, string[]> = {
    jsonl: [],
    list: ["data.train.path=list.json"],
    windows: ["data.train.path=windows.jsonl"],
    mapped: ["data.train.path=mapped.jsonl", "data.train.fields={ prompt: question, completion: answer }"],
    limited: ["data.train.limit=10"],
  };
  await inTurns(Object.entries(runs).map(([name, sets]) => () => space.train(name, sets)));
  const hash = await space.adapterHash("jsonl");
  for (const name of ["list", "windows", "mapped"]) assertEquals(await space.adapterHash(name), hash, name);
  assertNotEquals(await space.adapterHash("limited"), hash);
  assertEquals(space.jsonl("limited/weights.jsonl").length, 10);
});

Deno.test("alpaca rows get the template, with and without an input", async () => {
  using space = workspace();
  space.write("alpaca.jsonl", [
    { instruction: "Add", input: "1 2", output: "3" },
    { instruction: "Say hi", input: "", output: "hi" },
    { instruction: "Say ho", output: "ho" },
  ]);
  writeTinyModel(space.file("model"), { maxPositions: 512 });
  const sets = ["--set", "data.train={ path: alpaca.jsonl }", "--set", "data.max_length=400"];
  const { out } = await space.ok("preview", "run.yaml", ...sets, "--json");
  const lines = out.trimEnd().split("\n").map((line) => JSON.parse(line));
  assertEquals(lines.map(({ id }) => id), ["alpaca:0", "alpaca:1", "alpaca:2"]);
  assert(lines[0].text.includes("### Instruction:\nAdd\n\n### Input:\n1 2\n\n### Response:"), lines[0].text);
  assert(!lines[1].text.includes("### Input"), lines[1].text);
  // Trained: the answer and the end of text.
  assertEquals(lines.map(({ labels }) => labels.filter((label: number) => label !== -100)), [[51, 258], [104, 105, 258], [
    104,
    111,
    258,
  ]]);
  const result = await space.train("out", ["data.train={ path: alpaca.jsonl }", "data.max_length=400"]);
  assertEquals(result.steps, 4);
});

Deno.test("a prompt that is too long loses its beginning, an answer that is too long its row, and the run says how many", async () => {
  using space = workspace();
  const long = [
    { id: "prompt", prompt: "x".repeat(100) + "?", completion: " ok" },
    { id: "answer", prompt: "p", completion: "y".repeat(100) },
    { id: "blank", prompt: "p", completion: "  " },
  ];
  space.write("train.jsonl", [...rows(0, 6), ...long]);
  const { err } = await space.ok("train", "run.yaml", "--threads=1");
  const counts =
    "train      train.jsonl: 7 samples, 1 truncated; dropped 1 (response longer than max_length), 1 (empty response)";
  assert(err.split("\n").includes(counts), err);
  const { out } = await space.ok("preview", "run.yaml", "--json");
  const cut = out.trimEnd().split("\n").map((line) => JSON.parse(line)).find(({ id }) => id === "prompt");
  // 64 tokens: <s>, what is left of the prompt, the answer and </s>.
  assertEquals([cut.ids.length, cut.text], [64, `<s>${"x".repeat(58)}? ok</s>`]);
});

Deno.test("a validation split holds rows out of the training data", async () => {
  using space = workspace();
  await space.train("out", ["data.validation=null", "data.validation_split=0.25", "reweight.method=meta-lora"]);
  const trained = space.jsonl("out/weights.jsonl").map(({ id }) => id);
  assertEquals(trained.length, 15);
  const evaluation = space.jsonl("out/metrics.jsonl").find(({ kind }) => kind === "validation evaluation");
  assertEquals(evaluation.samples, 5);
});

Deno.test({
  name: "the real model stories260K trains from its own files and learns",
  ignore: storiesModel === null,
  async fn() {
    using space = workspace();
    const { validation } = await space.train("out", [
      `model=${storiesModel}`,
      "reweight.method=meta-lora",
      "train.steps=12",
      "optimizer.lr=5e-3",
    ]);
    const before = JSON.parse((await space.ok("eval", "--model", storiesModel!, "--data", "validation.jsonl", "--json")).out);
    assertEquals(before.tokens, validation.tokens);
    assert(validation.loss < before.loss - 1, `${before.loss} before, ${validation.loss} after`);
  },
});
