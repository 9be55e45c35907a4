/** What the losses of a data set amount to. */
import type { SampleLosses } from "./engine.ts";

/** Mean losses of a data set. */
export interface Evaluation {
  /** Mean over labelled tokens, nats. */
  readonly loss: number;
  readonly tokens: number;
  readonly samples: number;
  readonly perplexity: number;
  /** Share of samples whose every labelled token is the model's first choice. */
  readonly accuracy: number;
}

/** Sums up the losses of samples. */
export function evaluation({ sums, tokens, exact }: SampleLosses): Evaluation {
  const count = tokens.reduce((a, b) => a + b, 0);
  const loss = sums.reduce((a, b) => a + b, 0) / count;
  const accuracy = exact.filter(Boolean).length / exact.length;
  return { loss, tokens: count, samples: exact.length, perplexity: Math.exp(loss), accuracy };
}

/** Such as "loss 0.6931, perplexity 2.000, 12.5 % of 200 answers exact". */
export function describeEvaluation({ loss, perplexity, accuracy, samples }: Evaluation): string {
  return `loss ${loss.toFixed(4)}, perplexity ${perplexity.toFixed(3)}, ${
    (100 * accuracy).toFixed(1)
  } % of ${samples} answers exact`;
}
