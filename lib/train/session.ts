/**
 * A whole training run: from a configuration to an output folder (design §5). It blocks the thread that it runs in, so
 * `worker.ts` gives it one of its own; what it has to tell goes out as events.
 *
 * The output is never a mixture. An earlier adapter is set aside before the new configuration is written, and `adapter/` is the
 * last thing to appear: where it stands, the run beside it is complete.
 */
import { join } from "node:path";
import type { Config } from "../config/schema.ts";
import { counted } from "../counted.ts";
import { writeConfig } from "../config/write.ts";
import { UserError } from "../errors.ts";
import { writePeftAdapter } from "../export/peft.ts";
import { gatherReport } from "../report/gather.ts";
import { renderReport } from "../report/report.ts";
import { VERSION } from "../version.ts";
import { type DeviceOptions, openDevice } from "../devices.ts";
import { toPeft } from "./adapters.ts";
import { unusedSettings } from "./build.ts";
import {
  CHECKPOINT_FORMAT,
  checkpointBytes,
  checkpointFolder,
  type CheckpointState,
  checkpointSteps,
  finiteAdapters,
  removeCheckpoints,
  writeCheckpoint,
} from "./checkpoint.ts";
import { type Evaluation, evaluation } from "./evaluation.ts";
import type { Ending, RunListener, RunResult } from "./events.ts";
import { requireRoom } from "./fit.ts";
import { isComplete, RunFiles, writing } from "./folder.ts";
import { madeFrom, type RunIdentity, runIdentity } from "./identity.ts";
import { loadRunInputs } from "./inputs.ts";
import { Interrupted, StopFlag } from "./interrupt.ts";
import { memoryMeter, release } from "./memory.ts";
import { metricsLine, startedEvent, steppedEvent } from "./messages.ts";
import type { StepReport } from "./pass.ts";
import { type FoundCheckpoint, restoreCheckpoint } from "./restore.ts";
import { recalledResult } from "./result.ts";
import { abandoned, cameFurther, resumption } from "./resumption.ts";
import { loadRun, makeTrainer, type PreparedRun, prepareRun, smallerRuns, totalSteps } from "./run.ts";
import { requireDiskRoom } from "./space.ts";
import type { Trainer, TrainerState } from "./trainer.ts";

/** How a run is to be done. All of it is plain data. */
export interface RunOptions {
  readonly device?: DeviceOptions;
  /** Continue from the newest checkpoint of the output, where there is one. */
  readonly resume?: boolean;
  /** Keys whose values may have changed since. */
  readonly allowChange?: readonly string[];
  /** Folder of the PEFT adapter that a run from the beginning starts from; a fresh one when omitted. */
  readonly start?: string;
  /** Put the texts of the samples into the events of their batches. */
  readonly texts?: boolean;
}

/** What a run is doing: enough to do it once more should a kernel fail (`repeat.ts`). Plain data. */
export interface Position {
  /** Where the loop stood before the newest pass; null: no pass was begun. */
  before: TrainerState | null;
  /** Whether that pass is made, and an evaluation followed. */
  evaluating: boolean;
}

/**
 * Runs a configuration and writes its output folder, which the caller holds (`RunFolder`).
 * @param emit Hears everything but the ending, which is returned.
 * @param stop Raised by anybody: ends the run within a micro-batch, its state saved.
 * @param position Kept up to date, for the caller to read when the run has failed.
 * @throws {UserError} for anything that a person can mend; no adapter is written then
 */
export function train(
  config: Config,
  { device = {}, resume = false, allowChange = [], start, texts = false }: RunOptions,
  emit: RunListener,
  stop: StopFlag = new StopFlag(),
  position: Position = { before: null, evaluating: false },
): Ending {
  const inputs = loadRunInputs(config);
  const identity = runIdentity(config, inputs.data);
  const note = (text: string) => emit({ type: "note", text });
  const from = resume
    ? resumption({ config, identity, steps: totalSteps(config, inputs.data.train.samples.length) }, allowChange, note)
    : null;
  const left = resume ? null : abandoned(config.output);
  if (left !== null) note(left);
  if (from?.kind === "complete") return { kind: "was complete", result: recalledResult(config.output) };

  using dev = openDevice(device);
  const meter = memoryMeter(dev);
  const prepared = prepareRun(dev, config, inputs);
  using engine = prepared.engine;
  for (const text of unusedSettings(dev, config, inputs.model.tied)) note(text);
  requireRoom("train", prepared.plan.total_bytes, smallerRuns(dev, prepared), { dev, memory: config.train.memory });
  const room = checkpointBytes(engine.parameters, inputs.data.train.samples.length);
  writing(config.output, () => requireDiskRoom(config.output, room, "train"));
  loadRun(dev, prepared, from?.kind === "checkpoint" ? null : start);
  using files = new RunFiles(config.output);
  const session = new Session({ prepared, identity, device: dev.name, meter, texts, position }, files, emit, stop);
  session.begin(from?.kind === "checkpoint" ? from.found : null);
  return session.run();
}

/** So many steps at the end without a gradient are told. */
const IDLE_STEPS = 10;

/** The loop of one run with everything that it writes. */
class Session {
  readonly #trainer: Trainer;
  readonly #config: Config;
  #tokens = 0;
  #loss = NaN;
  /** Tokens and seconds of those before a resumption. */
  #before = { tokens: 0, seconds: 0 };
  #start = performance.now(); // a clock that never jumps
  /** Step of the newest checkpoint. */
  #saved = 0;
  #best: { step: number; loss: number } | null = null;
  /** Whether this step's evaluation is still to be made. */
  #evaluate = false;
  /** Steps up to this one whose gradient was 0. */
  #idle = 0;

  constructor(
    readonly about: {
      prepared: PreparedRun;
      identity: RunIdentity;
      device: string;
      meter: () => number;
      texts: boolean;
      position: Position;
    },
    readonly files: RunFiles,
    readonly emit: RunListener,
    readonly stop: StopFlag,
  ) {
    this.#config = about.prepared.config;
    this.#trainer = makeTrainer(about.prepared);
  }

  /** Puts the output in order and everything where it stood. */
  begin(found: FoundCheckpoint | null): void {
    const { files } = this;
    const { prepared, device } = this.about;
    const { config, inputs } = prepared;
    const notes = found ? restoreCheckpoint(found, prepared, this.#trainer) : [];
    const interrupted = found === null && !isComplete(config.output) && files.has("checkpoints");
    files.setAside();
    files.writeText(
      "config.yaml",
      writeConfig(config, [
        `metalora ${VERSION}: the configuration of this run with every default`,
        madeFrom(this.about.identity),
      ]),
    );
    if (found) {
      const { step, progress, best } = found.state;
      const newer = checkpointSteps(config.output).filter((other) => other > step);
      writing(config.output, () => removeCheckpoints(config.output, newer));
      files.remove(["report.html"]);
      if (!files.continueLog("metrics.jsonl", progress.metrics_bytes)) {
        notes.push("metrics.jsonl has lost lines of earlier steps");
      }
      files.writeText("weights.jsonl", this.#trainer.statistics.lines(inputs.data.train.samples));
      this.#tokens = progress.tokens;
      this.#loss = progress.loss ?? NaN;
      this.#before = { tokens: progress.tokens, seconds: progress.seconds };
      this.#saved = step;
      this.#best = best;
      this.#evaluate = progress.evaluate;
    } else {
      if (interrupted && !cameFurther(config.output)) files.setCheckpointsAside();
      files.remove(["checkpoints", "weights.jsonl", "report.html"]);
      files.startLog("metrics.jsonl");
    }
    for (const text of notes) this.emit({ type: "note", text });
    this.emit(startedEvent(prepared, { device, resumedAt: found?.state.step ?? 0 }));
    this.#start = performance.now();
  }

  /** Seconds of training so far. */
  get #seconds(): number {
    return this.#before.seconds + (performance.now() - this.#start) / 1000;
  }

  /** Trains to the end, or until it is stopped. */
  run(): Ending {
    const { engine } = this.about.prepared;
    engine.beforePass = () => this.stop.check();
    try {
      this.#settle();
      for (let report = this.#next(); report !== null; report = this.#next()) {
        this.#tell(report);
        this.#settle(report);
        this.stop.check();
      }
      const seconds = this.#seconds;
      return { kind: "complete", result: this.#finish(seconds) };
    } catch (error) {
      if (!(error instanceof Interrupted)) throw error;
      return this.#stopped();
    }
  }

  #next(): StepReport | null {
    const { done, state } = this.#trainer;
    if (!done) Object.assign(this.about.position, { before: state, evaluating: false });
    return this.#trainer.next();
  }

  #tell(report: StepReport): void {
    this.#tokens += report.tokens;
    if (report.kind === "train" && report.fault === null) this.#loss = report.loss;
    if (report.gradNorm !== null) this.#idle = report.gradNorm === 0 ? this.#idle + 1 : 0;
    const { prepared, texts } = this.about;
    const seconds = this.#seconds;
    const rate = (this.#tokens - this.#before.tokens) / (seconds - this.#before.seconds);
    const event = steppedEvent(report, prepared, { seconds, tokensPerSecond: rate, memoryBytes: this.about.meter() }, texts);
    this.files.log("metrics.jsonl", metricsLine(event));
    if (event.fault !== null) {
      const ids = listed(event.samples.map(({ id }) => id));
      this.emit({ type: "note", text: `step ${report.step + 1}: skipped a batch (${ids}): ${event.fault}` });
    }
    this.emit(event);
  }

  /** What is due between two passes: an evaluation, a checkpoint. Without a report, what a stopped run still owes. */
  #settle(report?: StepReport): void {
    const { train, checkpoints } = this.#config;
    const { step, done } = this.#trainer;
    const made = report !== undefined && report.gradNorm !== null; // the step count moved
    if (made) this.#evaluate = train.eval_every > 0 && step % train.eval_every === 0;
    // The evaluation at the end is made whether it is asked for or not.
    if (done) return;
    const owed = this.#evaluate && report === undefined;
    const validation = this.#evaluate ? this.#evaluateAll(step).validation : undefined;
    if ((made || owed) && checkpoints.every > 0 && step % checkpoints.every === 0) this.#save(validation?.loss ?? null);
  }

  /** Evaluates validation and test data; an interruption leaves nothing of it behind. */
  #evaluateAll(step: number): { validation?: Evaluation; test?: Evaluation } {
    const { prepared: { engine, inputs }, position } = this.about;
    position.evaluating = true;
    const results: { validation?: Evaluation; test?: Evaluation } = {};
    for (const name of ["validation", "test"] as const) {
      const dataset = inputs.data[name];
      if (dataset) results[name] = evaluation(engine.evaluate(dataset.samples));
    }
    for (const [name, measured] of Object.entries(results) as ["validation" | "test", Evaluation][]) {
      this.files.log("metrics.jsonl", { step, kind: `${name} evaluation`, ...measured });
      this.emit({ type: "evaluated", name, step, evaluation: measured });
    }
    this.#evaluate = false;
    return results;
  }

  /**
   * Writes a checkpoint of where the run stands.
   * @param metrics Length of the metrics that a resumed run keeps.
   */
  #save(validationLoss: number | null, metrics: number = this.files.flushLog("metrics.jsonl")): void {
    const start = performance.now();
    const { prepared, identity } = this.about;
    const { config, inputs, adam } = prepared;
    const { step } = this.#trainer;
    const best = validationLoss !== null && Number.isFinite(validationLoss) && validationLoss < (this.#best?.loss ?? Infinity);
    if (best) this.#best = { step, loss: validationLoss };
    const state: CheckpointState = {
      format: CHECKPOINT_FORMAT,
      version: VERSION,
      seed: config.seed,
      ...this.#trainer.state,
      adam_step: adam.step,
      progress: {
        tokens: this.#tokens,
        seconds: this.#seconds,
        loss: Number.isFinite(this.#loss) ? this.#loss : null,
        metrics_bytes: metrics,
        evaluate: this.#evaluate,
      },
      validation_loss: validationLoss,
      best: this.#best,
      ...identity,
      config,
    };
    const { keep } = config.checkpoints;
    const { path, bytes } = writing(
      config.output,
      () => writeCheckpoint(config.output, { prepared, trainer: this.#trainer, state, keep }),
    );
    this.files.writeText("weights.jsonl", this.#trainer.statistics.lines(inputs.data.train.samples));
    this.#saved = step;
    this.emit({ type: "saved", step, path, bytes, seconds: (performance.now() - start) / 1000, best });
  }

  /** Saves what is not saved yet. Passes since the newest checkpoint that made no step are made again. */
  #stopped(): Ending {
    const { step } = this.#trainer;
    if (step > this.#saved) this.#save(null);
    return { kind: "stopped", step, checkpoint: step > 0 ? checkpointFolder(this.#config.output, step) : null };
  }

  /** The report; null where a line of the metrics, of before a resumption, is damaged: that costs nobody the adapter. */
  #page(): string | null {
    const { prepared, device } = this.about;
    try {
      return renderReport(gatherReport(this.#config.output, { prepared, device }));
    } catch (error) {
      if (!(error instanceof UserError)) throw error;
      this.emit({ type: "note", text: `report.html is not written: ${error.message}` });
      return null;
    }
  }

  /** Evaluates, saves and publishes. */
  #finish(seconds: number): RunResult {
    const { engine, inputs, config } = this.about.prepared;
    const { output, checkpoints } = config;
    const { step, statistics } = this.#trainer;
    const theta = finiteAdapters(engine, step);
    release(theta);
    if (this.#idle >= Math.min(IDLE_STEPS, step) && step > 0) {
      const text =
        `the gradient was 0 in the last ${counted(this.#idle, "step")}: nothing was learned there. Lower optimizer.lr, ` +
        "or check the data";
      this.emit({ type: "note", text });
    }
    const metrics = this.files.flushLog("metrics.jsonl"); // whoever resumes behind the last step makes this evaluation again
    const results = this.#evaluateAll(step);
    const due = checkpoints.every > 0 && step % checkpoints.every === 0;
    if (due && step > this.#saved) this.#save(results.validation?.loss ?? null, metrics);
    this.files.writeText("weights.jsonl", statistics.lines(inputs.data.train.samples));
    this.files.flushLog("metrics.jsonl");
    const page = this.#page();
    if (page !== null) this.files.writeText("report.html", page);
    writing(
      output,
      () => writePeftAdapter(join(output, "adapter"), toPeft(finiteAdapters(engine, step), engine.adapters, config)),
    );
    this.files.remove(["previous"]);
    return {
      steps: step,
      loss: this.#loss,
      seconds,
      tokens_per_second: this.#tokens / seconds,
      peak_memory_bytes: this.about.meter(),
      output,
      ...results,
    };
  }
}

/** The first of many names, and how many follow. */
function listed(names: readonly string[], most = 8): string {
  const more = names.length - most;
  return more > 0 ? `${names.slice(0, most).join(", ")} and ${more} more` : names.join(", ");
}
