/** Learning-rate schedules over optimizer steps, as transformers defines them. */

/** Shape after the warm-up. */
export type ScheduleShape = "cosine" | "linear" | "constant";

/**
 * The learning rate of optimizer step `step` (0-based) of `total`: linear from 0 over `warmup` steps, then
 * ½(1 + cos πp), 1 − p or 1 with p the progress through the remaining steps. Cosine and linear reach 0 at step `total`.
 * @param warmup steps; a value below 1 is a share of the total (rounded up)
 */
export function learningRate(step: number, { lr, schedule, warmup, total }: {
  lr: number;
  schedule: ScheduleShape;
  warmup: number;
  total: number;
}): number {
  const warm = warmup < 1 ? Math.ceil(warmup * total) : warmup;
  if (step < warm) return lr * step / warm;
  if (schedule === "constant") return lr;
  const progress = Math.min(1, (step - warm) / Math.max(1, total - warm));
  return lr * (schedule === "cosine" ? 0.5 * (1 + Math.cos(Math.PI * progress)) : 1 - progress);
}
