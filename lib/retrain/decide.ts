/** Whether a candidate is published. */
import type { Evaluation } from "../train/evaluation.ts";
import type { Comparison } from "./records.ts";

/** What is decided, and why. */
export interface Decision {
  readonly publish: boolean;
  /** One sentence with the numbers. */
  readonly reason: string;
}

/**
 * A candidate is published unless it is worse than the published adapter by more than the margin, or its loss is no number.
 * Loss is better when lower, accuracy when higher.
 */
export function decide({ data, metric, margin, candidate, release, published, base }: Comparison): Decision {
  const of = (evaluation: Evaluation) => show(metric, evaluation);
  const ours = `${metric} ${of(candidate)} on the ${data} data`;
  if (!Number.isFinite(candidate.loss)) {
    return { publish: false, reason: `the candidate's loss on the ${data} data is no number` };
  }
  if (published === null) {
    if (base === null) return { publish: true, reason: `first release: ${ours}` };
    const worse = worseBy(metric, candidate, base) > 0 ? "; it is worse than the model without adapter" : "";
    return { publish: true, reason: `first release: ${ours}, ${of(base)} without adapter${worse}` };
  }
  const theirs = `${of(published)} of release ${release}`;
  if (!Number.isFinite(published.loss)) return { publish: true, reason: `${ours}; that of release ${release} is no number` };
  const worse = worseBy(metric, candidate, published);
  const by = `${worse > 0 ? "worse" : "better"} by ${show(metric, { loss: Math.abs(worse), accuracy: Math.abs(worse) })}`;
  const how = worse === 0 ? "the same" : by;
  return { publish: worse <= margin, reason: `${ours} against ${theirs}: ${how}, margin ${margin}` };
}

/** By how much a candidate is worse, in units of the metric; negative: better. */
function worseBy(metric: Comparison["metric"], candidate: Evaluation, other: Evaluation): number {
  return metric === "loss" ? candidate.loss - other.loss : other.accuracy - candidate.accuracy;
}

function show(metric: Comparison["metric"], values: Pick<Evaluation, "loss" | "accuracy">): string {
  return metric === "loss" ? values.loss.toFixed(4) : `${(100 * values.accuracy).toFixed(2)} %`;
}
