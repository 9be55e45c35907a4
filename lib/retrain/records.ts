/** What `metalora retrain` keeps: the lines of history.jsonl, result.json, and release.json of every release. */
import type { Config } from "../config/schema.ts";
import type { Evaluation } from "../train/evaluation.ts";
import type { InputHashes } from "./inputs.ts";

/** Number of this layout. */
export const RECORD_FORMAT = 1;

/** How an invocation ended. */
export type Outcome =
  /** The candidate is the current release. */
  | "published"
  /** Trained, but worse than the published adapter by more than the margin. */
  | "rejected"
  /** Data, configuration and base model are what they were: nothing was done. Not in the history. */
  | "unchanged"
  /** A signal; the next invocation goes on. */
  | "stopped"
  | "failed"
  /** An earlier release is the current one again. */
  | "rolled back";

/** How candidate and published adapter were measured. */
export interface Comparison {
  /** Which data: "test", or "validation" where there is no test data. */
  readonly data: "test" | "validation";
  readonly path: string;
  readonly sha256: string;
  readonly metric: "loss" | "accuracy";
  readonly margin: number;
  readonly candidate: Evaluation;
  /** Release that was current, and its adapter on the same data; null: nothing was published before. */
  readonly release: string | null;
  readonly published: Evaluation | null;
  /** The model without adapter; null where there was a release to compare with. */
  readonly base: Evaluation | null;
}

/** What the training cost. */
export interface Cost {
  readonly steps: number;
  /** Tokens that went through the model in training. */
  readonly tokens: number;
  /** Seconds of training, those before an interruption included. */
  readonly training_seconds: number;
  /** Most resident bytes. */
  readonly peak_memory_bytes: number;
}

/** One invocation: a line of history.jsonl, and result.json. Times are for the reader only; nothing is decided by them. */
export interface RetrainRecord {
  readonly format: number;
  /** Place in the history, from 1; an "unchanged" one has that of the line before it. */
  readonly number: number;
  /** Which training, from 1; several invocations may work on one. */
  readonly attempt: number;
  readonly outcome: Outcome;
  /** One sentence. */
  readonly reason: string;
  readonly exit_code: number;
  /** End of the invocation, ISO 8601, UTC. */
  readonly time: string;
  /** Seconds that the invocation took. */
  readonly seconds: number;
  /** Version of metalora. */
  readonly version: string;
  /** The release that this invocation made. */
  readonly release: string | null;
  /** The current release afterwards. */
  readonly current: string | null;
  /** Release that the training started from; null: a fresh adapter. */
  readonly start: string | null;
  /** Null where a rollback or a failure never came to look at them. */
  readonly inputs: InputHashes | null;
  /** What differs from the last training that was decided, such as "training data". */
  readonly changed: readonly string[];
  readonly comparison: Comparison | null;
  readonly cost: Cost | null;
  readonly adapter_sha256: string | null;
}

/** release.json: where a release comes from. */
export interface ReleaseFacts {
  readonly format: number;
  readonly release: string;
  /** The release that was current before it; null: it was the first. What a rollback goes to. */
  readonly previous: string | null;
  readonly adapter_sha256: string;
  /** Settings that an adapter must share to be continued from this one. */
  readonly adapter: Config["adapter"];
  readonly record: RetrainRecord;
}

/** attempt.json: a training that is not decided yet. */
export interface Attempt {
  readonly format: number;
  readonly attempt: number;
  readonly inputs: InputHashes;
  readonly start: string | null;
  /** SHA-256 of the adapter that it starts from. */
  readonly start_sha256: string | null;
}
