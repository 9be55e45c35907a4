/** What the losses of a data set amount to. */
import { UserError } from "../errors.ts";
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

/**
 * Makes sure that every loss is a number.
 * @throws {UserError} exit code 1, naming the first sample whose loss is none
 */
export function requireFinite(
  { sums }: Pick<SampleLosses, "sums">,
  samples: readonly { readonly id: string }[],
  what: string,
): void {
  const bad = sums.findIndex((sum) => !Number.isFinite(sum));
  if (bad < 0) return;
  throw new UserError(
    `Cannot ${what}: the loss of the sample ${samples[bad]!.id} is ${sums[bad]}. Check the weights of model and adapter`,
  );
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
