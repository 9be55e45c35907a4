/** The program on a tiny OPT with its own tokenizer (tests/oracle/opt.py): it trains, evaluates, scores, and refuses other OPTs. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "node:path";
import { openSafetensors, type TensorData, writeSafetensors } from "../../lib/tensor/safetensors.ts";
import { inTurns, ROOT, type Workspace, workspace } from "./harness.ts";

/** A workspace whose model is OPT. */
function optWorkspace(): Workspace {
  const space = workspace();
  Deno.removeSync(space.file("model", "model.safetensors"));
  for (const { name } of Deno.readDirSync(join(ROOT, "tests/fixtures/families/opt"))) {
    Deno.copyFileSync(join(ROOT, "tests/fixtures/families/opt", name), space.file("model", name));
  }
  return space;
}

Deno.test("OPT trains by every similarity, to an adapter that evaluates to the loss of the run", async () => {
  using space = optWorkspace();
  const base = JSON.parse((await space.ok("eval", "--model", "model", "--data", "test.jsonl", "--json")).out).loss;
  const methods = [["reweight.method=none"]].concat(
    ["exact", "exact-adam", "core", "pooled"].map((name) => ["reweight.method=meta-lora", `reweight.similarity=${name}`]),
  );
  const results = await inTurns(methods.map((sets, i) => () => space.train(`out${i}`, [...sets, "train.steps=12"])));
  for (const [i, sets] of methods.entries()) {
    const { out } = await space.ok("eval", "--model", "model", "--adapter", `out${i}/adapter`, "--data", "test.jsonl", "--json");
    const { loss } = JSON.parse(out);
    assert(loss < base - 0.2, `${sets}: ${loss} after training, ${base} before`);
    assertEquals(loss, results[i].test.loss, `${sets}`);
  }
  const scores = (await space.ok("score", "run.yaml", "--adapter", "out0/adapter", "--json")).out.trimEnd().split("\n");
  const similarities = scores.map((line) => JSON.parse(line).similarity);
  assertEquals(similarities.length, 20);
  assert(similarities.every((u) => Number.isFinite(u) && u !== 0));
});

Deno.test("a stopped OPT run goes on to the same bits, whatever is computed again", async () => {
  using space = optWorkspace();
  const sets = ["reweight.method=meta-lora", "train.steps=6"];
  await space.train("whole", sets);
  await space.train("again", [...sets, "train.recompute=block"]);
  await space.train("half", [...sets, "checkpoints.every=3"]);
  for (const name of space.checkpoints("half").filter((name) => name !== "step-3")) {
    Deno.removeSync(space.file("half", "checkpoints", name), { recursive: true });
  }
  Deno.removeSync(space.file("half", "adapter"), { recursive: true });
  await space.train("half", [...sets, "checkpoints.every=3"], ["--threads=2", "--resume"]);
  const hash = await space.adapterHash("whole");
  assertEquals([await space.adapterHash("again"), await space.adapterHash("half")], [hash, hash]);
});

Deno.test("another OPT, or weights that do not fit, get one line and exit code 2", async () => {
  const config = (values: object) => (space: Workspace) =>
    void space.write("model/config.json", { ...space.json("model/config.json"), ...values });
  const tensors = (change: (all: TensorData[]) => TensorData[]) => (space: Workspace) => {
    const path = space.file("model", "model.safetensors");
    const all: TensorData[] = [];
    {
      using file = openSafetensors(path);
      for (const [name, { dtype, shape, bytes }] of file.tensors) {
        const data = new Uint8Array(bytes);
        file.read(name, data);
        all.push({ name, dtype, shape, data });
      }
    }
    writeSafetensors(path, change(all), { format: "pt" });
  };
  const cases: { prepare: (space: Workspace) => void; says: RegExp; sets?: string[] }[] = [
    {
      prepare: config({ do_layer_norm_before: false, word_embed_proj_dim: 16 }),
      says:
        /^Cannot use model\/config\.json: do_layer_norm_before is false\. Only true is supported for OPT \(opt-350m is not\)$/,
    },
    {
      prepare: config({ activation_function: "gelu" }),
      says: /^Cannot use model\/config\.json: activation_function is "gelu"\. Only "relu" is supported for OPT$/,
    },
    {
      prepare: tensors((all) => all.filter(({ name }) => name !== "model.decoder.layers.1.fc1.bias")),
      says:
        /^Cannot load the tensor "model\.decoder\.layers\.1\.fc1\.bias": none of the 35 tensors in model has that name\. Check/,
    },
    {
      prepare: config({ max_position_embeddings: 63 }),
      says:
        /^Cannot load the tensor "model\.decoder\.embed_positions\.weight": its shape in \S+ is \[66,32\], but config\.json asks for \[65,32\]\. /,
    },
    {
      // A learned table has no row beyond its last: 65 tokens are one too many, 64 are not.
      prepare: (space) => space.write("train.jsonl", [{ id: "long", prompt: "a".repeat(61), completion: "bb" }]),
      says:
        /^Cannot use train\.jsonl with model: its longest sample has 65 tokens, the model was made for 64\. Set data\.max_length/,
      sets: ["data.max_length=100"],
    },
    {
      prepare: () => {},
      says: /^Cannot use adapter\.targets: the model has no matrix 'gate_proj'\./,
      sets: ["adapter.targets=[gate_proj]"],
    },
  ];
  await inTurns(cases.map(({ prepare, says, sets = [] }) => async () => {
    using space = optWorkspace();
    prepare(space);
    const { code, err } = await space.run("train", "run.yaml", "--threads=1", ...sets.flatMap((set) => ["--set", set]));
    const line = err.trimEnd();
    assertMatch(line.replace(/^metalora: /, ""), says);
    assertEquals([code, line.split("\n").length, space.exists("out")], [2, 1, false], line);
  }));
  using space = optWorkspace();
  space.write("train.jsonl", [{ id: "longest", prompt: "a".repeat(60), completion: "bb" }]);
  const sets = ["data.max_length=100", "train.steps=1", "train.batch_size=1"];
  assertEquals((await space.train("out", sets)).steps, 1);
});

Deno.test("bench takes OPT's shapes, as long as their positions", async () => {
  using space = optWorkspace();
  const bench = (...args: string[]) =>
    space.run("bench", "--model-shape", "model", "--batch", "2", ...args, "--steps", "1", "--json");
  const { code, out } = await bench("--length", "64", "--method", "meta-lora");
  assertEquals(code, 0);
  const { shape, planned_bytes, step_ms } = JSON.parse(out);
  assert(shape === "model" && planned_bytes > 0 && step_ms > 0, out);
  const long = await bench("--length", "65");
  assertEquals(long.code, 2);
  assertMatch(long.err, /65/);
  // Planned on a machine that cannot hold it, too.
  const plan = JSON.parse((await space.run("bench", "--model-shape", "opt-1.3b", "--dry-run", "--json", "--precision=bf16")).out);
  // 50,272 + 2,050 rows of 2,048; 24 layers of 4 x 2048² + 2 x 2048 x 8192, with adapters of rank 32 beside them; in bf16.
  const frozen = (50272 + 2050) * 2048 + 24 * 2048 * (4 * 2048 + 2 * 8192);
  const beside = 24 * 32 * (3 * 2048 * 3 + 2048 + 8192 + 2048);
  assert(Math.abs(plan.weights / (2 * (frozen + beside)) - 1) < 0.01, `${plan.weights}, expected ${2 * (frozen + beside)}`);
});
