/**
 * What the status server tells: the documents of `/status`, `/history` and `/samples`. These schemas are the authority; the types, the
 * JSON Schema at `/schema` and the tables of docs/status.md are made from them.
 *
 * Names and units are those of metrics.jsonl where both tell the same.
 */
import { z } from "zod";

/** Version of the documents. It grows when a key goes away or changes its meaning; a new key leaves it as it is. */
export const STATUS_VERSION = 1;

const count = () => z.int().min(0);
const numberOrNull = () => z.number().nullable();
const seconds = () => z.number().min(0);

/** What a run is doing. */
export const stateSchema = z.enum(["starting", "training", "evaluating", "saving", "stopping", "stopped", "finished", "failed"]);

const evaluationSchema = z.strictObject({
  name: z.enum(["validation", "test"]).describe("Data set"),
  step: count().describe("Optimizer steps made before it"),
  loss: numberOrNull().describe("Mean over labelled tokens, nats"),
  perplexity: numberOrNull().describe("exp(loss)"),
  accuracy: numberOrNull().describe("Share of samples whose every labelled token is the model's first choice"),
  samples: count().describe("Samples evaluated"),
});

const weightsSchema = z.strictObject({
  edges: z.array(z.number()).describe(
    "Upper edges of the bins, inclusive; a weight is told in multiples of the even share 1/n of its batch. One more bin follows for " +
      "what lies above the last edge",
  ),
  counts: z.array(count()).describe("Samples a bin since this process began, one entry more than edges"),
  recent: z.array(count()).describe("The same of the last 1,024 weighted samples"),
  zeros: count().describe("Samples whose weight was exactly 0 since this process began"),
  total: count().describe("Weighted samples since this process began"),
  sum: z.number().describe("Sum of their weights in multiples of the even share"),
});

/** The document of `/status` and of every event of `/events`. */
export const snapshotSchema = z.strictObject({
  version: z.literal(STATUS_VERSION).describe("Version of this document"),
  metalora: z.string().describe("Version of the program"),
  run_id: z.string().nullable().describe("Name and start of the run; null until the run has started"),
  name: z.string().nullable().describe("Last part of the output folder's name"),
  state: stateSchema.describe("What the run is doing"),
  message: z.string().nullable().describe("Why the run failed or was stopped, or the newest note; null: nothing to tell"),
  model: z.string().nullable().describe("Last part of the model folder's name"),
  method: z.enum(["none", "mix", "meta-lora"]).nullable().describe("reweight.method of the configuration"),
  device: z.string().nullable().describe("What the run computes on"),
  parameters: count().nullable().describe("Trained parameters"),
  step: count().describe("Optimizer steps made"),
  steps: count().nullable().describe("Optimizer steps of the whole run"),
  resumed_at: count().describe("Step of the checkpoint that this process continued from; 0: it began at the start"),
  progress: z.number().min(0).max(1).describe("step / steps"),
  epoch: count().nullable().describe("Epoch of the newest training batch, from 0"),
  loss: numberOrNull().describe("Unweighted loss of the newest training batch, nats"),
  loss_smoothed: numberOrNull().describe("Exponential mean of it"),
  validation_batch_loss: numberOrNull().describe("Loss of the newest validation batch that guided the weights, nats"),
  lr: numberOrNull().describe("Learning rate"),
  grad_norm: numberOrNull().describe("Norm of the newest gradient before clipping"),
  tokens: count().describe("Tokens that went through the model since this process began"),
  tokens_per_second: numberOrNull().describe("Over about the last 10 seconds of training"),
  tokens_per_second_mean: numberOrNull().describe("Over the whole run"),
  memory: z.strictObject({
    planned_bytes: count().nullable().describe("What the run was planned to take"),
    used_bytes: count().nullable().describe("The most that it took so far, of the GPU where it runs on one"),
  }).describe("Memory of the run"),
  effective_sample_size: z.strictObject({
    size: numberOrNull().describe("1 / Σ w² of the newest weighted batch"),
    samples: count().describe("Samples of that batch: the most that size can be"),
  }).nullable().describe("Null: batches are not weighted"),
  weights: weightsSchema.nullable().describe("Histogram of the samples' weights; null: batches are not weighted"),
  skipped_batches: count().describe("Batches without a step since this process began"),
  last_fault: z.string().nullable().describe("Why the newest faulty batch was skipped"),
  checkpoint: z.strictObject({
    step: count().describe("Its step"),
    best: z.boolean().describe("Whether its validation loss is the lowest so far"),
    bytes: count().describe("Its size"),
    at: z.string().describe("When it was complete, ISO 8601 in UTC"),
  }).nullable().describe("Newest checkpoint that this process wrote"),
  evaluations: z.array(evaluationSchema).describe("Newest evaluation of each data set"),
  started_at: z.string().describe("When the run began, ISO 8601 in UTC, by the wall clock"),
  updated_at: z.string().describe("When the newest event arrived, by the wall clock"),
  elapsed_seconds: seconds().describe("Seconds of training, by a clock that never jumps; those before a resumption included"),
  seconds_left: seconds().nullable().describe("Estimate; null: unknown or over"),
  samples_allowed: z.boolean().describe("Whether /samples tells about single samples"),
});

const column = (what: string) => z.array(numberOrNull()).describe(what);

/** The document of `/history`: columns of equal length. */
export const historySchema = z.strictObject({
  version: z.literal(STATUS_VERSION).describe("Version of this document"),
  run_id: z.string().nullable().describe("As in /status"),
  stride: z.int().min(1).describe("Passes that a row stands for; it doubles when there are more than 512 rows"),
  step: z.array(z.number()).describe("Last step of the row"),
  loss: column("Mean training loss, nats"),
  validation_loss: column("Mean loss of validation batches, nats; null: there was none"),
  lr: column("Last learning rate"),
  grad_norm: column("Mean norm of the gradient"),
  tokens_per_second: column("Mean speed"),
  effective_share: column("Mean effective sample size as a share of the batch"),
  evaluations: z.array(evaluationSchema).describe("At most 200, evenly thinned"),
});

const sampleSchema = z.strictObject({
  id: z.string().describe("Id of the sample"),
  source: z.string().nullable().describe("Its source, where the data names one"),
  weight: z.number().describe("Mean weight in multiples of the even share"),
  seen: count().describe("Times it was weighted since this process began"),
  prompt: z.string().nullable().describe("Beginning of its prompt"),
  response: z.string().nullable().describe("Beginning of its answer"),
});

/** The document of `/samples`. */
export const samplesSchema = z.strictObject({
  version: z.literal(STATUS_VERSION).describe("Version of this document"),
  run_id: z.string().nullable().describe("As in /status"),
  most: z.array(sampleSchema).describe("Highest mean weight first, at most 10"),
  least: z.array(sampleSchema).describe("Lowest mean weight first, at most 10"),
});

/** See {@link stateSchema}. */
export type RunState = z.output<typeof stateSchema>;
/** See {@link snapshotSchema}. */
export type Snapshot = z.output<typeof snapshotSchema>;
/** See {@link historySchema}. */
export type History = z.output<typeof historySchema>;
/** See {@link samplesSchema}. */
export type UsefulSamples = z.output<typeof samplesSchema>;
/** One entry of {@link UsefulSamples}. */
export type UsefulSample = z.output<typeof sampleSchema>;
/** One evaluation, as served. */
export type ServedEvaluation = z.output<typeof evaluationSchema>;
/** Histogram of weights, as served. */
export type WeightHistogram = z.output<typeof weightsSchema>;

/** The three documents as one JSON Schema, each under `$defs`. */
export function jsonSchema(): Record<string, unknown> {
  const definition = (schema: z.ZodType) => {
    const { $schema: _, ...rest } = z.toJSONSchema(schema);
    return rest;
  };
  return {
    $schema: "https://json-schema.org/draft/2020-12/schema",
    title: "metalora status",
    description: "/status and the events of /events are $defs/status, /history is $defs/history, /samples is $defs/samples",
    $ref: "#/$defs/status",
    $defs: { status: definition(snapshotSchema), history: definition(historySchema), samples: definition(samplesSchema) },
  };
}
