/** A snapshot in Prometheus' text format, version 0.0.4. */
import { stateSchema } from "./schema.ts";
import type { Snapshot } from "./schema.ts";

/** Content type that Prometheus asks for. */
export const METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8";

type Labels = Record<string, string>;
type Value = readonly [labels: Labels, value: number | null];

/**
 * All metrics of a run. What is unknown is left out.
 * @param clients open streams of `/events`
 */
export function prometheusText(snapshot: Snapshot, { clients }: { clients: number }): string {
  const s = snapshot;
  const one = (value: number | null): Value[] => [[{}, value]];
  const each = (pick: (evaluation: Snapshot["evaluations"][number]) => number | null): Value[] =>
    s.evaluations.map((evaluation) => [{ set: evaluation.name }, pick(evaluation)]);
  const info: Labels = {
    version: s.metalora,
    run_id: s.run_id ?? "",
    model: s.model ?? "",
    method: s.method ?? "",
    device: s.device ?? "",
  };
  const effective = s.effective_sample_size;
  return [
    family("info", "gauge", "What runs: always 1, the facts are in the labels", [[info, 1]]),
    family(
      "state",
      "gauge",
      "1 for the state that the run is in, 0 for the others",
      stateSchema.options.map((state) => [{ state }, state === s.state ? 1 : 0]),
    ),
    family("steps_total", "counter", "Optimizer steps made", one(s.step)),
    family("planned_steps", "gauge", "Optimizer steps of the whole run", one(s.steps)),
    family("progress_ratio", "gauge", "Steps made, as a share of the planned ones", one(s.progress)),
    family("epoch", "gauge", "Epoch of the newest training batch, from 0", one(s.epoch)),
    family("tokens_total", "counter", "Tokens that went through the model since this process began", one(s.tokens)),
    family("tokens_per_second", "gauge", "Speed over about the last 10 seconds of training", one(s.tokens_per_second)),
    family("skipped_batches_total", "counter", "Batches without a step since this process began", one(s.skipped_batches)),
    family("loss", "gauge", "Unweighted loss of the newest training batch in nats", one(s.loss)),
    family("loss_smoothed", "gauge", "Exponential mean of the training loss in nats", one(s.loss_smoothed)),
    family("validation_batch_loss", "gauge", "Loss of the newest validation batch in nats", one(s.validation_batch_loss)),
    family("learning_rate", "gauge", "Learning rate", one(s.lr)),
    family("gradient_norm", "gauge", "Norm of the newest gradient before clipping", one(s.grad_norm)),
    family(
      "effective_sample_size",
      "gauge",
      "1 / sum of squared weights of the newest weighted batch",
      one(effective?.size ?? null),
    ),
    family("weighted_batch_samples", "gauge", "Samples of the newest weighted batch", one(effective?.samples ?? null)),
    weights(s.weights),
    family("memory_planned_bytes", "gauge", "Memory that the run was planned to take", one(s.memory.planned_bytes)),
    family(
      "memory_peak_bytes",
      "gauge",
      "Most memory of the run so far, of the GPU where it runs on one",
      one(s.memory.used_bytes),
    ),
    family("evaluation_loss", "gauge", "Loss of the newest evaluation in nats", each(({ loss }) => loss)),
    family(
      "evaluation_accuracy_ratio",
      "gauge",
      "Share of exact answers in the newest evaluation",
      each(({ accuracy }) => accuracy),
    ),
    family("evaluation_step", "gauge", "Step of the newest evaluation", each(({ step }) => step)),
    family("checkpoint_step", "gauge", "Step of the newest checkpoint", one(s.checkpoint?.step ?? null)),
    family(
      "checkpoint_timestamp_seconds",
      "gauge",
      "When the newest checkpoint was complete, Unix time",
      one(s.checkpoint ? Date.parse(s.checkpoint.at) / 1000 : null),
    ),
    family("start_timestamp_seconds", "gauge", "When the run began, Unix time", one(Date.parse(s.started_at) / 1000)),
    family("elapsed_seconds", "gauge", "Seconds of training, those before a resumption included", one(s.elapsed_seconds)),
    family("remaining_seconds", "gauge", "Estimate of the seconds left", one(s.seconds_left)),
    family("status_streams", "gauge", "Open streams of /events", one(clients)),
  ].join("");
}

/** A metric with its help and type; empty when no value is known. */
function family(name: string, type: "gauge" | "counter", help: string, values: readonly Value[]): string {
  const known = values.filter(([, value]) => value !== null);
  if (known.length === 0) return "";
  return head(name, type, help) + known.map(([labels, value]) => line(name, labels, value!)).join("");
}

/** Weights of samples as a histogram: cumulative counts by upper edge, their sum and number. */
function weights(histogram: Snapshot["weights"]): string {
  if (!histogram) return "";
  const { edges, counts, sum, total } = histogram;
  const name = "sample_weight_ratio";
  let below = 0;
  const buckets = counts.map((count, i) =>
    line(`${name}_bucket`, { le: i < edges.length ? String(edges[i]) : "+Inf" }, below += count)
  );
  return head(name, "histogram", "Weights of training samples in multiples of the even share of their batch") + buckets.join("") +
    line(`${name}_sum`, {}, sum) + line(`${name}_count`, {}, total);
}

function head(name: string, type: string, help: string): string {
  return `# HELP metalora_${name} ${help}\n# TYPE metalora_${name} ${type}\n`;
}

function line(name: string, labels: Labels, value: number): string {
  const inner = Object.entries(labels).map(([key, text]) => `${key}="${escape(text)}"`).join(",");
  return `metalora_${name}${inner === "" ? "" : `{${inner}}`} ${value}\n`;
}

const escape = (text: string): string => text.replace(/\\/g, "\\\\").replace(/\n/g, "\\n").replace(/"/g, '\\"');
