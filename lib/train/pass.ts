/** One pass over a batch: what is known of it, what is wrong with it, and what it amounts to. */
import type { Sample } from "../data/encode.ts";
import { labelledTokens, type Normalisation } from "./batch.ts";
import type { SampleLosses } from "./engine.ts";

/** How the loss of a batch is normalised. */
export type LossNormalisation = "token-mean" | "sample-mean";

/** What happened in one pass. */
export interface StepReport {
  /** Optimizer steps made so far, this one included. */
  readonly step: number;
  readonly kind: "train" | "validation";
  readonly epoch: number;
  readonly lr: number;
  /** Unweighted loss of the batch in its normalisation, nats. */
  readonly loss: number;
  /** Gradient norm before clipping; null when no step was taken. */
  readonly gradNorm: number | null;
  /** Tokens that went through the model. */
  readonly tokens: number;
  /** Training or validation samples, by index. */
  readonly samples: readonly number[];
  readonly losses: readonly number[];
  readonly similarities: ArrayLike<number> | null;
  readonly weights: ArrayLike<number> | null;
  /** 1 / Σ w². */
  readonly effectiveSampleSize: number | null;
  /** The batch is consumed and no step was taken: every weight was 0, or it was faulty. */
  readonly skipped: boolean;
  /** What was wrong with a faulty batch. */
  readonly fault: string | null;
}

/** What is known of a batch before its step. */
export interface Batch {
  readonly epoch: number;
  readonly samples: readonly Sample[];
  readonly indices: readonly number[];
  readonly losses: SampleLosses;
  readonly lr: number;
  readonly loss: LossNormalisation;
}

/** Of a report whose batch was not weighted. */
export const UNWEIGHTED = { similarities: null, weights: null, effectiveSampleSize: null, skipped: false, fault: null } as const;

/** Names the first sample whose loss is no number; null when all are. */
export function notFinite({ sums }: SampleLosses, samples: readonly Sample[], which: string): string | null {
  const bad = samples.findIndex((_, i) => !Number.isFinite(sums[i]!));
  return bad < 0 ? null : `the loss of the ${which} sample ${samples[bad]!.id} is ${sums[bad]}`;
}

/** Mean loss of each sample over its labelled tokens, nats. */
const sampleMeans = ({ sums, tokens }: SampleLosses): number[] => Array.from(sums, (sum, i) => sum / tokens[i]!);

/** Loss of a batch in its normalisation, nats. */
export function batchLoss(losses: SampleLosses, loss: LossNormalisation): number {
  if (loss === "token-mean") return losses.sums.reduce((a, b) => a + b, 0) / losses.tokens.reduce((a, b) => a + b, 0);
  const means = sampleMeans(losses);
  return means.reduce((a, b) => a + b, 0) / means.length;
}

/** The report of a pass after which `step` optimizer steps are made, but for weights and faults. */
export function reportOf(kind: "train" | "validation", step: number, about: Batch & { gradNorm: number | null }) {
  const { epoch, samples, indices, losses, lr, gradNorm, loss } = about;
  return {
    step,
    kind,
    epoch,
    lr,
    loss: batchLoss(losses, loss),
    gradNorm,
    tokens: samples.reduce((sum, { ids }) => sum + ids.length, 0),
    samples: indices,
    losses: sampleMeans(losses),
  };
}

/** The normalisation of a batch whose loss is the given mean. */
export function normalise(loss: LossNormalisation, samples: readonly Sample[]): Normalisation {
  if (loss === "sample-mean") return { per: "sample", samples: samples.length };
  return { per: "token", tokens: samples.reduce((sum, sample) => sum + labelledTokens(sample), 0) };
}

/** Losses of micro-batches as those of one batch. */
export function concatenate(parts: readonly SampleLosses[]): SampleLosses {
  return {
    sums: Float64Array.from(parts.flatMap(({ sums }) => Array.from(sums))),
    tokens: parts.flatMap(({ tokens }) => tokens),
    exact: parts.flatMap(({ exact }) => exact),
  };
}
