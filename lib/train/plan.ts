/**
 * Which pass comes next: the step accounting of META-LORA and of the MIX control (algorithms §1.4), free of any model so
 * that it can be counted through.
 */

/** One pass: `refresh` runs a validation batch, `plain` and `weighted` consume a training batch. */
export type Pass = "refresh" | "plain" | "weighted";

/** What decides the order of passes. */
export interface PassOptions {
  readonly method: "none" | "mix" | "meta-lora";
  /** Training batches consumed between validation batches. */
  readonly every: number;
  /**
   * When a training batch takes an ordinary step: "never"; "first" of the run, for similarities that are 0 while B = 0; or
   * the first of each "epoch", as the authors' code has it. Refreshes are counted from the batch behind it.
   */
  readonly plainStart: "never" | "first" | "epoch";
}

/** Position in the training data. */
export interface Position {
  /** Training batches consumed. */
  consumed: number;
  /** Training batches consumed in this epoch. */
  inEpoch: number;
}

/**
 * Passes due before and with the next training batch.
 *
 * With `plainStart: "epoch"` positions are counted within the epoch, as the authors' loop does: batch 0 is plain, and a
 * validation batch comes before batch s when (s − 1) mod every = 0.
 */
export function passesAt({ consumed, inEpoch }: Position, { method, every, plainStart }: PassOptions): Pass[] {
  if (method === "none") return ["plain"];
  const s = plainStart === "epoch" ? inEpoch : consumed;
  const lead = method === "meta-lora" && plainStart !== "never" ? 1 : 0;
  const train: Pass = method === "mix" || s < lead ? "plain" : "weighted";
  return s >= lead && (s - lead) % every === 0 ? ["refresh", train] : [train];
}

/**
 * Optimizer steps that `batches` training batches lead to (without skipped ones), each `accumulate` micro-batches long.
 * @param perEpoch training batches in an epoch
 */
export function plannedSteps(batches: number, perEpoch: number, options: PassOptions & { trainOn: boolean }): number {
  const { method, every, plainStart, trainOn } = options;
  if (method === "none" || !trainOn) return batches;
  const lead = method === "meta-lora" && plainStart !== "never" ? 1 : 0;
  const refreshes = (batches: number) => Math.max(0, Math.ceil((batches - lead) / every));
  if (plainStart !== "epoch") return batches + refreshes(batches);
  return batches + Math.floor(batches / perEpoch) * refreshes(perEpoch) + refreshes(batches % perEpoch);
}
