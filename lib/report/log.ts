/**
 * What a report takes from metrics.jsonl: totals over all lines, and few enough lines to draw. A run of a million steps must not
 * need more memory for its report than for its training.
 */
import type { MetricsLine } from "./input.ts";

/** Sums over every line. */
export interface LogTotals {
  /** Batches and the tokens in them. */
  readonly train: { batches: number; tokens: number };
  readonly validation: { batches: number; tokens: number };
  evaluations: number;
  /** Batches without a step: every weight was 0, or they were faulty. */
  skipped: number;
  faulty: number;
  /** Of the last pass. */
  step: number;
  seconds: number;
  /** Of the last training batch that has one; null before. */
  loss: number | null;
  memory_bytes: number;
}

/** Lines that a kind of batch keeps: five to a point of a chart, and at most twice as many. */
const MOST = 2048;

type Sources = Record<string, [samples: number, weight: number]>;

/** Means of these are drawn. */
const MEANS = ["step", "loss", "lr", "grad_norm", "effective_sample_size", "max_weight"] as const;

/** Takes the lines one after the other. */
export class RunLog {
  readonly totals: LogTotals = {
    train: { batches: 0, tokens: 0 },
    validation: { batches: 0, tokens: 0 },
    evaluations: 0,
    skipped: 0,
    faulty: 0,
    step: 0,
    seconds: 0,
    loss: null,
    memory_bytes: 0,
  };
  readonly #batches = { train: new Thinned(), validation: new Thinned() };
  readonly #evaluations: MetricsLine[] = [];

  /** @param lines Lines of metrics.jsonl, in order. */
  constructor(lines: Iterable<MetricsLine> = []) {
    for (const line of lines) this.add(line);
  }

  /** Takes the next line. */
  add(line: MetricsLine): void {
    const { totals } = this;
    const { kind } = line;
    if (kind !== "train" && kind !== "validation") {
      totals.evaluations++;
      this.#evaluations.push(line);
      return;
    }
    totals[kind].batches++;
    totals[kind].tokens += line.tokens ?? 0;
    if (line.fault) totals.faulty++;
    else if (line.skipped) totals.skipped++;
    totals.step = line.step;
    totals.seconds = Math.max(totals.seconds, line.seconds ?? 0);
    if (kind === "train" && line.loss !== null) totals.loss = line.loss;
    totals.memory_bytes = Math.max(totals.memory_bytes, line.memory_bytes ?? 0);
    this.#batches[kind].add(line);
  }

  /** The lines to draw, by step: all evaluations, and of a long run means over neighbouring batches of a kind. */
  get lines(): MetricsLine[] {
    return [...this.#batches.train.lines, ...this.#batches.validation.lines, ...this.#evaluations].sort((a, b) =>
      a.step - b.step
    );
  }
}

/** At most 2 · MOST lines, each the mean of equally many neighbours but for the last. */
class Thinned {
  #kept: MetricsLine[] = [];
  #group: MetricsLine[] = [];
  /** Lines that one stands for. */
  #stride = 1;

  add(line: MetricsLine): void {
    this.#group.push(line);
    if (this.#group.length < this.#stride) return;
    this.#kept.push(mean(this.#group));
    this.#group = [];
    if (this.#kept.length < 2 * MOST) return;
    this.#stride *= 2;
    this.#kept = Array.from({ length: MOST }, (_, i) => mean(this.#kept.slice(2 * i, 2 * i + 2)));
  }

  get lines(): MetricsLine[] {
    return this.#group.length === 0 ? this.#kept : [...this.#kept, mean(this.#group)];
  }
}

/** One line for several of a kind: means of what is drawn; of the sources the sums, whose quotient is a mean by itself. */
function mean(lines: readonly MetricsLine[]): MetricsLine {
  const [first] = lines;
  const result: Record<string, unknown> = { kind: first!.kind, loss: null };
  for (const key of MEANS) {
    let sum = 0, count = 0;
    for (const line of lines) {
      const value = line[key];
      if (typeof value !== "number") continue;
      sum += value;
      count++;
    }
    if (count > 0) result[key] = sum / count;
  }
  const sources: Sources = {};
  for (const { source_weights = {} } of lines) {
    for (const [name, [samples, weight]] of Object.entries(source_weights)) {
      const [before, sum] = sources[name] ?? [0, 0];
      sources[name] = [before + samples, sum + weight];
    }
  }
  if (Object.keys(sources).length > 0) result.source_weights = sources;
  return result as unknown as MetricsLine;
}
