import { assertEquals, assertThrows } from "@std/assert";
import { ConfigError, parseConfig } from "../../lib/config/load.ts";
import { presets } from "../../lib/config/presets.ts";
import { allPaths, valueAt } from "../../lib/config/problems.ts";

const base = "model: m\noutput: o\ndata: { train: { path: t }, validation: { path: v } }\n";

Deno.test("preset: reference is the setting of the authors' code", () => {
  const { config } = parseConfig(`${base}reweight: { preset: reference }`, "c");
  assertEquals(config.reweight, {
    method: "meta-lora",
    similarity: "pooled",
    normalize: "none",
    weights: "shift",
    lambda: 0.5,
    temperature: 1,
    validation: { batch_size: 4, every: 10, train_on: true, ema: 0 },
    modules: "all",
    preset: "reference",
  });
  assertEquals([config.adapter.rank, config.adapter.alpha, config.adapter.init], [32, 1, "reference"]);
  assertEquals([config.data.template, config.train.loss, config.train.batch_size], ["alpaca-reference", "sample-mean", 4]);
});

Deno.test("preset: paper clips, keeps no average and never trains on validation samples", () => {
  const { reweight } = parseConfig(`${base}reweight: { preset: paper }`, "c").config;
  assertEquals([reweight.similarity, reweight.weights], ["pooled", "clip"]);
  assertEquals(reweight.validation, { batch_size: 4, every: 10, train_on: false, ema: 0 });
});

Deno.test("a preset leaves given settings alone and refuses those that contradict what it reproduces", () => {
  const kept = parseConfig(`${base}reweight: { preset: reference, validation: { every: 50 } }\nadapter: { rank: 8 }`, "c").config;
  assertEquals([kept.reweight.validation.every, kept.reweight.validation.batch_size, kept.adapter.rank], [50, 4, 8]);

  const text = `${base}reweight:\n  preset: reference\n  weights: clip\n  validation: { ema: 0.8 }\n`;
  assertEquals(assertThrows(() => parseConfig(text, "c.yaml"), ConfigError).problems, [
    "c.yaml:6:12: Cannot use reweight.weights: the preset 'reference' means shift, found clip. Leave the key out, or the preset",
    "c.yaml:7:22: Cannot use reweight.validation.ema: the preset 'reference' means 0, found 0.8. Leave the key out, or the preset",
  ]);
});

Deno.test("--set reweight.preset works on a file that says nothing about reweighting", () => {
  assertEquals(parseConfig(base, "c", ["reweight.preset=paper"]).config.reweight.method, "meta-lora");
});

Deno.test("every key of a preset exists in the schema", () => {
  const known = new Set(allPaths().map((path) => path.join(".")));
  for (const { fixed, start } of Object.values(presets)) {
    assertEquals([...Object.keys(fixed), ...Object.keys(start)].filter((key) => !known.has(key)), []);
  }
});

Deno.test("every value of a preset reaches the configuration", () => {
  for (const [name, { fixed, start }] of Object.entries(presets)) {
    const { config } = parseConfig(base, "c", [`reweight.preset=${name}`]);
    for (const [key, value] of Object.entries({ ...start, ...fixed })) assertEquals(valueAt(config, key.split(".")), value, key);
  }
});
