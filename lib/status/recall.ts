/** What a resumed run went through before: the lines of metrics.jsonl up to its checkpoint. */
import { join } from "node:path";
import type { StartedEvent } from "../train/events.ts";
import type { Pass } from "./history.ts";
import type { ServedEvaluation } from "./schema.ts";

/** Passes and evaluations in order. */
export interface Recalled {
  readonly passes: readonly Pass[];
  readonly evaluations: readonly ServedEvaluation[];
}

/** A longer log, of more than a hundred thousand passes, would keep signals and requests waiting while it is read. */
const MOST_BYTES = 32 * 2 ** 20;

/** Reads the log of a run that goes on; what cannot be read is left out, for nothing but a chart depends on it. */
export function recallRun({ config, resumedAt }: StartedEvent): Recalled {
  const passes: Pass[] = [], evaluations: ServedEvaluation[] = [];
  const batch = config.train.batch_size * config.train.accumulate;
  for (const line of readLines(join(config.output, "metrics.jsonl"))) {
    const { step, kind, loss, lr, grad_norm, tokens_per_second, effective_sample_size } = line;
    if (typeof step !== "number" || step > resumedAt) continue;
    if (kind === "train" || kind === "validation") {
      const size = number(effective_sample_size);
      passes.push({
        step,
        kind,
        loss: number(loss) ?? NaN,
        lr: number(lr) ?? NaN,
        gradNorm: number(grad_norm),
        tokensPerSecond: number(tokens_per_second),
        effectiveShare: size === null ? null : size / batch,
      });
    } else if (kind === "validation evaluation" || kind === "test evaluation") {
      const { perplexity, accuracy, samples } = line;
      evaluations.push({
        name: kind === "test evaluation" ? "test" : "validation",
        step,
        loss: number(loss),
        perplexity: number(perplexity),
        accuracy: number(accuracy),
        samples: number(samples) ?? 0,
      });
    }
  }
  return { passes, evaluations };
}

function* readLines(path: string): Generator<Record<string, unknown>> {
  let text: string;
  try {
    if (Deno.statSync(path).size > MOST_BYTES) return;
    text = Deno.readTextFileSync(path);
  } catch { // no log
    return;
  }
  for (const line of text.split("\n")) {
    try {
      const value: unknown = JSON.parse(line);
      if (typeof value === "object" && value !== null) yield value as Record<string, unknown>;
    } catch { // the last line may be on its way
    }
  }
}

function number(value: unknown): number | null {
  return typeof value === "number" ? value : null;
}
