/** From what the schema returns to a complete, consistent configuration: presets, dependent defaults, checks across keys. */
import { counted } from "../counted.ts";
import type { KeyPath } from "./document.ts";
import { presets } from "./presets.ts";
import { type Problem, problem, valueAt } from "./problems.ts";
import type { Config, DataSource, ParsedConfig } from "./schema.ts";

type Tree = Record<string, unknown>;

function isTree(value: unknown): value is Tree {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/**
 * Puts a value into a tree of keys, making the groups on the way.
 *
 * @returns false where the path leads through something that is no group; nothing is changed then.
 */
export function setAt(root: Tree, path: readonly string[], value: unknown): boolean {
  const [key, ...rest] = path;
  if (rest.length === 0) {
    root[key!] = value;
    return true;
  }
  if (root[key!] === undefined || root[key!] === null) root[key!] = {};
  const group = root[key!];
  return isTree(group) && setAt(group, rest, value);
}

/**
 * Fills `raw` with the values of the preset that it names, where it has none.
 *
 * @returns A problem for every given key that contradicts the preset.
 */
export function applyPreset(raw: Tree): Problem[] {
  const name = valueAt(raw, ["reweight", "preset"]);
  if (name !== "paper" && name !== "reference") return [];
  const problems: Problem[] = [];
  for (const [key, value] of Object.entries(presets[name].fixed)) {
    const path = key.split(".");
    const given = valueAt(raw, path);
    if (given === undefined || given === null) setAt(raw, path, value);
    else if (given !== value) {
      problems.push(problem(path, `the preset '${name}' means ${value}, found ${given}. Leave the key out, or the preset`));
    }
  }
  for (const [key, value] of Object.entries(presets[name].start)) {
    const path = key.split(".");
    if ((valueAt(raw, path) ?? null) === null) setAt(raw, path, value);
  }
  return problems;
}

/** Fills the defaults that depend on other keys. */
export function resolve(parsed: ParsedConfig): Config {
  const { data, adapter, train, reweight } = parsed;
  return {
    ...parsed,
    data: {
      ...data,
      train: resolveSource(data.train),
      validation: data.validation && resolveSource(data.validation),
      test: data.test && resolveSource(data.test),
      template: data.template ?? (data.train.format === "alpaca" ? "alpaca" : "none"),
    },
    adapter: { ...adapter, alpha: adapter.alpha ?? adapter.rank },
    train: {
      ...train,
      epochs: train.steps === null ? train.epochs ?? 1 : train.epochs,
      loss: train.loss ?? (reweight.method === "meta-lora" ? "sample-mean" : "token-mean"),
    },
  };
}

const fieldNames = { "alpaca": ["instruction", "input", "output"], "prompt-completion": ["prompt", "completion"] } as const;

function resolveSource(source: ParsedConfig["data"]["train"]): DataSource {
  const { path, format, fields, ...rest } = source;
  if (format === "alpaca") {
    const { instruction = "instruction", input = "input", output = "output" } = fields;
    return { path, format, fields: { instruction, input, output }, ...rest };
  }
  const { prompt = "prompt", completion = "completion" } = fields;
  return { path, format, fields: { prompt, completion }, ...rest };
}

/** Checks that no single key can make. */
export function checkAcrossKeys(config: ParsedConfig): Problem[] {
  const { data, train, reweight, optimizer } = config;
  const problems: Problem[] = [];
  const report = (path: KeyPath, what: string, part: "value" | "key" = "value") => problems.push(problem(path, what, part));

  if (train.steps !== null && train.epochs !== null) {
    report(["train", "epochs"], `train.steps is ${train.steps} already. Give one of the two`, "key");
  }
  if (train.steps !== null && optimizer.warmup >= 1 && optimizer.warmup >= train.steps) {
    report(
      ["optimizer", "warmup"],
      `a warm-up of ${counted(optimizer.warmup, "step")} does not fit into a run of ${train.steps}`,
    );
  }
  if (optimizer.warmup > 1 && !Number.isInteger(optimizer.warmup)) {
    report(["optimizer", "warmup"], `expected a whole number of steps, or a share below 1, found ${optimizer.warmup}`);
  }
  if (data.validation !== null && data.validation_split !== null) {
    report(["data", "validation_split"], "data.validation is given already. Give one of the two", "key");
  }
  if (data.validation_split !== null && data.validation_split >= 1 && !Number.isInteger(data.validation_split)) {
    report(["data", "validation_split"], `expected a whole number of rows, or a share below 1, found ${data.validation_split}`);
  }
  if (reweight.method !== "none" && data.validation === null && data.validation_split === null) {
    const what =
      `'${reweight.method}' needs validation samples. Add data.validation (a small trusted file) or data.validation_split`;
    report(["reweight", "method"], what);
  }
  for (const role of ["train", "validation", "test"] as const) {
    const source = data[role];
    if (source === null) continue;
    const known: readonly string[] = fieldNames[source.format];
    for (const name of Object.keys(source.fields)) {
      if (!known.includes(name)) {
        const what = `the format '${source.format}' has no such field. Its fields: ${known.join(", ")}`;
        report(["data", role, "fields", name], what, "key");
      }
    }
  }
  return problems;
}
