import { assert, assertEquals, assertThrows } from "@std/assert";
import { createHash } from "node:crypto";
import { type DatasetOptions, type DataSpec, IGNORED, loadDataset } from "../../lib/data/dataset.ts";
import { datasetOptions, loadRunData } from "../../lib/data/load.ts";
import { UserError } from "../../lib/errors.ts";
import { loadTokenizer } from "../../lib/tokenizer/tokenizer.ts";
import { characterTokenizer, withFile } from "./fake_tokenizer.ts";

const tokenizer = characterTokenizer();
const options: DatasetOptions = { template: "none", maxLength: 12, appendEos: true, mode: "standard" };
const spec = (path: string, limit: number | null = null): DataSpec => ({
  path,
  format: "prompt-completion",
  fields: { prompt: "prompt", completion: "completion" },
  limit,
});
const jsonl = (rows: object[]) => rows.map((row) => JSON.stringify(row) + "\n").join("");

Deno.test("loadDataset() gives ids, labels, source and the file's hash, and counts what it cut and dropped", () => {
  const text = jsonl([
    { prompt: "a", completion: "b", source: "S" },
    { prompt: "a", completion: "" },
    { prompt: "long prompt", completion: "b", id: "mine" },
    { prompt: "a", completion: "much too long" },
    { prompt: "a", completion: "  " },
    { prompt: "c", completion: "d", id: "mine" },
  ]);
  withFile("some.train.jsonl", text, (path) => {
    const { samples, dropped, truncated, sha256, ...rest } = loadDataset(spec(path), tokenizer, options);
    assertEquals(samples.map(({ id }) => id), ["some.train:0", "mine", "mine#5"]);
    assertEquals(samples.map(({ line }) => line), [1, 3, 6]);
    assertEquals(samples[0], {
      id: "some.train:0",
      line: 1,
      ids: Int32Array.of(1, 100, 101, 2),
      labels: Int32Array.of(IGNORED, IGNORED, 101, 2),
      prompt: "a",
      response: "b",
      source: "S",
      truncated: false,
    });
    assertEquals(dropped, [{ reason: "empty response", count: 2 }, { reason: "response longer than max_length", count: 1 }]);
    assertEquals(truncated, 1);
    assertEquals(sha256, createHash("sha256").update(text).digest("hex"));
    assertEquals(rest, { path });
  });
});

Deno.test("loadDataset() reads no further than the limit, and stops at maxSamples", () => {
  const rows = ["", "b", "c", "d"].map((completion) => ({ prompt: "a", completion }));
  withFile("a.jsonl", jsonl(rows) + "broken", (path) => {
    assertEquals(loadDataset(spec(path, 3), tokenizer, options).samples.map(({ response }) => response), ["b", "c"]);
    const some = loadDataset(spec(path), tokenizer, { ...options, maxSamples: 3 });
    assertEquals(some.samples.length, 3);
    assertThrows(() => loadDataset(spec(path), tokenizer, options), UserError, "a.jsonl:5:1");
  });
});

Deno.test("loadDataset() refuses data of which nothing is left, with the numbers", () => {
  const refusal = (text: string, change: Partial<DatasetOptions> = {}, with_ = tokenizer) => {
    let message = "";
    withFile("a.jsonl", text, (path) => {
      const error = assertThrows(() => loadDataset(spec(path), with_, { ...options, ...change }), UserError) as UserError;
      assertEquals(error.exitCode, 2);
      message = error.message.replaceAll(path, "a.jsonl");
    });
    return message;
  };
  assertEquals(refusal(""), "Cannot use the data a.jsonl: it has no rows. Give a file with at least one sample");
  assertEquals(refusal("[]"), "Cannot use the data a.jsonl: it has no rows. Give a file with at least one sample");
  const rows = jsonl([{ prompt: "a", completion: "" }, { prompt: "a", completion: "bcdef" }, {
    prompt: "a",
    completion: "bcdefg",
  }]);
  assertEquals(
    refusal(rows, { maxLength: 5 }),
    "Cannot use the data a.jsonl: none of its 3 rows is left (1 empty response, 2 response longer than max_length). " +
      "Raise data.max_length (now 5)",
  );
  assert(refusal(jsonl([{ prompt: "a", completion: "" }])).endsWith("(1 empty response). Check the field of the answer"));
  const noEos = characterTokenizer({ eosId: null });
  assert(refusal(rows, {}, noEos).endsWith("with EOS: the tokenizer has none. Set data.append_eos to false"));
  assert(refusal(jsonl([{ q: 1 }])).startsWith("a.jsonl:1: Cannot use the row as prompt-completion"));
});

const root = new URL("../../", import.meta.url).pathname;
const shared = `${root}../shared`;
const ignore = (() => {
  try {
    return !Deno.statSync(`${shared}/models/stories260K`).isDirectory || !Deno.statSync(`${shared}/data`).isDirectory;
  } catch {
    return true;
  }
})();
if (ignore) console.log("skipped: tests with ../shared/models and ../shared/data, which are not here");

Deno.test({
  name: "loadRunData() turns real rows into samples that decode to template, answer and EOS, split without overlap",
  ignore,
  fn() {
    const real = loadTokenizer(`${shared}/models/stories260K`);
    const fields = { instruction: "instruction", input: "input", output: "output" };
    const source = {
      path: `${shared}/data/mawps_asdiv_svamp_train.jsonl`,
      format: "alpaca",
      fields,
      limit: 600,
    } as const;
    const data = {
      train: source,
      validation: null,
      test: { ...source, path: `${shared}/data/mawps_asdiv_svamp_dev.jsonl`, limit: 100 },
      max_length: 256,
      template: "alpaca",
      append_eos: true,
      shuffle: true,
      validation_split: 0.1,
      on_overlap: "error",
    } as const;
    const config = { data, seed: 3, reweight: { preset: null } } as unknown as Parameters<typeof loadRunData>[0];
    assertEquals(datasetOptions(config), { template: "alpaca", maxLength: 256, appendEos: true, mode: "standard" });
    const run = loadRunData(config, real);
    assertEquals(run.train.samples.length + run.validation!.samples.length, 600);
    assertEquals([run.validation!.samples.length, run.test!.samples.length], [60, 100]);
    for (const { ids, labels, prompt, response, source } of run.train.samples) {
      assert(ids.length <= 256 && ids[0] === 1 && ids.at(-1) === 2);
      const trained = labels.filter((label) => label !== IGNORED);
      assertEquals(real.decode(trained), `${response}</s>`);
      assert(prompt.endsWith(real.decode(ids.subarray(1, ids.length - trained.length)).slice(-40)), prompt);
      assertEquals(source, "arkilpatel/SVAMP data/mawps-asdiv-a_svamp");
    }
    const ids = (samples: readonly { id: string }[]) => samples.map(({ id }) => id);
    assertEquals(ids(loadRunData(config, real).validation!.samples), ids(run.validation!.samples));
    const other = loadRunData({ ...config, seed: 4 }, real);
    assert(ids(other.validation!.samples).join() !== ids(run.validation!.samples).join());
  },
});

Deno.test({
  name: "loadRunData() finds that a file overlaps with itself",
  ignore,
  fn() {
    const real = loadTokenizer(`${shared}/models/stories260K`);
    const fields = { instruction: "instruction", input: "input", output: "output" };
    const source = {
      path: `${shared}/data/mawps_asdiv_svamp_dev.jsonl`,
      format: "alpaca",
      fields,
      limit: 20,
    } as const;
    const data = {
      train: { ...source, limit: 30 },
      validation: source,
      test: null,
      max_length: 300,
      template: "alpaca",
      append_eos: true,
    };
    const config = (on_overlap: string) =>
      ({ data: { ...data, validation_split: null, on_overlap }, seed: 0, reweight: { preset: null } }) as unknown as Parameters<
        typeof loadRunData
      >[0];
    assertThrows(() => loadRunData(config("error"), real), UserError, "20 of its 30 samples are in the validation data");
    assertEquals(loadRunData(config("drop"), real).train.samples.length, 10);
    assertEquals(loadRunData(config("allow"), real).train.samples.length, 30);
  },
});
