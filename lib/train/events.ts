/**
 * What a run tells while it goes on. The worker that trains posts these events to the main thread, where the terminal's progress,
 * the status server and anybody else subscribe to them. Everything in an event is plain data: it survives `structuredClone`
 * and, but for NaN and ±Infinity (which become null), `JSON.stringify`.
 */
import type { Config } from "../config/schema.ts";
import type { Evaluation } from "./evaluation.ts";
import type { MemoryPlan } from "./memory.ts";

/** A data set, without its samples. */
export interface DatasetFacts {
  readonly path: string;
  /** SHA-256 of the whole file, hexadecimal. */
  readonly sha256: string;
  readonly samples: number;
  readonly truncated: number;
  readonly dropped: readonly { readonly reason: string; readonly count: number }[];
}

/** Once, when everything is loaded and the first step is about to be made. */
export interface StartedEvent {
  readonly type: "started";
  /** Version of metalora. */
  readonly version: string;
  readonly config: Config;
  /** Such as "AMD EPYC, avx2, 2 threads". */
  readonly device: string;
  /** Adapter parameters P. */
  readonly parameters: number;
  /** Optimizer steps of the whole run. */
  readonly steps: number;
  /** Step of the checkpoint that the run continues from; 0 when it starts from the beginning. */
  readonly resumedAt: number;
  readonly data: { readonly train: DatasetFacts; readonly validation: DatasetFacts | null; readonly test: DatasetFacts | null };
  /** Bytes, by purpose. */
  readonly plan: MemoryPlan;
}

/** A sample of a batch, with its text where the run was asked for texts. */
export interface BatchSample {
  /** Place in the training (or validation) data, from 0. */
  readonly index: number;
  readonly id: string;
  readonly source: string | null;
  /** Mean loss over its labelled tokens, nats; NaN when it is none. */
  readonly loss: number;
  /** Weight in the batch; the weights of a batch sum to 1, or are all 0. Null when the batch was not weighted. */
  readonly weight: number | null;
  readonly similarity: number | null;
  readonly prompt?: string;
  readonly response?: string;
}

/** After every pass over a batch. */
export interface SteppedEvent {
  readonly type: "stepped";
  /** Optimizer steps made so far, this one included. */
  readonly step: number;
  readonly steps: number;
  readonly kind: "train" | "validation";
  /** Epoch of the batch in its data, from 0. */
  readonly epoch: number;
  readonly lr: number;
  /** Unweighted loss of the batch, nats. */
  readonly loss: number;
  /** Norm of the gradient before clipping; null when no step was taken. */
  readonly gradNorm: number | null;
  /** Tokens that went through the model in this pass. */
  readonly tokens: number;
  /** Tokens a second since the run (or its resumption) began. */
  readonly tokensPerSecond: number;
  /** Seconds of training so far, those before a resumption included, by a clock that never jumps. */
  readonly seconds: number;
  /** The most bytes that the run took so far: of the GPU where it runs on one, else resident bytes of the process. */
  readonly memoryBytes: number;
  /** 1 / Σ w²; null when the batch was not weighted. */
  readonly effectiveSampleSize: number | null;
  /** The batch was consumed and no step was taken: every weight was 0, or `fault` says why. */
  readonly skipped: boolean;
  /** Why the batch was skipped as faulty, such as "its loss is NaN"; null when it was not. */
  readonly fault: string | null;
  readonly samples: readonly BatchSample[];
}

/** After an evaluation of the validation or test data. */
export interface EvaluatedEvent {
  readonly type: "evaluated";
  readonly name: "validation" | "test";
  readonly step: number;
  readonly evaluation: Evaluation;
}

/** After a checkpoint is complete on the disk. */
export interface SavedEvent {
  readonly type: "saved";
  readonly step: number;
  /** Folder of the checkpoint. */
  readonly path: string;
  readonly bytes: number;
  /** Seconds that saving took. */
  readonly seconds: number;
  /** Whether its validation loss is the lowest so far. */
  readonly best: boolean;
}

/** A line for the reader, such as that a damaged checkpoint is passed over. */
export interface NoteEvent {
  readonly type: "note";
  readonly text: string;
}

/** What a complete run amounts to; what `train --json` prints at the end. */
export interface RunResult {
  readonly steps: number;
  /** Unweighted loss of the last training batch, nats; NaN where it is not known. */
  readonly loss: number;
  readonly seconds: number;
  readonly tokens_per_second: number;
  readonly peak_memory_bytes: number;
  readonly output: string;
  readonly validation?: Evaluation;
  readonly test?: Evaluation;
}

/** A run that failed; the message is one line for the reader. */
export interface FailedEnding {
  readonly kind: "failed";
  readonly message: string;
  readonly exitCode: number;
  /** Nothing that a person can mend, but a mistake of the program. */
  readonly defect: boolean;
  readonly stack: string | null;
}

/** How a run ended; the last event, always. */
export type Ending =
  /** Everything is done and the adapter is published. */
  | { readonly kind: "complete"; readonly result: RunResult }
  /** There was nothing to do: the output holds this very run, complete. */
  | { readonly kind: "was complete"; readonly result: RunResult }
  /** Stopped by a signal. `checkpoint`: folder that `--resume` continues from; null when no step had been made. */
  | { readonly kind: "stopped"; readonly step: number; readonly checkpoint: string | null }
  | FailedEnding;

/** The last event of a run. */
export interface FinishedEvent {
  readonly type: "finished";
  readonly ending: Ending;
}

/** Everything that a run tells. */
export type RunEvent = StartedEvent | SteppedEvent | EvaluatedEvent | SavedEvent | NoteEvent | FinishedEvent;

/** Hears events of a run, one after the other, in order. */
export type RunListener = (event: RunEvent) => void;

/** Hands every event to all who subscribed. */
export class RunEvents {
  readonly #listeners = new Set<RunListener>();

  /**
   * Hears every event from now on.
   * @returns ends the subscription
   */
  subscribe(listener: RunListener): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** Hands out an event, in the order of the subscriptions. */
  emit(event: RunEvent): void {
    for (const listener of this.#listeners) listener(event);
  }
}
