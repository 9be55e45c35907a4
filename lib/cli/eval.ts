import { loadConfig } from "../config/load.ts";
import type { Config } from "../config/schema.ts";
import { type Dataset, loadDataset } from "../data/dataset.ts";
import { datasetOptions, loadRunData } from "../data/load.ts";
import { guessSource } from "../data/guess.ts";
import { UserError } from "../errors.ts";
import { exists } from "../files.ts";
import { weightDtype } from "../train/build.ts";
import { describeEvaluation, evaluation, requireFinite } from "../train/evaluation.ts";
import { runFolder } from "../train/folder.ts";
import { loadModelInputs, type ModelInputs, requirePositions } from "../train/inputs.ts";
import { loadToEvaluate } from "../train/loaded.ts";
import { datasetFacts } from "../train/messages.ts";
import { type Arguments, type Command, jsonOption, setOption } from "./command.ts";
import { describeData } from "./data.ts";
import { deviceOption, openDevice, threadsOption } from "./device.ts";
import { printJson, printLine, printNote } from "./output.ts";

/** `metalora eval`: losses of a model, with or without an adapter, on data. */
export const command: Command = {
  name: "eval",
  summary: "Measure the loss of a model, with or without an adapter",
  usage: "CONFIG|--model DIR [--adapter DIR|none] [--data FILE] [--per-sample] [--json]",
  details: [
    "With a configuration: its model, the adapter in its output folder (when there is one) and its test data, or else its " +
    "validation data. With --model alone: the base model on --data.",
    "loss is the mean over labelled tokens in nats; an answer is exact when every one of its tokens is the model's first choice.",
    "How many samples there are, truncated and dropped, stands on stderr, and with --json in the result. line is a sample's line in a " +
    "JSONL file, or its place in a JSON file's array, from 1.",
  ],
  options: [
    { name: "model", value: "DIR", description: "Model folder, instead of a configuration" },
    { name: "adapter", value: "DIR|none", description: "PEFT adapter folder; none: the base model" },
    { name: "data", value: "FILE", description: "JSON or JSONL file to measure on" },
    {
      name: "max-length",
      value: "N",
      description: "With --model: longest sample in tokens (default: what the model was made for)",
    },
    { name: "per-sample", description: "One line a sample before the summary" },
    setOption,
    deviceOption,
    threadsOption,
    jsonOption,
  ],
  positional: [0, 1],
  examples: [
    ["eval configs/mawps.yaml", "The run's adapter on its test data"],
    ["eval --model models/SmolLM2-135M --adapter runs/math/adapter --data test.jsonl --json", "Any adapter on any file"],
  ],
  run(args) {
    const { inputs, name, dataset, adapter, precision } = resolve(args);
    const { samples, truncated, dropped } = dataset;
    using dev = openDevice(args);
    using engine = loadToEvaluate(dev, inputs, samples, { adapter, weightDtype: weightDtype(dev, precision) });
    printNote(describeData(name, datasetFacts(dataset)));
    const losses = engine.evaluate(samples);
    requireFinite(losses, samples, "evaluate");
    const json = args.flag("json");
    if (args.flag("per-sample")) {
      samples.forEach(({ id, line }, i) => {
        const tokens = losses.tokens[i]!;
        const loss = losses.sums[i]! / tokens;
        if (json) printJson({ id, line, loss, tokens });
        else printLine(`${id}\t${loss.toFixed(6)}\t${tokens}`);
      });
    }
    const result = evaluation(losses);
    if (json) printJson({ ...result, adapter, truncated, dropped });
    else printLine(`${describeEvaluation(result)} (${result.tokens.toLocaleString("en")} labelled tokens)`);
    return 0;
  },
};

interface Resolved {
  inputs: ModelInputs;
  /** What the data is called on stderr. */
  name: string;
  dataset: Dataset;
  adapter: string | null;
  precision: Config["train"]["precision"];
}

function resolve(args: Arguments): Resolved {
  const [path] = args.positional;
  const modelDir = args.value("model");
  if ((path === undefined) === (modelDir === undefined)) {
    throw new UserError("Cannot evaluate: give either a configuration or --model DIR. See 'metalora eval --help'", 2);
  }
  const adapterOption = args.value("adapter");
  const file = args.value("data");
  if (path !== undefined) {
    if (args.value("max-length") !== undefined) {
      throw new UserError("Cannot evaluate: --max-length goes with --model. Give --set data.max_length=N instead", 2);
    }
    const { config } = loadConfig(path, [...args.values("set")]);
    const inputs = loadModelInputs(config.model);
    const [name, dataset] = file === undefined ? configuredData(config, inputs) : [
      "data",
      loadDataset({ ...guessSource(file, config.data.train), path: file }, inputs.tokenizer, datasetOptions(config)),
    ];
    requirePositions(dataset, inputs, config);
    return {
      inputs,
      name,
      dataset,
      adapter: adapterOption ? named(adapterOption) : outputAdapter(config.output),
      precision: config.train.precision,
    };
  }
  if (args.values("set").length > 0) {
    throw new UserError("Cannot evaluate: --set goes with a configuration, not with --model. Leave it out", 2);
  }
  if (file === undefined) throw new UserError("Cannot evaluate: --model needs --data FILE", 2);
  const inputs = loadModelInputs(modelDir!);
  const source = guessSource(file, null);
  const dataset = loadDataset(source, inputs.tokenizer, {
    template: source.format === "alpaca" ? "alpaca" : "none",
    maxLength: args.number("max-length", { min: 2, max: inputs.model.maxPositions, whole: true }) ?? inputs.model.maxPositions,
    appendEos: inputs.tokenizer.eosId !== null,
    mode: "standard",
  });
  return { inputs, name: "data", dataset, adapter: adapterOption ? named(adapterOption) : null, precision: "auto" };
}

const named = (adapter: string): string | null => adapter === "none" ? null : adapter;

/** The test data, else the validation data; no file is read that is not measured. */
function configuredData(config: Config, { tokenizer }: ModelInputs): [name: string, Dataset] {
  const { test, validation, validation_split: split } = config.data;
  const own = test ?? validation;
  if (own) return [test ? "test" : "validation", loadDataset(own, tokenizer, datasetOptions(config))];
  if (split !== null) return ["validation", loadRunData(config, tokenizer).validation!];
  throw new UserError("Cannot evaluate: the configuration has neither data.test nor data.validation. Give --data FILE", 2);
}

/** The adapter that a run of this configuration wrote, if it has; a release always has one. Whoever reads it says what is wrong with it. */
function outputAdapter(output: string): string | null {
  const folder = runFolder(output), dir = `${folder}/adapter`;
  if (folder !== output || exists(dir)) return dir;
  printNote(`${dir} does not exist: measuring the base model`);
  return null;
}
