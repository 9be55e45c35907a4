/** Lines of metrics.jsonl and weights.jsonl, checked: somebody, or a damaged disk, may have changed them since they were written. */
import { z } from "zod";
import type { Row } from "../data/readers.ts";
import { UserError } from "../errors.ts";
import type { MetricsLine, SampleLine } from "./input.ts";

/** What to do about a damaged line. */
export const LINE_ADVICE = "Restore the file, or remove that line";

/** A line of weights.jsonl. */
export type WeightsLine = Omit<SampleLine, "prompt" | "response" | "length">;

const numberOrNull = z.number().nullable();

const batch = z.object({
  kind: z.enum(["train", "validation"]),
  step: z.number(),
  loss: numberOrNull,
  lr: z.number().optional(),
  grad_norm: numberOrNull.optional(),
  tokens: z.number().optional(),
  seconds: z.number().optional(),
  memory_bytes: z.number().optional(),
  effective_sample_size: numberOrNull.optional(),
  max_weight: z.number().optional(),
  source_weights: z.record(z.string(), z.tuple([z.number(), z.number()])).optional(),
  skipped: z.boolean().optional(),
  fault: z.string().optional(),
});

const evaluation = z.object({
  kind: z.enum(["validation evaluation", "test evaluation"]),
  step: z.number(),
  loss: numberOrNull,
  accuracy: z.number(),
  samples: z.number(),
});

const metrics = z.discriminatedUnion("kind", [batch, evaluation]);

const weights = z.object({
  id: z.string(),
  source: z.string().nullable(),
  seen: z.number(),
  weight: numberOrNull,
  similarity: numberOrNull,
  loss: numberOrNull,
});

/** @throws {UserError} exit code 2, naming file, line and key, when a row is no line of metrics.jsonl */
export const checkMetricsLine = (row: Row): MetricsLine => check<MetricsLine>(row, metrics);

/** @throws {UserError} exit code 2, naming file, line and key, when a row is no line of weights.jsonl */
export const checkWeightsLine = (row: Row): WeightsLine => check<WeightsLine>(row, weights);

function check<T>({ fields, where }: Row, schema: z.ZodType): T {
  const { error } = schema.safeParse(fields);
  if (error === undefined) return fields as T;
  const { path } = error.issues[0]!;
  const found = path.reduce<unknown>((value, key) => (value as Record<PropertyKey, unknown>)[key], fields);
  const name = path.join(".");
  const shown = typeof found === "number" ? String(found) : JSON.stringify(found); // JSON has no Infinity
  const what = found === undefined ? `has no '${name}'` : `has ${shown} as '${name}'`;
  throw new UserError(`${where}: Cannot make a report: the line ${what}. ${LINE_ADVICE}`, 2);
}
