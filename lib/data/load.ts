/**
 * All data of a run, as its configuration names it.
 *
 * @module
 */

import type { Config } from "../config/schema.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { type Dataset, type DatasetOptions, type DataSpec, loadDataset } from "./dataset.ts";
import { separate, splitDataset } from "./overlap.ts";

/** The data of a run; no sample is in two of them unless `data.on_overlap` allows it. */
export interface RunData {
  readonly train: Dataset;
  readonly validation: Dataset | null;
  readonly test: Dataset | null;
}

/** What a configuration says about making samples. */
export function datasetOptions({ data, reweight }: Pick<Config, "data" | "reweight">): DatasetOptions {
  return {
    template: data.template,
    maxLength: data.max_length,
    appendEos: data.append_eos,
    mode: reweight.preset === "reference" ? "reference" : "standard",
  };
}

/**
 * Loads training, validation and test data. Without a validation file, `data.validation_split` holds out part of the
 * training data.
 *
 * @param config The configuration.
 * @param tokenizer Tokenizer of the model.
 * @throws {UserError} For everything that {@linkcode loadDataset}, {@linkcode splitDataset} and {@linkcode separate} refuse.
 */
export function loadRunData(config: Pick<Config, "data" | "reweight" | "seed">, tokenizer: Tokenizer): RunData {
  const { data, seed } = config;
  const options = datasetOptions(config);
  const load = (spec: DataSpec | null) => spec && loadDataset(spec, tokenizer, options);
  let train = loadDataset(data.train, tokenizer, options);
  let validation = load(data.validation);
  const test = load(data.test);
  if (validation === null && data.validation_split !== null) {
    ({ train, validation } = splitDataset(train, data.validation_split, seed));
  }
  const on = data.on_overlap;
  if (validation && test) validation = separate(validation, test, { on, names: ["validation", "test"] });
  if (test) train = separate(train, test, { on, names: ["training", "test"] });
  if (validation) train = separate(train, validation, { on, names: ["training", "validation"] });
  return { train, validation, test };
}
