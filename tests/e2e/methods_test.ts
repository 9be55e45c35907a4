/** Every way of weighting trains the tiny model, and every option changes what is trained. */
import { assert, assertEquals } from "@std/assert";
import { inTurns, rows, type Workspace, workspace, writeTinyModel } from "./harness.ts";

const SIMILARITIES = ["exact", "exact-adam", "core", "pooled"];
const WEIGHTS = ["mix", "shift", "clip", "softmax"];

/** Half of the rows say something else than the validation rows would, so that similarities have both signs. */
function noisy(): Workspace {
  const space = workspace();
  space.write("train.jsonl", rows(0, 20).map((row, i) => i % 2 ? { ...row, completion: " 9Z#9Z#9Z" } : row));
  return space;
}

/** Lines of metrics.jsonl of training and validation batches. */
// deno-lint-ignore no-explicit-any
const passes = (space: Workspace, output: string): any[] =>
  space.jsonl(output, "metrics.jsonl").filter(({ kind }) => !kind.endsWith("evaluation"));

Deno.test("every method, similarity and weight map trains, and each to another adapter", async () => {
  using space = noisy();
  const guided = SIMILARITIES.flatMap((similarity) => WEIGHTS.map((weights) => ({ similarity, weights })));
  const runs: { name: string; sets: string[] }[] = [
    { name: "none", sets: ["reweight.method=none"] },
    { name: "mix", sets: ["reweight.method=mix"] },
    ...guided.map(({ similarity, weights }) => ({
      name: `${similarity}-${weights}`,
      sets: ["reweight.method=meta-lora", `reweight.similarity=${similarity}`, `reweight.weights=${weights}`],
    })),
    ...["normalize=cosine", "modules=attention", "modules=mlp", "lambda=0.9", "validation.train_on=false", "validation.ema=0"]
      .map((set) => ({ name: set, sets: ["reweight.method=meta-lora", `reweight.${set}`] })),
  ];
  const base = JSON.parse((await space.ok("eval", "--model", "model", "--data", "validation.jsonl", "--json")).out).loss;
  const results = await inTurns(runs.map(({ name, sets }) => () => space.train(name, [...sets, "train.steps=20"])));
  const hashes = new Map<string, string>();
  for (const [i, { name }] of runs.entries()) {
    assertEquals(results[i].steps, 20, name);
    assert(results[i].validation.loss < base - 0.3, `${name}: validation loss ${results[i].validation.loss}, untrained ${base}`);
    const hash = await space.adapterHash(name);
    assertEquals(hashes.get(hash), undefined, `${name} trained the same adapter as another run`);
    hashes.set(hash, name);
  }
  for (const { similarity, weights } of guided) checkWeights(space, `${similarity}-${weights}`);
});

function checkWeights(space: Workspace, name: string): void {
  const [similarity, weights] = [name.slice(0, name.lastIndexOf("-")), name.slice(name.lastIndexOf("-") + 1)];
  const lines = passes(space, name).filter(({ kind }) => kind === "train");
  // With B = 0 these two similarities are 0 everywhere, so the run starts with an ordinary step.
  const plainFirst = similarity === "core" || similarity === "pooled";
  assertEquals("effective_sample_size" in lines[0], !plainFirst, name);
  for (const { effective_sample_size: size, max_weight, skipped } of lines.slice(1)) {
    if (skipped) {
      assertEquals([weights, size, max_weight], ["clip", 0, 0], name);
      continue;
    }
    assert(size >= 1 - 1e-9 && size <= 4 + 1e-9, `${name}: effective sample size ${size} of 4`);
    // Half of every weight is an even share: the largest is at most 1/8 + 1/2.
    if (weights === "mix") assert(max_weight <= 0.625 + 1e-9, `${name}: a weight of ${max_weight}`);
  }
  const weighed = space.jsonl(name, "weights.jsonl").filter(({ weight }) => weight !== null);
  assert(weighed.length > 10 && weighed.every(({ weight }) => weight >= 0 && weight <= 1), name);
  // Rows that agree with the validation rows resemble them more.
  const mean = (source: string) => {
    const own = weighed.filter((line) => line.source === source);
    return own.reduce((sum, line) => sum + line.similarity, 0) / own.length;
  };
  assert(mean("even") > mean("odd"), `${name}: similarity of right rows ${mean("even")}, of wrong rows ${mean("odd")}`);
}

Deno.test("the presets take the steps of the paper's equations and of its authors' code", async () => {
  using space = noisy();
  writeTinyModel(space.file("model"), { maxPositions: 512 }); // the reference preset has its own template
  const preset = (name: string) => [`reweight={ preset: ${name}, validation: { every: 2 } }`, "train.steps=13"];
  await inTurns(["paper", "reference"].map((name) => () => space.train(name, preset(name))));
  const kinds = (name: string) =>
    passes(space, name).map(({ kind, step, effective_sample_size: size, skipped }) =>
      `${step} ${kind === "train" ? size === undefined ? "plain" : skipped ? "skipped" : "weighted" : kind}`
    );
  // Validation batches give weights only, without steps of their own; weights of 0 take none either.
  const paper = passes(space, "paper").filter(({ skipped }) => !skipped);
  assertEquals(paper.filter(({ kind }) => kind === "train").length, 13);
  assertEquals(kinds("paper")[0], "1 plain");
  assert(paper.every(({ kind, grad_norm }) => (kind === "validation") === (grad_norm === null)));
  // The first batch of an epoch (5 batches) is plain; a step on validation data comes before batches 1 and 3.
  const epoch = (at: number) =>
    ["plain", "validation", "weighted", "weighted", "validation", "weighted", "weighted"].map((k, i) => `${at + i} ${k}`);
  assertEquals(kinds("reference"), [...epoch(1), ...epoch(8)].slice(0, 13));
  // What the presets set beside that.
  const adapter = space.json("reference/adapter/adapter_config.json");
  assertEquals([adapter.r, adapter.lora_alpha], [4, 1]);
});
