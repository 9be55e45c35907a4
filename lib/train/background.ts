/** Runs training in a worker and leaves the main thread free. */
import type { Config } from "../config/schema.ts";
import { type Ending, type RunEvent, RunEvents } from "./events.ts";
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
  readonly #stop: StopFlag;
  #started = false;

  private constructor(events: RunEvents, ending: Promise<Ending>, stop: StopFlag) {
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
    const stop = new StopFlag();
    const { promise, resolve } = Promise.withResolvers<Ending>();
    const run = new BackgroundRun(events, promise, stop);
    ask({ kind: "train", config, options, stop: stop.memory }, (answer) => {
      if (answer.kind !== "event") return false;
      const { event } = answer;
      events.emit(event);
      if (event.type !== "finished") return false;
      resolve(event.ending);
      return true;
    });
    return run;
  }

  /** Whether it has a state that could be saved: before that, the program may simply end. */
  get started(): boolean {
    return this.#started;
  }

  /** Asks it to save its state and end, which it does before its next micro-batch. */
  stop(): void {
    this.#stop.raise();
  }
}

/** Lays out a run in a worker, as the run itself would be: its memory plan is then that of the run. */
export function planInBackground(config: Config, options: RunOptions): Promise<PlannedRun | Ending> {
  const { promise, resolve } = Promise.withResolvers<PlannedRun | Ending>();
  ask({ kind: "plan", config, options, stop: new StopFlag().memory }, (answer) => {
    if (answer.kind === "planned") resolve(answer.planned);
    else if (answer.kind === "event" && answer.event.type === "finished") resolve(answer.event.ending);
    else return false;
    return true;
  });
  return promise;
}

/**
 * Measures adapters in a worker.
 * @returns what came out, null when it was stopped, or the ending that tells why it failed; and a function that stops it
 */
export function measureInBackground(
  config: Config,
  options: RunOptions,
  adapters: readonly (string | null)[],
): { result: Promise<Measured | null | Ending>; stop: () => void } {
  const stop = new StopFlag();
  const { promise, resolve } = Promise.withResolvers<Measured | null | Ending>();
  ask({ kind: "measure", config, options, stop: stop.memory, adapters }, (answer) => {
    if (answer.kind === "measured") resolve(answer.measured);
    else if (answer.kind === "event" && answer.event.type === "finished") resolve(answer.event.ending);
    else return false;
    return true;
  });
  return { result: promise, stop: () => stop.raise() };
}

/** @param hear Returns whether that was the last answer */
function ask(job: Job, hear: (answer: Answer) => boolean): void {
  const worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
  const last = (answer: Answer) => {
    if (hear(answer)) worker.terminate();
  };
  worker.onmessage = ({ data }: MessageEvent<Answer>) => last(data);
  // What the worker could not catch: it did not load, or ran out of memory.
  worker.onerror = (event) => {
    event.preventDefault();
    const ending = { kind: "failed", message: event.message, exitCode: 1, defect: true, stack: null } as const;
    const finished: RunEvent = { type: "finished", ending };
    last({ kind: "event", event: finished });
  };
  worker.postMessage(job);
}
