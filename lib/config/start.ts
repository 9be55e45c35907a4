/** A commented configuration to start from, for `metalora config init`. */
import { stringify } from "@std/yaml";
import type { DataSpec } from "../data/dataset.ts";

/** What is known about the run; null: a placeholder is written, to be filled in. */
export interface StartingPoint {
  readonly model: string | null;
  /** Positions that the model was made for. */
  readonly maxPositions: number | null;
  readonly train: StartingData | null;
  readonly validation: StartingData | null;
  readonly test: StartingData | null;
  readonly output: string;
}

/** A data file and what its first row says about it. */
export interface StartingData {
  /** As it is written into the configuration. */
  readonly path: string;
  readonly source: DataSpec;
}

/** The longest sample that is proposed; longer ones cost time and memory that most data does not need. */
const MAX_LENGTH = 512;

/** What ends a text without quotes, or a line, somewhere in a file of ours: line breaks and what separates keys within braces. */
const SPECIAL = /[\p{Cc}\u2028\u2029,[\]{}]/u;

/** A text as YAML writes it on one line, quoted where it must be; JSON's way to quote is one of YAML's. */
const scalar = (text: string) => SPECIAL.test(text) ? JSON.stringify(text) : stringify(text, { lineWidth: 0 }).slice(0, -1);

/** Columns before a comment behind a key. */
const COMMENT = 44;

function line(text: string, comment: string): string {
  return text.length < COMMENT ? `${text.padEnd(COMMENT)}# ${comment}` : `${text} # ${comment}`;
}

function source(data: StartingData): string {
  const { format, fields } = data.source;
  const given = Object.entries(fields ?? {}).filter(([role, name]) => role !== name);
  const names = given.map(([role, name]) => `${role}: ${name === null ? "null" : scalar(name)}`).join(", ");
  return `{ path: ${scalar(data.path)}, format: ${format}${names ? `, fields: { ${names} }` : ""} }`;
}

/** The text of the configuration: YAML that `config check` accepts once every placeholder is filled in. */
export function startingConfig({ model, maxPositions, train, validation, test, output }: StartingPoint): string {
  const placeholder = { path: "train.jsonl", source: { path: "", format: "alpaca", fields: {}, limit: null } as DataSpec };
  const guided = validation !== null;
  const optional = (key: string, file: string, data: StartingData | null, comment: string) =>
    data ? [line(`  ${key}: ${source(data)}`, comment)] : [line(`  # ${key}: { path: ${file} }`, comment)];
  return [
    "# A fine-tuning run of metalora.",
    "#   metalora config check FILE      every mistake with line and column, every default spelled out",
    "#   metalora preview FILE           samples as the model will see them, trained tokens marked",
    "#   metalora train FILE --dry-run   how much memory it takes",
    "#   metalora train FILE             train; --set key=value changes a key for once",
    "# Relative paths are looked for in the current folder, then beside this file; 'output' is always taken",
    "# from the current folder.",
    "",
    model === null
      ? line("model: path/to/model", "FILL IN: a folder with config.json, tokenizer.json, model.safetensors")
      : line(`model: ${scalar(model)}`, "config.json, tokenizer.json and model.safetensors lie there"),
    line(`output: ${scalar(output)}`, "adapter/, metrics, checkpoints and report.html go here"),
    line("seed: 0", "the same seed repeats the run bit for bit"),
    "",
    "data:",
    line(
      `  train: ${source(train ?? placeholder)}`,
      train === null ? "FILL IN: one JSON object a line" : "one JSON object a line, or one array",
    ),
    ...optional("validation", "trusted.jsonl", validation, "a few dozen samples that are surely right"),
    ...optional("test", "test.jsonl", test, "measured at the end, never trained on"),
    line(
      `  max_length: ${Math.min(MAX_LENGTH, maxPositions ?? MAX_LENGTH)}`,
      `tokens; longer samples are cut${maxPositions === null ? "" : `, this model takes up to ${maxPositions}`}`,
    ),
    "",
    "adapter:",
    line("  rank: 32", "larger: more can be learned, more memory"),
    line("  targets: all-linear", "or a list such as [q_proj, v_proj]"),
    "",
    "optimizer:",
    line("  lr: 5e-4", "peak learning rate; the first thing to try other values of"),
    line("  warmup: 0.03", "share of the run, or a number of steps, from 0 to the peak"),
    line("  schedule: cosine", "cosine, linear or constant"),
    "",
    "train:",
    line("  epochs: 1", "passes over the training data; or steps: N"),
    line("  batch_size: 4", "samples at once: as many as memory allows"),
    line("  accumulate: 1", "batches an optimizer step"),
    line("  eval_every: 0", "steps between evaluations; 0: only at the end"),
    "",
    "checkpoints:",
    line("  every: 100", "steps; 'metalora train FILE --resume' continues from the newest"),
    line("  keep: 3", "newest ones to keep"),
    "",
    "reweight:",
    guided
      ? line("  method: meta-lora", "weigh every sample by how well it agrees with the trusted ones")
      : line("  method: none", "plain LoRA; meta-lora: needs data.validation, or data.validation_split"),
    ...guided
      ? [
        line("  validation: { batch_size: 16, every: 10 }", "trusted samples a look, and training batches between looks"),
      ]
      : [],
    "",
  ].join("\n");
}
