/** What a configuration names: model, tokenizer and data, opened and checked against each other before anything is built. */
import type { Config } from "../config/schema.ts";
import type { Dataset } from "../data/dataset.ts";
import { loadRunData, type RunData } from "../data/load.ts";
import { UserError } from "../errors.ts";
import { loadModelConfig, type ModelConfig } from "../model/config.ts";
import { checkTokenizerFits, loadTokenizer, type Tokenizer } from "../tokenizer/tokenizer.ts";

/** A model folder, without its weights. */
export interface ModelInputs {
  readonly dir: string;
  readonly model: ModelConfig;
  readonly tokenizer: Tokenizer;
}

/** Everything that a run reads, without the weights. */
export interface RunInputs extends ModelInputs {
  readonly data: RunData;
}

/**
 * Reads config.json and the tokenizer of a model folder.
 * @throws {UserError} when the folder is missing or incomplete, or the tokenizer does not fit
 */
export function loadModelInputs(dir: string): ModelInputs {
  try {
    if (!Deno.statSync(dir).isDirectory) throw new Deno.errors.NotFound();
  } catch {
    throw new UserError(
      `Cannot load the model ${dir}: there is no such folder. Name the folder of a Hugging Face model in 'model'`,
      2,
    );
  }
  const model = loadModelConfig(dir);
  checkSizes(model, dir);
  const tokenizer = loadTokenizer(dir);
  checkTokenizerFits(tokenizer, model.V, dir);
  return { dir, model, tokenizer };
}

/** @throws {UserError} for sizes that no operator takes; they are 32-bit numbers, and nobody has made so many layers */
function checkSizes({ family, d, f, L, H, D, V }: ModelConfig, dir: string): void {
  const most = 2 ** 31 - 1;
  const sizes = [
    ["hidden_size", d, most],
    [family === "opt" ? "ffn_dim" : "intermediate_size", f, most / 2],
    ["vocab_size", V, most],
    ["num_attention_heads × head_dim", H * D, most / 4],
    ["num_hidden_layers", L, 256],
  ] as const;
  for (const [name, value, limit] of sizes) {
    if (value <= limit) continue;
    throw new UserError(
      `Cannot use ${dir}/config.json: ${name} is ${value}, the most that works is ${Math.floor(limit)}. Correct config.json`,
      2,
    );
  }
}

/**
 * Reads everything but the weights.
 * @throws {UserError} for a model or data that cannot be used
 */
export function loadRunInputs(config: Config): RunInputs {
  const inputs = loadModelInputs(config.model);
  const data = loadRunData(config, inputs.tokenizer);
  for (const dataset of [data.train, data.validation, data.test]) if (dataset) requirePositions(dataset, inputs, config);
  return { ...inputs, data };
}

/** @throws {UserError} exit code 2, when a sample is longer than what the model was made for */
export function requirePositions(
  { path, samples }: Dataset,
  { dir, model }: ModelInputs,
  { reweight }: Pick<Config, "reweight">,
): void {
  const longest = samples.reduce((max, { ids }) => Math.max(max, ids.length), 0);
  if (longest <= model.maxPositions) return;
  const advice = reweight.preset === "reference"
    ? "Leave out the preset, which allows 400 tokens whatever data.max_length says, or use another model"
    : "Set data.max_length to at most that";
  throw new UserError(
    `Cannot use ${path} with ${dir}: its longest sample has ${longest} tokens, the model was made for ${model.maxPositions}. ${advice}`,
    2,
  );
}
