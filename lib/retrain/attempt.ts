/** The training side of a retraining folder: `attempt.json` and `candidate/`, the output of a run that is not decided yet. */
import { join } from "node:path";
import type { Config } from "../config/schema.ts";
import { readRegularFile } from "../files.ts";
import { syncFolder, writeAll, writeFileAtomic } from "../tensor/atomic.ts";
import { RunFiles, writing } from "../train/folder.ts";
import { tally } from "../train/result.ts";
import { changedInputs } from "./inputs.ts";
import { type Attempt, type Cost, RECORD_FORMAT, type RetrainRecord } from "./records.ts";

/** Whether an invocation decided about the candidate of its attempt. */
export const isDecided = ({ outcome }: RetrainRecord): boolean => outcome === "published" || outcome === "rejected";

/** What a training would be made from. */
export type Plan = Pick<Attempt, "inputs" | "start" | "start_sha256">;

/** The files of a training, in a folder that the caller holds (`RunFolder`). */
export class Candidate {
  constructor(readonly output: string) {}

  /** Output folder of the run. */
  get folder(): string {
    return join(this.output, "candidate");
  }

  /** The adapter of the run, there once it is complete. */
  get adapter(): string {
    return join(this.folder, "adapter");
  }

  /** The configuration of the run. */
  config(config: Config): Config {
    return { ...config, output: this.folder };
  }

  /** The attempt that was begun and not decided; null: there is none. */
  pending(history: readonly RetrainRecord[]): Attempt | null {
    let attempt: Attempt;
    try {
      attempt = JSON.parse(readRegularFile(this.#path));
    } catch { // none, or nothing that can be read: a training that starts anew is right in any case
      return null;
    }
    if (attempt.format !== RECORD_FORMAT) return null;
    return history.some((record) => isDecided(record) && record.attempt === attempt.attempt) ? null : attempt;
  }

  /**
   * Goes on with a pending attempt that is made from the same, or begins another one with an empty folder.
   * @returns the attempt, and whether it is the pending one
   */
  begin(plan: Plan, history: readonly RetrainRecord[]): { attempt: Attempt; resumed: boolean } {
    const pending = this.pending(history);
    const same = pending !== null && changedInputs(pending.inputs, plan.inputs).length === 0 &&
      pending.start === plan.start && pending.start_sha256 === plan.start_sha256;
    if (same) return { attempt: pending, resumed: true };
    this.remove();
    const number = Math.max(0, pending?.attempt ?? 0, ...history.map(({ attempt }) => attempt)) + 1;
    const attempt: Attempt = { format: RECORD_FORMAT, attempt: number, ...plan };
    const text = JSON.stringify(attempt, null, 2) + "\n";
    writing(this.output, () => writeFileAtomic(this.#path, (file) => writeAll(file, new TextEncoder().encode(text))));
    return { attempt, resumed: false };
  }

  /** Removes the run, so that the attempt starts from the beginning. */
  remove(): void {
    writing(this.output, () => {
      const going = join(this.output, `.candidate.${Deno.pid}-0.tmp`); // should it be killed here, the next holder removes that
      if (!new RunFiles(this.output).has("candidate")) return;
      Deno.renameSync(this.folder, going);
      Deno.removeSync(going, { recursive: true });
    });
  }

  /** Tidies up behind a decision: a rejected run stays to be looked at, without its checkpoints, until the next one begins. */
  end(history: readonly RetrainRecord[]): void {
    if (this.pending(history) !== null) return;
    const last = history.findLast(isDecided);
    if (last?.outcome === "published") this.remove();
    const files = new RunFiles(this.output);
    files.remove(["candidate/checkpoints", "attempt.json"].filter((name) => files.has(name)));
    writing(this.output, () => syncFolder(this.output));
  }

  /** What the training cost, by the lines of its metrics. */
  cost(): Cost {
    const { steps, tokens, seconds, peak_memory_bytes } = tally(this.folder);
    return { steps, tokens, training_seconds: seconds, peak_memory_bytes };
  }

  get #path(): string {
    return join(this.output, "attempt.json");
  }
}
