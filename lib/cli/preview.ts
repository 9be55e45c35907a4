import { loadConfig } from "../config/load.ts";
import { type Dataset, IGNORED, loadDataset, type Sample } from "../data/dataset.ts";
import { datasetOptions } from "../data/load.ts";
import { type Piece, pieces } from "../data/view.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { loadModelInputs } from "../train/inputs.ts";
import { type Command, jsonOption, setOption } from "./command.ts";
import { printJson, printLine, printNote } from "./output.ts";

const DEFAULT_LIMIT = 5;

/** `metalora preview`: samples of a configuration's data with template, special tokens and labels. */
export const command: Command = {
  name: "preview",
  summary: "Show samples as the model will see them",
  usage: "CONFIG [--data FILE] [--limit N] [--set KEY=VALUE]… [--json]",
  details: [
    "Shows the training data with its template, special tokens and cuts. What is trained is green on a terminal; in a pipe, or with " +
    "NO_COLOR set, it stands between ⟦ and ⟧.",
    "With --json prints {id, ids, labels, text} a sample; labels are -100 where nothing is trained, and not shifted.",
  ],
  options: [
    { name: "data", value: "FILE", description: "Show this file instead, in the format of the training data" },
    { name: "limit", value: "N", description: `Show the first N samples (default: ${DEFAULT_LIMIT}, and all with --json)` },
    setOption,
    jsonOption,
  ],
  positional: [1, 1],
  examples: [
    ["preview configs/mawps.yaml", "Are template and labels right?"],
    ["preview configs/mawps.yaml --json --limit 1", "Ids and labels of the first sample"],
  ],
  run(args) {
    const { config } = loadConfig(args.positional[0]!, [...args.values("set")]);
    const json = args.flag("json");
    const limit = args.number("limit", { min: 1, whole: true }) ?? (json ? undefined : DEFAULT_LIMIT);
    const { tokenizer } = loadModelInputs(config.model);
    const spec = { ...config.data.train, path: args.value("data") ?? config.data.train.path };
    const dataset = loadDataset(spec, tokenizer, {
      ...datasetOptions(config),
      ...(limit !== undefined && { maxSamples: limit }),
    });
    const colour = Deno.stdout.isTerminal() && !Deno.noColor;
    for (const sample of dataset.samples) {
      if (json) printJson(toJson(sample, tokenizer));
      else printLine(`${heading(sample)}\n${pieces(sample, tokenizer).map((piece) => mark(piece, { colour })).join("")}\n`);
    }
    printNote(summary(dataset));
    return 0;
  },
};

function toJson(sample: Sample, tokenizer: Tokenizer) {
  const { id, ids, labels } = sample;
  return { id, ids: [...ids], labels: [...labels], text: tokenizer.decode(ids) };
}

function heading({ id, ids, labels, source }: Sample): string {
  const trained = labels.reduce((count, label) => count + (label === IGNORED ? 0 : 1), 0);
  return `── ${id}: ${ids.length} tokens, ${trained} trained${source === null ? "" : `, source ${source}`}`;
}

function mark({ text, trained }: Piece, { colour }: { colour: boolean }): string {
  if (!trained) return text;
  return colour ? `\x1b[32m${text}\x1b[0m` : `⟦${text}⟧`;
}

function summary({ path, samples, dropped, truncated }: Dataset): string {
  const lost = dropped.map(({ reason, count }) => `, ${count} dropped (${reason})`).join("");
  return `${path}: ${samples.length} shown, ${truncated} truncated${lost}`;
}
