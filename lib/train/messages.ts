/** Events of a run as plain data, and the lines of metrics.jsonl. */
import type { Dataset } from "../data/dataset.ts";
import { VERSION } from "../version.ts";
import type { BatchSample, DatasetFacts, StartedEvent, SteppedEvent } from "./events.ts";
import type { StepReport } from "./pass.ts";
import type { PreparedRun } from "./run.ts";

/** A data set without its samples. */
export function datasetFacts({ path, sha256, samples, truncated, dropped }: Dataset): DatasetFacts {
  return { path, sha256, samples: samples.length, truncated, dropped };
}

/** A run that is about to make its first step. */
export function startedEvent(
  { config, inputs, engine, steps, plan }: PreparedRun,
  { device, resumedAt }: { device: string; resumedAt: number },
): StartedEvent {
  const { train, validation, test } = inputs.data;
  return {
    type: "started",
    version: VERSION,
    config,
    device,
    parameters: engine.parameters,
    steps,
    resumedAt,
    data: {
      train: datasetFacts(train),
      validation: validation && datasetFacts(validation),
      test: test && datasetFacts(test),
    },
    plan,
  };
}

/** A pass, with the ids of its samples (and with `texts`, what they say). */
export function steppedEvent(
  report: StepReport,
  { inputs, steps }: PreparedRun,
  measured: Pick<SteppedEvent, "seconds" | "tokensPerSecond" | "memoryBytes">,
  texts: boolean,
): SteppedEvent {
  const { step, kind, epoch, lr, loss, gradNorm, tokens, effectiveSampleSize, skipped, fault, weights, similarities } = report;
  const samples = (kind === "train" ? inputs.data.train : inputs.data.validation!).samples;
  return {
    type: "stepped",
    step,
    steps,
    kind,
    epoch,
    lr,
    loss,
    gradNorm,
    tokens,
    ...measured,
    effectiveSampleSize,
    skipped,
    fault,
    samples: report.samples.map((index, i): BatchSample => {
      const { id, source, prompt, response } = samples[index]!;
      return {
        index,
        id,
        source,
        loss: report.losses[i]!,
        weight: weights ? weights[i]! : null,
        similarity: similarities ? similarities[i]! : null,
        ...(texts ? { prompt, response } : {}),
      };
    }),
  };
}

/** A pass as a line of metrics.jsonl. */
export function metricsLine(event: SteppedEvent): Record<string, unknown> {
  const { step, kind, epoch, loss, lr, gradNorm, tokens, effectiveSampleSize, skipped, fault, samples } = event;
  const weights = samples.flatMap(({ weight }) => weight === null ? [] : [weight]);
  return {
    step,
    kind,
    epoch,
    loss,
    lr,
    grad_norm: gradNorm,
    tokens,
    tokens_per_second: event.tokensPerSecond,
    seconds: event.seconds,
    memory_bytes: event.memoryBytes,
    ...(weights.length > 0
      ? { effective_sample_size: effectiveSampleSize, max_weight: weights.reduce((a, b) => Math.max(a, b)), skipped }
      : {}),
    ...sourceWeights(samples),
    ...(fault === null ? {} : { skipped, fault, samples: samples.map(({ id }) => id) }),
  };
}

/** Samples and sum of weights by source, of a weighted batch whose samples have sources. */
function sourceWeights(samples: readonly BatchSample[]): { source_weights?: Record<string, [samples: number, weight: number]> } {
  if (samples.every(({ source, weight }) => source === null || weight === null)) return {};
  const sums = new Map<string, [number, number]>();
  for (const { source, weight } of samples) {
    const [count, sum] = sums.get(source ?? "") ?? [0, 0];
    sums.set(source ?? "", [count + 1, sum + (weight ?? 0)]);
  }
  return { source_weights: Object.fromEntries(sums) };
}
