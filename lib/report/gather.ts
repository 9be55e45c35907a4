/** Gathers what the report of a run shows: from a run that has just ended, or from the folder that it left. */
import { join } from "node:path";
import { loadConfig } from "../config/load.ts";
import type { Config } from "../config/schema.ts";
import { writeConfig } from "../config/write.ts";
import { counted } from "../counted.ts";
import type { Dataset } from "../data/dataset.ts";
import type { RunData } from "../data/load.ts";
import { readRows, type Row } from "../data/readers.ts";
import { UserError } from "../errors.ts";
import { openSafetensors } from "../tensor/safetensors.ts";
import { labelledTokens } from "../train/batch.ts";
import { adapterDamage, isComplete } from "../train/folder.ts";
import { loadRunInputs } from "../train/inputs.ts";
import type { PreparedRun } from "../train/run.ts";
import { VERSION } from "../version.ts";
import { number } from "./charts.ts";
import type { MetricsLine, ReportInput, RunNotes } from "./input.ts";
import { checkMetricsLine, checkWeightsLine, LINE_ADVICE } from "./lines.ts";
import { RunLog } from "./log.ts";
import { countOverlaps } from "./overlap.ts";
import { readNotes } from "./report.ts";
import { duration } from "./tables.ts";

/** What a report is about, beside the lines that the run wrote. */
interface About {
  readonly config: Config;
  /** Null where it cannot be read any more. */
  readonly data: RunData | null;
  /** Adapter parameters P; null before there is an adapter. */
  readonly parameters: number | null;
  readonly notes: RunNotes | null;
  /** What the reader should know about the page itself. */
  readonly remarks: readonly string[];
}

/**
 * The report of a run whose last step has been made.
 * @param output Folder with the run's metrics.jsonl and weights.jsonl.
 * @param run The run and the name of its device.
 * @throws {UserError} exit code 2, when a line is damaged
 */
export function gatherReport(output: string, { prepared, device }: { prepared: PreparedRun; device: string }): ReportInput {
  const { config, inputs, engine, plan } = prepared;
  const notes = { version: VERSION, device, planned_bytes: plan.total_bytes, finished: new Date().toISOString() };
  return gather(output, { config, data: inputs.data, parameters: engine.parameters, notes, remarks: [] });
}

/**
 * The report of a run from what lies in its folder, complete or not. Texts, lengths and overlaps come from the data files that
 * its configuration names, as long as they can be read; device, planned memory and date from the report that the run wrote.
 * @throws {UserError} exit code 2, when no run wrote the folder or a line in it is damaged
 */
export function gatherFromFolder(folder: string): ReportInput {
  for (const name of ["config.yaml", "metrics.jsonl"]) {
    if (textOf(join(folder, name), 1) === null) {
      const what = isThere(join(folder, name)) ? `its ${name} is no regular file that can be read` : `it has no ${name}`;
      throw new UserError(`Cannot make a report of ${folder}: ${what}. Name the output folder of a run`, 2);
    }
  }
  const { config } = loadConfig(join(folder, "config.yaml"));
  const remarks: string[] = [];
  let data: RunData | null = null;
  try {
    data = loadRunInputs(config).data;
  } catch (error) {
    if (!(error instanceof UserError)) throw error;
    remarks.push(`Texts of samples, lengths and overlaps are missing: ${error.message}`);
  }
  const parameters = countParameters(join(folder, "adapter/adapter_model.safetensors"));
  const damage = adapterDamage(folder);
  if (damage !== null) remarks.push(`The run has no adapter that can be used: ${damage}.`);
  else if (!isComplete(folder)) remarks.push("The run is not complete: it has no adapter yet.");
  const page = textOf(join(folder, "report.html"), 1 << 16);
  return gather(folder, { config, data, parameters, notes: page === null ? null : readNotes(page), remarks });
}

function gather(output: string, about: About): ReportInput {
  const { config, data } = about;
  const log = new RunLog(lines(join(output, "metrics.jsonl"), checkMetricsLine, "skip"));
  const known = new Map(data?.train.samples.map((sample) => [sample.id, sample]));
  const samples = [...lines(join(output, "weights.jsonl"), checkWeightsLine)];
  const lost = data === null ? 0 : samples.filter(({ id }) => !known.has(id)).length;
  const remarks = [...about.remarks];
  if (lost > 0) {
    remarks.push(
      `${data!.train.path} is not what it was: ${counted(lost, "sample")} of the run ${lost === 1 ? "is" : "are"} not in it.`,
    );
  }
  return {
    title: config.output,
    facts: facts(about, log, remarks),
    metrics: log.lines,
    totals: log.totals,
    samples: samples.map((line) => {
      const sample = known.get(line.id);
      const { id, source, seen, weight, similarity, loss } = line;
      const length = sample ? labelledTokens(sample) : null;
      return {
        id,
        prompt: sample?.prompt ?? "",
        response: sample?.response ?? "",
        source,
        length,
        seen,
        weight,
        similarity,
        loss,
      };
    }),
    overlaps: data && countOverlaps(data),
    notes: about.notes,
    batchSize: config.train.batch_size * config.train.accumulate,
    config: writeConfig(config),
  };
}

/**
 * The lines of a file, one after the other; none where there is no file.
 * @param unfinished What becomes of half a line at the end, which a log of a run that goes on, or was killed, may have.
 * @throws {UserError} exit code 2, naming the first line that is none
 */
function* lines<T>(path: string, check: (row: Row) => T, unfinished: "read" | "skip" = "read"): Generator<T> {
  if (!isThere(path)) return;
  for (const row of readRows(path, { unfinished, advice: LINE_ADVICE })) yield check(row);
}

function facts(
  { config, data, parameters, notes }: About,
  { lines, totals }: RunLog,
  remarks: readonly string[],
): [string, string][] {
  const { adapter, optimizer, train, seed } = config;
  const whole = (value: number) => Math.round(value).toLocaleString("en");
  const dataset = (name: string, set: Dataset | null | undefined): [string, string][] =>
    set ? [[name, `${whole(set.samples.length)} samples of ${set.path}${losses(set)}`]] : [];
  const evaluation = (name: string): [string, string][] => {
    const line = lines.findLast(({ kind }) => kind === `${name.toLowerCase()} evaluation`) as Evaluated | undefined;
    if (line === undefined || line.loss === null) return [];
    return [[name, `loss ${line.loss.toFixed(4)}, ${(100 * line.accuracy).toFixed(1)} % of ${line.samples} answers exact`]];
  };
  const passes = totals.train.batches + totals.validation.batches;
  return [
    ...remarks.map((remark): [string, string] => ["Note", remark]),
    ...evaluation("Test"),
    ...evaluation("Validation"),
    ...totals.loss !== null ? [["Last training batch", `loss ${totals.loss.toFixed(4)}`] as [string, string]] : [],
    ["Steps", passes > 0 ? `${whole(totals.step)} in ${duration(totals.seconds)}` : "none"],
    ["Method", method(config)],
    ["Model", config.model],
    [
      "Adapter",
      `rank ${adapter.rank}, alpha ${number(adapter.alpha)}${parameters === null ? "" : `, ${whole(parameters)} parameters`}`,
    ],
    ["Learning rate", `${number(optimizer.lr)}, ${optimizer.schedule}`],
    ["Batch", `${train.batch_size}${train.accumulate > 1 ? ` × ${train.accumulate}` : ""} samples, seed ${seed}`],
    ...dataset("Training data", data?.train),
    ...dataset("Validation data", data?.validation),
    ...dataset("Test data", data?.test),
    ...notes
      ? [
        ["Device", notes.device],
        ["Finished", `${notes.finished.slice(0, 16).replace("T", " ")} UTC by metalora ${notes.version}`],
      ] as [string, string][]
      : [],
  ];
}

type Evaluated = MetricsLine & { readonly accuracy: number; readonly samples: number };

/** Numbers in an adapter; null where there is none that can be read. */
function countParameters(path: string): number | null {
  try {
    using file = openSafetensors(path);
    return [...file.tensors.values()].reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
  } catch {
    return null;
  }
}

function isThere(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch {
    return false;
  }
}

/** The first bytes of a regular file as text; null where there is none that can be read. */
function textOf(path: string, bytes: number): string | null {
  try {
    if (!Deno.statSync(path).isFile) return null; // opening a named pipe waits for somebody who writes into it
    using file = Deno.openSync(path, { read: true });
    const chunk = new Uint8Array(bytes);
    return new TextDecoder().decode(chunk.subarray(0, file.readSync(chunk) ?? 0));
  } catch {
    return null;
  }
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
