import { type Condition, CONDITIONS, type DemoResult, type DemoSummary, runDemo } from "../demo/run.ts";
import { DEMO_SIZES } from "../demo/generate.ts";
import { STOPPED, UserError } from "../errors.ts";
import { readRegularFile } from "../files.ts";
import { RunFiles, RunFolder } from "../train/folder.ts";
import { type Command, jsonOption, setOption } from "./command.ts";
import { threadsOption } from "./device.ts";
import { printFailure, printJson, printLine, printNote, printProgress } from "./output.ts";
import { onSignal } from "./signals.ts";

const NAMES: Readonly<Record<Condition, string>> = {
  base: "base model, not trained",
  lora: "plain LoRA on all rows",
  mix: "MIX: also trained on validation rows",
  metalora: "META-LORA",
  valonly: "validation rows alone",
  ideal: "right rows only (nobody has these)",
};

/** `metalora demo`: META-LORA beside its controls on noisy data, in minutes on two cores. */
export const command: Command = {
  name: "demo",
  summary: "See META-LORA beside plain LoRA on noisy data, in minutes",
  usage: "[--seed N] [--seeds N] [--output DIR] [--json]",
  details: [
    "A small Llama that came with the program learns a new command over digit strings. Of its 1,600 training rows 60 % follow a wrong " +
    "rule and 15 % are about something else; 32 validation rows are right. Every method takes the same number of optimizer steps.",
    "Writes summary.json and the data into the output folder. Another --seed gives other data and other runs.",
  ],
  options: [
    { name: "seed", value: "N", description: "First seed (default: 0)" },
    { name: "seeds", value: "N", description: "Number of seeds (default: 3)" },
    { name: "output", value: "DIR", description: "Folder to write (default: runs/demo)" },
    setOption,
    threadsOption,
    jsonOption,
  ],
  exits: [
    [75, "another run holds the output folder"],
    [STOPPED, "stopped by a signal, without summary.json"],
  ],
  examples: [["demo", "Three seeds"], ["demo --seed 100", "Three others"]],
  async run(args) {
    const count = args.number("seeds", { min: 1, max: 100, whole: true }) ?? 3;
    const first = args.number("seed", { min: 0, max: 2 ** 32 - count, whole: true }) ?? 0;
    const output = args.value("output") ?? "runs/demo";
    const json = args.flag("json");
    const seeds = Array.from({ length: count }, (_, i) => first + i);
    const terminal = Deno.stderr.isTerminal();
    const draw = (text: string) => printProgress(`\r\x1b[2K${text}`);
    using _signals = onSignal(() => {
      if (terminal) draw("");
      printFailure({ error: `stopped: the demo has not come to ${output}/summary.json. Run it again`, exit_code: STOPPED }, json);
      return "end";
    });
    using _folder = RunFolder.open(output);
    requireOwn(output, seeds);
    const { train, validation, test, rightShare, wrongShare } = DEMO_SIZES;
    const percent = (share: number) => `${Math.round(100 * share)} %`;
    const off = percent(1 - rightShare - wrongShare);
    printNote(
      `${train.toLocaleString("en")} training rows: ${percent(rightShare)} right, ${
        percent(wrongShare)
      } wrong by one rule, ${off} off-task; ` +
        `${validation} right validation rows; ${test} test rows; seeds ${seeds.join(", ")}`,
    );
    let label = "";
    const summary = await runDemo({
      seeds,
      output,
      threads: args.number("threads", { min: 1, whole: true }) ?? 0,
      sets: args.values("set"),
      started: (condition, seed) => label = `seed ${seed}  ${NAMES[condition]}`,
      stepped: (step, steps) => void (terminal && step % 10 === 0 && draw(`${label}  step ${step}/${steps}`)),
      finished: (result) => {
        if (terminal) draw("");
        printNote(resultLine(result));
      },
    });
    new RunFiles(output).writeText("summary.json", JSON.stringify(summary, null, 2) + "\n");
    if (json) printJson(summary);
    else {
      printLine();
      for (const line of summaryTable(summary)) printLine(line);
      printLine(`\n${output}/summary.json has these numbers`);
    }
    return 0;
  },
};

/** @throws {UserError} exit code 2 when the demo would replace a file that no demo wrote */
function requireOwn(output: string, seeds: readonly number[]): void {
  const data = seeds.flatMap((seed) => ["train", "validation", "test"].map((split) => [`data-${seed}/${split}.jsonl`, "kind"]));
  for (const [name, key] of [["summary.json", "metalora"], ...data]) {
    if (holdsKey(`${output}/${name}`, key!)) continue;
    throw new UserError(`Cannot use the output ${output}: its ${name} is none that a demo wrote. Choose another output`, 2);
  }
}

/** Whether a file, if it is there, names a key in JSON. */
function holdsKey(path: string, key: string): boolean {
  try {
    return readRegularFile(path).includes(`"${key}":`);
  } catch (error) {
    return error instanceof Deno.errors.NotFound;
  }
}

function resultLine({ condition, seed, accuracy, auc, seconds }: DemoResult): string {
  const weights = auc === null ? "" : `  AUC of the weights ${auc.toFixed(2)}`;
  return `seed ${seed}  ${NAMES[condition].padEnd(38)} ${(100 * accuracy).toFixed(1).padStart(5)} %  ${
    seconds.toFixed(1).padStart(5)
  } s${weights}`;
}

/** The table a person reads, accuracies as means over the seeds with the range. */
export function summaryTable(summary: DemoSummary): string[] {
  const { runs, share, auc, seconds, seeds } = summary;
  const rows = CONDITIONS.map((condition) => {
    const own = runs.filter((run) => run.condition === condition);
    const low = Math.min(...own.map(({ accuracy }) => accuracy)), high = Math.max(...own.map(({ accuracy }) => accuracy));
    const time = own.reduce((sum, run) => sum + run.seconds, 0) / own.length;
    const range = `${(100 * low).toFixed(1)} – ${(100 * high).toFixed(1)}`;
    const weights = condition === "metalora" ? auc?.toFixed(2) ?? "–" : "";
    return [NAMES[condition], `${(100 * summary[condition]).toFixed(1)} %`, range, weights, `${time.toFixed(1)} s`];
  });
  const header = ["", "accuracy", "range", "AUC of weights", "time a run"];
  const widths = header.map((cell, i) => Math.max(cell.length, ...rows.map((row) => row[i]!.length)));
  const line = (cells: readonly string[]) =>
    cells.map((cell, i) => i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!)).join("   ").trimEnd();
  const rule = "─".repeat(widths.reduce((sum, width) => sum + width + 3, -3));
  return [
    line(header),
    rule,
    ...rows.map(line),
    rule,
    share === null
      ? "Right rows only are no better than MIX here: too few steps to tell."
      : `META-LORA covers ${Math.round(100 * share)} % of the way from MIX to right rows only.`,
    `Means over ${seeds.length} ${
      seeds.length === 1 ? "seed" : "seeds"
    }; accuracy: test answers that are right to the last token; ` +
    `AUC: how well the weights tell right rows from the others. ${seconds.toFixed(0)} s in all.`,
  ];
}
