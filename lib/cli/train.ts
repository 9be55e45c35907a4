import { Device } from "../../ffi/device.ts";
import type { Config } from "../config/schema.ts";
import { loadConfig } from "../config/load.ts";
import type { Dataset } from "../data/dataset.ts";
import { roomBytes } from "../train/fit.ts";
import { loadRunInputs } from "../train/inputs.ts";
import { formatBytes } from "../train/memory.ts";
import { describeEvaluation } from "../train/evaluation.ts";
import { prepareRun, run, type RunObserver } from "../train/run.ts";
import { type Command, jsonOption, setOption } from "./command.ts";
import { deviceOption, requireCpu, threadsOption } from "./device.ts";
import { memoryTable } from "./memory_table.ts";
import { printJson, printLine, printNote } from "./output.ts";
import { duration, Progress, type ProgressState } from "./progress.ts";

/** `metalora train`: one fine-tuning run. */
export const command: Command = {
  name: "train",
  summary: "Fine-tune a model with LoRA, plain or guided by a validation set",
  usage: "CONFIG [--set KEY=VALUE]… [--dry-run] [--device cpu] [--json]",
  details: [
    "Writes the adapter in PEFT's format, metrics and per-sample weights into the configuration's output folder. Nothing there " +
    "is half-written: adapter/ appears when the run is complete.",
    "--dry-run checks configuration, model and data, prints the memory plan and stops.",
  ],
  options: [
    setOption,
    { name: "dry-run", description: "Check everything, print the memory plan and stop" },
    deviceOption,
    threadsOption,
    jsonOption,
  ],
  positional: [1, 1],
  examples: [
    ["train configs/mawps-metalora.yaml", "META-LORA on word problems"],
    ["train run.yaml --set train.steps=100 --set output=runs/short", "The same run, shorter and elsewhere"],
  ],
  run(args) {
    requireCpu(args);
    const { config } = loadConfig(args.positional[0]!, [...args.values("set")]);
    const threads = args.number("threads", { min: 1, max: 4096, whole: true }) ?? 0;
    const json = args.flag("json");
    if (args.flag("dry-run")) return dryRun(config, { threads, json });
    const progress = new Progress(config.train.log_every);
    const result = run(config, observer(config, progress), { threads });
    progress.end();
    if (json) printJson(result);
    else {
      const { steps, seconds, tokens_per_second, peak_memory_bytes, output, loss } = result;
      printLine(
        `${steps} steps in ${duration(seconds)}, ${Math.round(tokens_per_second).toLocaleString("en")} tokens/s, ` +
          `peak memory ${formatBytes(peak_memory_bytes)}`,
      );
      printLine(`last training loss ${loss.toFixed(4)}`);
      for (const name of ["validation", "test"] as const) {
        const evaluation = result[name];
        if (evaluation) printLine(`${name} ${describeEvaluation(evaluation)}`);
      }
      printLine(`adapter in ${output}/adapter`);
    }
    return 0;
  },
};

function dryRun(config: Config, { threads, json }: { threads: number; json: boolean }): number {
  const inputs = loadRunInputs(config);
  using dev = Device.open({ threads });
  const { plan, steps, engine } = prepareRun(dev, config, inputs);
  const room = roomBytes();
  if (plan.total_bytes > room) printNote(`this machine has ${formatBytes(room)} left: the run would not start`);
  if (json) printJson(plan);
  else {
    printLine(`${config.model}: ${engine.parameters.toLocaleString("en")} adapter parameters, ${steps} steps on ${dev.name}`);
    for (const [name, dataset] of Object.entries(inputs.data)) if (dataset) printLine(describeData(name, dataset));
    printLine();
    printLine(memoryTable(plan));
  }
  return 0;
}

function observer(config: Config, progress: Progress): RunObserver {
  let total = Infinity, shown = 0;
  let batch: Pick<ProgressState, "loss" | "effective"> | undefined;
  return {
    started({ inputs, steps, parameters, device, plan }) {
      total = steps;
      const { method, similarity, weights, preset } = config.reweight;
      const how = method === "meta-lora" ? `meta-lora (${preset ?? `${similarity}, ${weights}`})` : method;
      printNote(`${config.model}: ${parameters.toLocaleString("en")} adapter parameters, method ${how}, ${steps} steps`);
      for (const [name, dataset] of Object.entries(inputs.data)) if (dataset) printNote(describeData(name, dataset));
      printNote(`${device}; memory planned ${formatBytes(plan.total_bytes)}`);
    },
    stepped({ kind, step, loss, effectiveSampleSize, samples }, { steps, seconds, tokensPerSecond }) {
      if (kind === "train") {
        const effective = effectiveSampleSize === null ? null : { size: effectiveSampleSize, samples: samples.length };
        batch = { loss, effective };
      }
      // A step on validation data shows the training batch before it; a batch without weight makes no step.
      if (!batch || step === shown) return;
      shown = step;
      progress.update({ step, steps, tokensPerSecond, seconds, ...batch });
    },
    evaluated(name, evaluation, step) {
      progress.end();
      if (step < total) printNote(`step ${step}: ${name} ${describeEvaluation(evaluation)}`);
    },
  };
}

/** Such as "train      data.jsonl: 3,038 samples, 12 truncated; dropped 3 response longer than max_length". */
export function describeData(name: string, { path, samples, dropped, truncated }: Dataset): string {
  const cut = truncated > 0 ? `, ${truncated} truncated` : "";
  const lost = dropped.length > 0 ? `; dropped ${dropped.map(({ reason, count }) => `${count} (${reason})`).join(", ")}` : "";
  return `${name.padEnd(10)} ${path}: ${samples.length.toLocaleString("en")} samples${cut}${lost}`;
}
