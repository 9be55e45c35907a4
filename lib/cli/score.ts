import { loadConfig } from "../config/load.ts";
import { UserError } from "../errors.ts";
import { sampleWeights } from "../reweight/weights.ts";
import { scoreSamples } from "../train/score.ts";
import { loadRunInputs } from "../train/inputs.ts";
import { datasetFacts } from "../train/messages.ts";
import { type Command, jsonOption, setOption } from "./command.ts";
import { describeData } from "./data.ts";
import { deviceOption, openDevice, threadsOption } from "./device.ts";
import { printJson, printLine, printNote, printProgress } from "./output.ts";

/** `metalora score`: similarity of every training sample to the validation set, without training. */
export const command: Command = {
  name: "score",
  summary: "Compare every training sample with the validation set, without training",
  usage: "CONFIG [--adapter DIR] [--set KEY=VALUE]… [--json]",
  details: [
    "similarity is the inner product of the gradient of a sample's mean response loss with the mean of the validation samples' " +
    "gradients, over all adapter parameters: at the given adapter, or at a fresh one. weight is what reweight.weights makes of the " +
    "similarities of the whole training set; they sum to 1.",
    "Most useful first; with --json in the order of the file. Samples that are dropped have no score (stderr tells how many): line is the " +
    "line of a JSONL file, or the place in a JSON file's array, from 1.",
  ],
  options: [
    { name: "adapter", value: "DIR|none", description: "PEFT adapter at which gradients are taken (default: none, a fresh one)" },
    setOption,
    deviceOption,
    threadsOption,
    jsonOption,
  ],
  positional: [1, 1],
  examples: [["score run.yaml --json > scores.jsonl", "One line a training sample: id, line, similarity, weight"]],
  run(args) {
    const { config } = loadConfig(args.positional[0]!, [...args.values("set")]);
    const inputs = loadRunInputs(config);
    const { train, validation } = inputs.data;
    const adapter = args.value("adapter");
    if (!validation) {
      throw new UserError(
        "Cannot score: the configuration has no validation data. Set data.validation or data.validation_split",
        2,
      );
    }
    using dev = openDevice(args);
    const { samples } = train;
    const similarities = scoreSamples(dev, config, inputs, {
      adapter: adapter === undefined || adapter === "none" ? null : adapter,
      progress: (done) => {
        if (Deno.stderr.isTerminal()) printProgress(`\r${done}/${samples.length} samples`);
      },
    });
    if (Deno.stderr.isTerminal()) printNote("");
    printNote(describeData("train", datasetFacts(train)));
    printNote(describeData("validation", datasetFacts(validation)));
    const weights = sampleWeights(similarities, config.reweight);
    const lines = samples.map(({ id, line, response }, i) => ({
      id,
      line,
      similarity: similarities[i]!,
      weight: weights[i]!,
      response,
    }));
    if (args.flag("json")) {
      for (const { response: _, ...line } of lines) printJson(line);
      return 0;
    }
    printLine(`${"similarity".padStart(12)}  ${"weight".padStart(10)}  ${"line".padStart(7)}  id`);
    for (const { id, line, similarity, weight, response } of lines.sort((a, b) => b.similarity - a.similarity)) {
      const numbers = [similarity.toPrecision(5).padStart(12), weight.toExponential(3).padStart(10), String(line).padStart(7)];
      printLine([...numbers, id, response.replace(/\s+/g, " ").slice(0, 50)].join("  "));
    }
    return 0;
  },
};
