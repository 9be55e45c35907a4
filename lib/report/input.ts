/** What a report is made from. */
import type { LogTotals } from "./log.ts";

/** A line of metrics.jsonl, as far as the report reads it. */
export interface MetricsLine {
  readonly step: number;
  /** "train", "validation" (a batch of each) or "validation evaluation", "test evaluation". */
  readonly kind: string;
  readonly loss: number | null;
  readonly lr?: number;
  readonly grad_norm?: number | null;
  readonly tokens?: number;
  /** Since the run began, its resumptions without their breaks. */
  readonly seconds?: number;
  readonly memory_bytes?: number;
  readonly effective_sample_size?: number | null;
  readonly max_weight?: number;
  /** By source: samples of the batch and the sum of their weights. */
  readonly source_weights?: Readonly<Record<string, readonly [samples: number, weight: number]>>;
  readonly skipped?: boolean;
  readonly fault?: string;
}

/** A line of weights.jsonl with the text of its sample. */
export interface SampleLine {
  readonly id: string;
  readonly prompt: string;
  readonly response: string;
  readonly source: string | null;
  /** Tokens of the response; null where the data cannot be read any more. */
  readonly length: number | null;
  readonly seen: number;
  /** Mean weight; null: it was never weighed. */
  readonly weight: number | null;
  readonly similarity: number | null;
  readonly loss: number | null;
}

/** What two data sets have in common. */
export interface OverlapCount {
  /** Such as "training" and "test". */
  readonly of: string;
  readonly and: string;
  /** Samples of the first that the second has, too: prompt and response. */
  readonly samples: number;
  /** Those of which the second has the prompt with another response. */
  readonly prompts: number;
  /** Samples that were left out of the first because the second has them. */
  readonly leftOut: number;
}

/** What only the run itself knows; report.html carries it, so that the page can be made again. */
export interface RunNotes {
  /** Version of metalora that trained. */
  readonly version: string;
  readonly device: string;
  readonly planned_bytes: number;
  /** End of the run, ISO 8601. */
  readonly finished: string;
}

/** Everything on the page. */
export interface ReportInput {
  readonly title: string;
  /** Name and value, in the order of the page. */
  readonly facts: readonly (readonly [name: string, value: string])[];
  /** To draw, see `RunLog`. */
  readonly metrics: readonly MetricsLine[];
  readonly totals: LogTotals;
  readonly samples: readonly SampleLine[];
  /** Null where the data cannot be read any more. */
  readonly overlaps: readonly OverlapCount[] | null;
  readonly notes: RunNotes | null;
  /** Samples that share a weight of 1. */
  readonly batchSize: number;
  /** The resolved configuration, YAML. */
  readonly config: string;
}
