/** The course of a run in fixed memory: when the rows are full, neighbours are merged and a row stands for twice as many passes. */
import type { History, ServedEvaluation } from "./schema.ts";

/** Rows at most. */
export const MOST_ROWS = 512;
/** Evaluations at most. */
export const MOST_EVALUATIONS = 200;

/** A pass, as far as the history keeps it. */
export interface Pass {
  readonly step: number;
  readonly kind: "train" | "validation";
  readonly lr: number;
  readonly loss: number;
  readonly gradNorm: number | null;
  /** Recent speed; null when unknown. */
  readonly tokensPerSecond: number | null;
  /** Effective sample size as a share of the batch; null without weights. */
  readonly effectiveShare: number | null;
}

/** Columns of a row whose values are averaged. */
const MEANS = ["loss", "validation_loss", "grad_norm", "tokens_per_second", "effective_share"] as const;
type Mean = typeof MEANS[number];

/** Sum and count a column, so that merging rows stays exact. */
interface Row {
  step: number;
  lr: number | null;
  readonly passes: number;
  readonly sums: Record<Mean, number>;
  readonly counts: Record<Mean, number>;
}

const zeros = (): Record<Mean, number> => ({
  loss: 0,
  validation_loss: 0,
  grad_norm: 0,
  tokens_per_second: 0,
  effective_share: 0,
});

/** Rows of at most {@link MOST_ROWS} over any number of passes. */
export class HistoryRows {
  #rows: Row[] = [];
  #evaluations: ServedEvaluation[] = [];
  #open: Row | null = null;
  #inOpen = 0;
  #stride = 1;
  #keepEvery = 1;
  #evaluatedStep = -1;
  #evaluatedSteps = 0;

  /** Adds a pass. */
  add(pass: Pass): void {
    const row = this.#open ??= { step: pass.step, lr: null, passes: this.#stride, sums: zeros(), counts: zeros() };
    row.step = pass.step;
    row.lr = pass.lr;
    const note = (name: Mean, value: number | null) => {
      if (value === null || !Number.isFinite(value)) return;
      row.sums[name] += value;
      row.counts[name]++;
    };
    note(pass.kind === "train" ? "loss" : "validation_loss", pass.loss);
    note("grad_norm", pass.gradNorm);
    note("tokens_per_second", pass.tokensPerSecond);
    note("effective_share", pass.effectiveShare);
    if (++this.#inOpen < this.#stride) return;
    this.#rows.push(row);
    this.#open = null;
    this.#inOpen = 0;
    if (this.#rows.length >= MOST_ROWS) this.#halve();
  }

  /** Adds an evaluation; beyond {@link MOST_EVALUATIONS} those of every other step are dropped. */
  evaluated(evaluation: ServedEvaluation): void {
    if (evaluation.step !== this.#evaluatedStep) this.#evaluatedSteps++;
    this.#evaluatedStep = evaluation.step;
    if ((this.#evaluatedSteps - 1) % this.#keepEvery === 0) this.#evaluations.push(evaluation);
    if (this.#evaluations.length <= MOST_EVALUATIONS) return;
    const steps = [...new Set(this.#evaluations.map(({ step }) => step))];
    const kept = new Set(steps.filter((_, i) => i % 2 === 0));
    this.#evaluations = this.#evaluations.filter(({ step }) => kept.has(step));
    this.#keepEvery *= 2;
  }

  #halve(): void {
    const merged: Row[] = [];
    for (let i = 0; i + 1 < this.#rows.length; i += 2) {
      const a = this.#rows[i]!, b = this.#rows[i + 1]!;
      for (const name of MEANS) {
        b.sums[name] += a.sums[name];
        b.counts[name] += a.counts[name];
      }
      merged.push({ ...b, passes: a.passes + b.passes });
    }
    this.#rows = merged;
    this.#stride *= 2;
  }

  /** Everything so far, the row that is not yet full included. */
  columns(): Omit<History, "version" | "run_id"> {
    const rows = this.#open ? [...this.#rows, this.#open] : this.#rows;
    const mean = (name: Mean) => rows.map(({ sums, counts }) => counts[name] === 0 ? null : short(sums[name] / counts[name]));
    return {
      stride: this.#stride,
      step: rows.map(({ step }) => step),
      loss: mean("loss"),
      validation_loss: mean("validation_loss"),
      lr: rows.map(({ lr }) => lr === null ? null : short(lr)),
      grad_norm: mean("grad_norm"),
      tokens_per_second: mean("tokens_per_second"),
      effective_share: mean("effective_share"),
      evaluations: this.#evaluations,
    };
  }
}

/** Six digits: more than a chart shows, in a third of the text. */
function short(value: number): number | null {
  return Number.isFinite(value) ? Number(value.toPrecision(6)) : null;
}
