/** Gathers what the report of a finished run shows. */
import { join } from "node:path";
import type { Config } from "../config/schema.ts";
import { writeConfig } from "../config/write.ts";
import type { Dataset } from "../data/dataset.ts";
import { readRows } from "../data/readers.ts";
import { formatBytes } from "../train/memory.ts";
import type { Evaluation } from "../train/evaluation.ts";
import type { RunResult } from "../train/events.ts";
import type { PreparedRun } from "../train/run.ts";
import { VERSION } from "../version.ts";
import { number } from "./charts.ts";
import type { MetricsLine, ReportInput, SampleLine } from "./report.ts";

/**
 * @param output Folder with the run's metrics.jsonl and weights.jsonl.
 * @param run The run, how it ended, and the name of its device.
 */
export function gatherReport(
  output: string,
  { prepared, result, device }: { prepared: PreparedRun; result: RunResult; device: string },
): ReportInput {
  const { config, inputs } = prepared;
  const { samples } = inputs.data.train;
  // Line by line: a long run's metrics would not fit into one string.
  const lines = <T>(name: string) => Array.from(readRows(join(output, name)), ({ fields }) => fields as unknown as T);
  const weights = lines<Omit<SampleLine, "prompt" | "response">>("weights.jsonl"); // in the order of the samples
  return {
    title: config.output,
    facts: facts({ prepared, result, device }),
    metrics: lines<MetricsLine>("metrics.jsonl"),
    samples: samples.map(({ id, prompt, response, source }, i) => {
      const { seen, weight, similarity, loss } = weights[i]!;
      return { id, prompt, response, source, seen, weight, similarity, loss };
    }),
    batchSize: config.train.batch_size * config.train.accumulate,
    config: writeConfig(config),
  };
}

function facts({ prepared, result, device }: { prepared: PreparedRun; result: RunResult; device: string }): [string, string][] {
  const { config, inputs, engine, plan } = prepared;
  const { adapter, optimizer, train, seed } = config;
  const whole = (value: number) => Math.round(value).toLocaleString("en");
  const dataset = (name: string, data: Dataset | null): [string, string][] =>
    data ? [[name, `${whole(data.samples.length)} samples of ${data.path}${losses(data)}`]] : [];
  const evaluation = (name: string, values: Evaluation | undefined): [string, string][] =>
    values
      ? [[name, `loss ${values.loss.toFixed(4)}, ${(100 * values.accuracy).toFixed(1)} % of ${values.samples} answers exact`]]
      : [];
  return [
    ...evaluation("Test", result.test),
    ...evaluation("Validation", result.validation),
    ["Last training batch", `loss ${result.loss.toFixed(4)}`],
    ["Steps", `${whole(result.steps)} in ${duration(result.seconds)}, ${whole(result.tokens_per_second)} tokens/s`],
    ["Peak memory", `${formatBytes(result.peak_memory_bytes)} (planned ${formatBytes(plan.total_bytes)})`],
    ["Method", method(config)],
    ["Model", config.model],
    ["Adapter", `rank ${adapter.rank}, alpha ${number(adapter.alpha)}, ${whole(engine.parameters)} parameters`],
    ["Learning rate", `${number(optimizer.lr)}, ${optimizer.schedule}`],
    ["Batch", `${train.batch_size}${train.accumulate > 1 ? ` × ${train.accumulate}` : ""} samples, seed ${seed}`],
    ...dataset("Training data", inputs.data.train),
    ...dataset("Validation data", inputs.data.validation),
    ...dataset("Test data", inputs.data.test),
    ["Device", device],
    ["Finished", `${new Date().toISOString().slice(0, 16).replace("T", " ")} UTC by metalora ${VERSION}`],
  ];
}

function method({ reweight }: Config): string {
  const { method, preset, similarity, weights, validation } = reweight;
  if (method === "none") return "plain LoRA";
  const often = `validation batch of ${validation.batch_size} every ${validation.every}`;
  if (method === "mix") return `mix, ${often}`;
  return `META-LORA (${preset ? `preset ${preset}` : `${similarity}, ${weights}`}), ${often}`;
}

function losses({ dropped, truncated }: Dataset): string {
  const parts = [
    ...truncated > 0 ? [`${truncated} truncated`] : [],
    ...dropped.map(({ reason, count }) => `${count} left out: ${reason}`),
  ];
  return parts.length > 0 ? ` (${parts.join("; ")})` : "";
}

/** "45 s", "12 min", "3.2 h". */
function duration(seconds: number): string {
  if (seconds < 120) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  return seconds < 7200 ? `${(seconds / 60).toFixed(0)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
