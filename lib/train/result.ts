/** What a run amounts to, from the metrics that it wrote: of one that ended long ago nothing else is left. */
import { join } from "node:path";
import { readRows } from "../data/readers.ts";
import { UserError } from "../errors.ts";
import type { Evaluation } from "./evaluation.ts";
import type { RunResult } from "./events.ts";

/** Sums over the passes of a run. */
export interface Tally {
  /** Optimizer steps. */
  readonly steps: number;
  /** Unweighted loss of the last training batch that was trained on, nats; NaN before there is one. */
  readonly loss: number;
  readonly tokens: number;
  readonly seconds: number;
  readonly peak_memory_bytes: number;
  /** The newest evaluation of each data set. */
  readonly evaluations: { readonly validation?: Evaluation; readonly test?: Evaluation };
}

/**
 * Adds up metrics.jsonl.
 * @param folder Output folder of the run.
 * @throws {UserError} when the file cannot be read
 */
export function tally(folder: string): Tally {
  let steps = 0, loss = NaN, tokens = 0, seconds = 0, peak = 0;
  const evaluations: { validation?: Evaluation; test?: Evaluation } = {};
  for (const { fields } of readRows(join(folder, "metrics.jsonl"))) {
    const { kind } = fields;
    if (kind === "validation evaluation" || kind === "test evaluation") {
      const { step: _, kind: __, ...evaluation } = fields;
      evaluations[kind === "test evaluation" ? "test" : "validation"] = evaluation as unknown as Evaluation;
    }
    if (kind !== "train" && kind !== "validation") continue;
    const line = fields as { step: number; tokens: number; seconds: number; memory_bytes: number; loss: number; fault?: string };
    steps = line.step;
    if (kind === "train" && line.fault === undefined) loss = line.loss ?? NaN;
    tokens += line.tokens;
    seconds = line.seconds;
    peak = Math.max(peak, line.memory_bytes);
  }
  return { steps, loss, tokens, seconds, peak_memory_bytes: peak, evaluations };
}

/** The result of a complete run. What its metrics do not tell (any more) is NaN, which JSON has as null. */
export function recalledResult(output: string): RunResult {
  try {
    const { tokens, evaluations, ...sums } = tally(output);
    if (sums.steps > 0) return { ...sums, tokens_per_second: tokens / sums.seconds, output, ...evaluations };
  } catch (error) {
    if (!(error instanceof UserError)) throw error;
  }
  return { steps: NaN, loss: NaN, seconds: NaN, tokens_per_second: NaN, peak_memory_bytes: NaN, output };
}
