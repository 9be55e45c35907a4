/** From the events of a run to what the status server tells about it. */
import type { EvaluatedEvent, FinishedEvent, RunEvent, StartedEvent, SteppedEvent } from "../train/events.ts";
import { VERSION } from "../version.ts";
import { HistoryRows } from "./history.ts";
import { WeightCounts } from "./histogram.ts";
import type { Recalled } from "./recall.ts";
import { lastPart, redactSecrets, shortenPaths } from "./redact.ts";
import {
  type History,
  type RunState,
  type ServedEvaluation,
  type Snapshot,
  STATUS_VERSION,
  type UsefulSamples,
} from "./schema.ts";
import { UsefulSamplesTracker } from "./useful.ts";

/** What happens on the main thread, beside the events of the run: a signal arrived. */
export interface StoppingEvent {
  readonly type: "stopping";
}

/** Everything that changes a status. */
export type StatusEvent = RunEvent | StoppingEvent;

/** What a {@link RunStatus} needs beside events. */
export interface RunStatusOptions {
  /** Whether single samples may be told, texts included. */
  readonly samples?: boolean;
  /** Texts that must not be told wherever they occur, such as the server's token. */
  readonly secrets?: readonly string[];
  /** Milliseconds by a clock that never jumps. */
  readonly now?: () => number;
  /** The wall clock. */
  readonly wall?: () => Date;
}

/** Seconds over which the speed is measured. */
const SPEED_SECONDS = 10;

/** Follows one run. All of it takes a fixed amount of memory, but for 12 bytes a training sample where samples may be told. */
export class RunStatus {
  readonly #options: Required<RunStatusOptions>;
  readonly #history = new HistoryRows();
  readonly #weights = new WeightCounts();
  readonly #evaluations = new Map<string, ServedEvaluation>();
  readonly #startedNow: number;
  #useful: UsefulSamplesTracker | null = null;
  #started: StartedEvent | null = null;
  #trained: SteppedEvent | null = null;
  #stepped: SteppedEvent | null = null;
  #state: RunState = "starting";
  #message: string | null = null;
  #runId: string | null = null;
  #startedAt: string;
  #updatedAt: string;
  #steppedNow: number;
  #ended: number | null = null;
  #smoothed = { sum: 0, weight: 0 };
  #speed = { tokens: 0, seconds: 0 };
  #validationLoss: number | null = null;
  #gradNorm: number | null = null;
  #effective: Snapshot["effective_sample_size"] = null;
  /** Since the last pass it evaluated or saved, and the time between the passes is not one of training. */
  #paused = false;
  #tokens = 0;
  #skipped = 0;
  #fault: string | null = null;
  #checkpoint: Snapshot["checkpoint"] = null;
  #revision = 0;
  readonly #listeners = new Set<() => void>();

  constructor({ samples = false, secrets = [], now = () => performance.now(), wall = () => new Date() }: RunStatusOptions = {}) {
    this.#options = { samples, secrets, now, wall };
    this.#startedNow = this.#steppedNow = now();
    this.#startedAt = this.#updatedAt = wall().toISOString();
  }

  /** Grows with every event. */
  get revision(): number {
    return this.#revision;
  }

  /** Whether single samples may be told. */
  get samplesAllowed(): boolean {
    return this.#options.samples;
  }

  /** Whether the run is over. */
  get over(): boolean {
    return this.#ended !== null;
  }

  /**
   * Calls back after every event.
   * @returns ends it
   */
  subscribe(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** Takes in an event. */
  apply(event: StatusEvent): void {
    this.#revision++;
    this.#updatedAt = this.#options.wall().toISOString();
    this.#take(event);
    for (const listener of this.#listeners) listener();
  }

  #take(event: StatusEvent): void {
    switch (event.type) {
      case "started":
        return this.#start(event);
      case "stepped":
        return this.#step(event);
      case "evaluated":
        return this.#evaluated(event);
      case "saved":
        this.#paused = true;
        this.#checkpoint = { step: event.step, best: event.best, bytes: event.bytes, at: this.#updatedAt };
        return this.#to("training");
      case "note":
        this.#message = this.#line(event.text);
        return;
      case "stopping":
        return this.#to("stopping");
      case "finished":
        return this.#finish(event);
    }
  }

  /** Puts what a resumed run went through before into its history. */
  recall({ passes, evaluations }: Recalled): void {
    for (const pass of passes) this.#history.add(pass);
    for (const evaluation of evaluations) {
      this.#evaluations.set(evaluation.name, evaluation);
      this.#history.evaluated(evaluation);
    }
  }

  /** The document of `/status`, with the seconds as they are now. */
  snapshot(): Snapshot {
    const { config, version, device, parameters, steps = null, resumedAt = 0, plan } = this.#started ?? {};
    const stepped = this.#stepped;
    const step = stepped?.step ?? resumedAt;
    const elapsed = this.#elapsed();
    return {
      version: STATUS_VERSION,
      metalora: version ?? VERSION,
      run_id: this.#runId,
      name: config ? this.#clean(lastPart(config.output)) : null,
      state: this.#state,
      message: this.#message,
      model: config ? this.#clean(lastPart(config.model)) : null,
      method: config?.reweight.method ?? null,
      device: device ?? null,
      parameters: parameters ?? null,
      step,
      steps,
      resumed_at: resumedAt,
      progress: steps === null ? 0 : Math.min(1, step / steps),
      epoch: this.#trained?.epoch ?? null,
      loss: finite(this.#trained?.loss),
      loss_smoothed: this.#smoothed.weight === 0 ? null : this.#smoothed.sum / this.#smoothed.weight,
      validation_batch_loss: this.#validationLoss,
      lr: finite(stepped?.lr),
      grad_norm: this.#gradNorm,
      tokens: this.#tokens,
      tokens_per_second: this.#recentSpeed(),
      tokens_per_second_mean: finite(stepped?.tokensPerSecond),
      memory: { planned_bytes: plan?.total_bytes ?? null, used_bytes: stepped?.memoryBytes ?? null },
      effective_sample_size: this.#effective,
      weights: this.#weights.value,
      skipped_batches: this.#skipped,
      last_fault: this.#fault,
      checkpoint: this.#checkpoint,
      evaluations: [...this.#evaluations.values()],
      started_at: this.#startedAt,
      updated_at: this.#updatedAt,
      elapsed_seconds: tenths(elapsed),
      seconds_left: this.#left(elapsed),
      samples_allowed: this.#options.samples,
    };
  }

  /** The document of `/history`. */
  history(): History {
    return { version: STATUS_VERSION, run_id: this.#runId, ...this.#history.columns() };
  }

  /** The document of `/samples`; empty where samples may not be told. */
  samples(): UsefulSamples {
    return { version: STATUS_VERSION, run_id: this.#runId, ...this.#useful?.value ?? { most: [], least: [] } };
  }

  #start(event: StartedEvent): void {
    this.#started = event;
    this.#startedAt = this.#updatedAt;
    this.#steppedNow = this.#options.now();
    this.#runId = `${this.#clean(lastPart(event.config.output))}-${this.#startedAt.replace(/\.\d+|[-:]/g, "")}`;
    this.#to("training");
    const { method } = event.config.reweight;
    if (this.#options.samples && method === "meta-lora") {
      this.#useful = new UsefulSamplesTracker(event.data.train.samples, (text) => this.#clean(text));
    }
  }

  #step(event: SteppedEvent): void {
    const before = this.#stepped?.seconds ?? (event.step <= 1 ? 0 : null);
    this.#stepped = event;
    this.#steppedNow = this.#options.now();
    this.#to(this.#next(event));
    this.#tokens += event.tokens;
    if (before !== null && !this.#paused) this.#noteSpeed(event.tokens, event.seconds - before);
    this.#paused = false;
    if (event.skipped) this.#skipped++;
    if (event.fault !== null) this.#fault = this.#line(event.fault);
    if (event.gradNorm !== null) this.#gradNorm = finite(event.gradNorm);
    if (event.kind === "validation") this.#validationLoss = finite(event.loss);
    else this.#noteTrained(event);
    const { effectiveSampleSize: size, samples } = event;
    const effectiveShare = size === null || samples.length === 0 ? null : size / samples.length;
    this.#history.add({ ...event, tokensPerSecond: this.#recentSpeed(), effectiveShare });
  }

  #noteTrained(event: SteppedEvent): void {
    this.#trained = event;
    const { loss, effectiveSampleSize, samples, steps } = event;
    if (Number.isFinite(loss)) {
      const keep = 1 - 1 / Math.min(100, Math.max(5, steps / 50));
      this.#smoothed = { sum: keep * this.#smoothed.sum + (1 - keep) * loss, weight: keep * this.#smoothed.weight + 1 - keep };
    }
    if (effectiveSampleSize === null) return;
    this.#effective = { size: finite(effectiveSampleSize), samples: samples.length };
    this.#weights.add(samples);
    this.#useful?.add(samples);
  }

  /** What the worker does behind a step: it evaluates, then saves; both are told only when they are done. */
  #next({ step, steps, gradNorm }: SteppedEvent): RunState {
    const { config, data } = this.#started ?? {};
    if (!config || gradNorm === null) return "training"; // no step was made
    const { train: { eval_every: evaluate }, checkpoints: { every: save } } = config;
    const evaluates = data?.validation || data?.test;
    if (evaluates && (step >= steps || (evaluate > 0 && step % evaluate === 0))) return "evaluating";
    if (step >= steps || (save > 0 && step % save === 0)) return "saving";
    return "training";
  }

  #evaluated({ name, step, evaluation: { loss, perplexity, accuracy, samples } }: EvaluatedEvent): void {
    const served = { name, step, loss: finite(loss), perplexity: finite(perplexity), accuracy: finite(accuracy), samples };
    this.#paused = true;
    this.#evaluations.set(name, served);
    this.#history.evaluated(served);
    const { config, data, steps = Infinity } = this.#started ?? {};
    if (name === "validation" && data?.test) return;
    const saves = config && config.checkpoints.every > 0 && step % config.checkpoints.every === 0;
    this.#to(saves || step >= steps ? "saving" : "training");
  }

  #finish({ ending }: FinishedEvent): void {
    this.#ended = this.#options.now();
    if (ending.kind === "complete" || ending.kind === "was complete") {
      this.#state = "finished";
      this.#message = ending.kind === "complete" ? null : "There was nothing to do: the output holds this very run, complete";
    } else if (ending.kind === "stopped") {
      this.#state = "stopped";
      this.#message = ending.checkpoint === null ? null : `Stopped at step ${ending.step}; --resume continues from there`;
    } else {
      this.#state = "failed";
      this.#message = this.#line(ending.message);
    }
  }

  /** A run that is told to stop stays so until it is over. */
  #to(state: RunState): void {
    if (this.#ended === null && this.#state !== "stopping") this.#state = state;
  }

  #noteSpeed(tokens: number, seconds: number): void {
    if (!(seconds > 0)) return;
    const keep = Math.exp(-seconds / SPEED_SECONDS);
    this.#speed = { tokens: keep * this.#speed.tokens + tokens, seconds: keep * this.#speed.seconds + seconds };
  }

  #recentSpeed(): number | null {
    const { tokens, seconds } = this.#speed;
    return seconds > 0 ? tokens / seconds : finite(this.#stepped?.tokensPerSecond);
  }

  #elapsed(): number {
    const now = this.#ended ?? this.#options.now();
    if (!this.#started) return (now - this.#startedNow) / 1000;
    return (this.#stepped?.seconds ?? 0) + Math.max(0, now - this.#steppedNow) / 1000;
  }

  /** The steps that remain at the mean speed, less the time since the last step. */
  #left(elapsed: number): number | null {
    const stepped = this.#stepped;
    if (!stepped || stepped.step === 0 || this.#ended !== null) return null;
    const { seconds, step, steps } = stepped;
    return tenths(Math.max(0, seconds / step * (steps - step) - (elapsed - seconds)));
  }

  #clean(text: string): string {
    return redactSecrets(text, this.#options.secrets);
  }

  #line(text: string): string {
    return shortenPaths(this.#clean(text)).replace(/\s+/g, " ");
  }
}

/** JSON has no NaN and no infinities. */
function finite(value: number | null | undefined): number | null {
  return value !== null && value !== undefined && Number.isFinite(value) ? value : null;
}

const tenths = (value: number): number => Math.max(0, Math.round(value * 10) / 10);
