/** Runs training in a worker and leaves the main thread free. */
import type { Config } from "../config/schema.ts";
import { repeated, repeatingNote } from "../repeat.ts";
import { type Ending, RunEvents } from "./events.ts";
import { StopFlag } from "./interrupt.ts";
import type { Measured } from "./measure.ts";
import type { RunOptions } from "./session.ts";
import type { Answer, Job, PlannedRun } from "./worker.ts";

/** A run in its worker. */
export class BackgroundRun {
  /** Everything that it tells, the ending included. */
  readonly events: RunEvents;
  /** How it ended; never rejected. */
  readonly ending: Promise<Ending>;
  readonly #stop: () => boolean;
  #started = false;

  private constructor(events: RunEvents, ending: Promise<Ending>, stop: () => boolean) {
    this.events = events;
    this.ending = ending;
    this.#stop = stop;
    events.subscribe(({ type }) => this.#started ||= type === "started");
  }

  /**
   * Starts a run in a worker of its own.
   * @param config Whose output folder the caller holds (`RunFolder`) until the run has ended.
   * @param events Handed every event; subscribe before.
   */
  static start(config: Config, options: RunOptions, events: RunEvents = new RunEvents()): BackgroundRun {
    const { promise, resolve } = Promise.withResolvers<Ending>();
    const stop = ask({ kind: "train", config, options }, (answer) => {
      if (answer.kind !== "event") return false;
      const { event } = answer;
      events.emit(event);
      if (event.type !== "finished") return false;
      resolve(event.ending);
      return true;
    });
    return new BackgroundRun(events, promise, stop);
  }

  /** Whether it has a state that could be saved: before that, the program may simply end. */
  get started(): boolean {
    return this.#started;
  }

  /**
   * Asks it to save its state and end, which it does before its next micro-batch.
   * @returns false when it has failed: it ends at once then, without knowing which operator is to blame
   */
  stop(): boolean {
    return this.#stop();
  }
}

/** Lays out a run in a worker, as the run itself would be: its memory plan is then that of the run. */
export function planInBackground(config: Config, options: RunOptions): Promise<PlannedRun | Ending> {
  const { promise, resolve } = Promise.withResolvers<PlannedRun | Ending>();
  ask({ kind: "plan", config, options }, (answer) => {
    if (answer.kind === "planned") resolve(answer.planned);
    else if (answer.kind === "event" && answer.event.type === "finished") resolve(answer.event.ending);
    else return false;
    return true;
  });
  return promise;
}

/**
 * Measures adapters in a worker.
 * @param note Hears lines for the reader.
 * @returns what came out, null when it was stopped, or the ending that tells why it failed; and a function that stops it, which
 *   returns false when it has failed
 */
export function measureInBackground(
  config: Config,
  options: RunOptions,
  adapters: readonly (string | null)[],
  note: (text: string) => void,
): { result: Promise<Measured | null | Ending>; stop: () => boolean } {
  const { promise, resolve } = Promise.withResolvers<Measured | null | Ending>();
  const stop = ask({ kind: "measure", config, options, adapters }, (answer) => {
    if (answer.kind === "event" && answer.event.type === "note") note(answer.event.text);
    if (answer.kind === "measured") resolve(answer.measured);
    else if (answer.kind === "event" && answer.event.type === "finished") resolve(answer.event.ending);
    else return false;
    return true;
  });
  return { result: promise, stop };
}

/**
 * Gives a job to a worker. When that fails by a fault in some kernel, another process is to find out which.
 * @param hear Returns whether that was the last answer.
 * @returns a function that asks it to stop; false: the job has failed
 */
function ask(job: Omit<Job, "stop">, hear: (answer: Answer) => boolean): () => boolean {
  const flag = new StopFlag(), repetition = new AbortController();
  let failed = false;
  const worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
  const last = (answer: Answer) => {
    if (hear(answer)) worker.terminate();
  };
  const finish = (ending: Ending) => last({ kind: "event", event: { type: "finished", ending } });
  worker.onmessage = async ({ data }: MessageEvent<Answer>) => {
    if (data.kind !== "lost") return last(data);
    failed = true;
    worker.terminate(); // another process needs the memory
    if (!flag.raised) last({ kind: "event", event: { type: "note", text: repeatingNote(data.work) } });
    finish({ ...data.ending, message: await repeated(data.ending.message, data.work, repetition.signal) });
  };
  // What the worker could not catch: it did not load, or ran out of memory.
  worker.onerror = (event) => {
    event.preventDefault();
    finish({ kind: "failed", message: event.message, exitCode: 1, defect: true, stack: null });
  };
  worker.postMessage({ ...job, stop: flag.memory } satisfies Job);
  return () => {
    flag.raise();
    repetition.abort(new Error("a signal came"));
    return !failed;
  };
}
