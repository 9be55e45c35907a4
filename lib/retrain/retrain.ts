/**
 * `metalora retrain`: look whether anything changed, train a candidate, measure it beside the published adapter, publish it if
 * it is not worse.
 *
 * The folder may be left at any moment, by a signal, by kill -9 or by a power cut: a training goes on from its checkpoint
 * (`attempt.ts`), a publication is finished or has not begun (`store.ts`). Nothing is decided by the clock: changes are told by
 * content, order by counters, durations come from a clock that never jumps.
 */
import { join } from "node:path";
import type { Config } from "../config/schema.ts";
import { STOPPED, UserError } from "../errors.ts";
import { readRegularFile } from "../files.ts";
import { sha256OfFile } from "../data/readers.ts";
import type { DeviceOptions } from "../devices.ts";
import { BackgroundRun, measureInBackground } from "../train/background.ts";
import { type Ending, RunEvents } from "../train/events.ts";
import { RunFiles, RunFolder } from "../train/folder.ts";
import type { Measured } from "../train/measure.ts";
import { requireDiskRoom } from "../train/space.ts";
import { VERSION } from "../version.ts";
import { Candidate, isDecided } from "./attempt.ts";
import { decide } from "./decide.ts";
import { changedInputs, hashInputs, type InputHashes, requireMeasuredOn } from "./inputs.ts";
import { type Attempt, type Comparison, RECORD_FORMAT, type ReleaseFacts, type RetrainRecord } from "./records.ts";
import { Store } from "./store.ts";

/** Exit code of an invocation whose candidate was not published. */
export const REJECTED = 3;

/** How a retraining is to be done. */
export interface RetrainOptions {
  readonly device?: DeviceOptions;
  /** Train even if nothing changed. */
  readonly force?: boolean;
  /** Put the texts of samples into the events of the training. */
  readonly texts?: boolean;
  /** Hears lines for the reader. */
  readonly note?: (text: string) => void;
  /** Handed the events of the training; subscribe before. */
  readonly events?: RunEvents;
}

/** A training or a measurement that failed; it has been recorded. */
export class RetrainFailure extends Error {
  constructor(readonly ending: Extract<Ending, { kind: "failed" }>) {
    super(ending.message);
  }
}

/** What is known before the training. */
interface Situation {
  readonly inputs: InputHashes;
  readonly history: readonly RetrainRecord[];
  readonly current: string | null;
  readonly facts: ReleaseFacts | null;
  readonly changed: readonly string[];
}

type Varying = Pick<RetrainRecord, "outcome" | "reason"> & Partial<Omit<RetrainRecord, "outcome" | "reason">>;

/** One invocation. */
export class Retraining {
  readonly #start = performance.now();
  readonly #note: (text: string) => void;
  readonly #candidate: Candidate;
  #known: Pick<Partial<RetrainRecord>, "inputs" | "changed" | "attempt" | "start"> = {};
  /** A signal arrived. */
  #asked = false;
  /** What a signal stops at this moment. */
  #hear = (): boolean => true;

  constructor(readonly config: Config, readonly options: RetrainOptions = {}) {
    this.#note = options.note ?? (() => {});
    this.#candidate = new Candidate(config.output);
  }

  /**
   * Asks it to end soon, recorded as stopped: at once where it trains or measures, else when it comes to that. A decision is carried out.
   * @returns false when it has failed and ends anyway
   */
  stop(): boolean {
    this.#asked = true;
    return this.#hear();
  }

  /** Waits for work in a worker; `stop` ends it. */
  async #until<T>(work: Promise<T>, stop: () => boolean): Promise<T> {
    this.#hear = stop;
    if (this.#asked) stop();
    try {
      return await work;
    } finally {
      this.#hear = () => true;
    }
  }

  /**
   * @returns what was done; its `exit_code` is that of the program
   * @throws {UserError} exit code 75 when another invocation runs; others for what a person can mend
   * @throws {RetrainFailure} when training or measuring failed
   */
  async run(): Promise<RetrainRecord> {
    const { output } = this.config;
    using folder = RunFolder.open(output);
    folder.requireOwn(this.config.model);
    if (!requireOwnResult(output)) this.#note(`${join(output, "result.json")} is damaged: the next decision writes it anew`);
    try {
      return await this.#run();
    } catch (error) {
      this.#hear = () => false;
      await this.#recordFailure(error);
      throw error;
    }
  }

  async #run(): Promise<RetrainRecord> {
    requireHeldOut(this.config);
    const situation = await this.#look();
    if ("outcome" in situation) return situation;
    const { inputs, current, facts, history } = situation;
    const start = this.#startOf(situation);
    const { attempt, resumed } = this.#candidate.begin(
      { inputs, start, start_sha256: start === null ? null : facts!.adapter_sha256 },
      history,
    );
    this.#known = { ...this.#known, attempt: attempt.attempt, start };
    if (resumed) this.#note(`going on with attempt ${attempt.attempt}, which was interrupted`);
    else this.#note(`attempt ${attempt.attempt}, from ${start === null ? "a fresh adapter" : `release ${current}`}`);
    const ending = await this.#train(attempt, resumed);
    if (ending === null) return await this.#stopped("stopped before the training began");
    if (ending.kind === "failed") throw new RetrainFailure(ending);
    if (ending.kind === "stopped") return await this.#stopped(`stopped at step ${ending.step} of the training`);
    return await this.#decide(inputs);
  }

  /** Compares the inputs with those of the last decision. @returns the record when there is nothing to do */
  async #look(): Promise<Situation | RetrainRecord> {
    const { config, options } = this;
    const inputs = hashInputs(config);
    using store = await Store.hold(config.output);
    for (const note of store.notes) this.#note(note);
    const { history } = store;
    this.#candidate.end(history);
    const last = history.findLast(isDecided);
    const changed = last ? changedInputs(last.inputs!, inputs) : [];
    this.#known = { inputs, changed };
    const { published: facts, current } = store;
    if (last && changed.length === 0 && current !== null && !options.force) {
      const what = last.outcome === "published" ? `published as release ${last.release}` : `not published: ${last.reason}`;
      const reason = `data, configuration and base model are unchanged since attempt ${last.attempt} (${what})`;
      store.prune(config.retrain.keep);
      const record = this.#record(store, { outcome: "unchanged", reason, number: history.at(-1)!.number, attempt: last.attempt });
      store.result(record);
      return record;
    }
    if (changed.length > 0) this.#note(`changed: ${changed.join(", ")}`);
    return { inputs, history, current, changed, facts };
  }

  /** The release to start from; null: a fresh adapter. */
  #startOf({ current, facts, inputs }: Situation): string | null {
    const { retrain, adapter } = this.config;
    if (retrain.from === "fresh" || current === null || facts === null) return null;
    const what = facts.record.inputs?.model !== inputs.model
      ? "belongs to another base model"
      : JSON.stringify(facts.adapter) !== JSON.stringify(adapter)
      ? "has other settings of 'adapter'"
      : null;
    if (what !== null) this.#note(`release ${current} ${what}: starting from a fresh adapter`);
    return what === null ? current : null;
  }

  /** Trains the candidate, or goes on with it; a run that cannot be resumed is made anew. @returns null when it was stopped before */
  async #train(attempt: Attempt, resumed: boolean): Promise<Ending | null> {
    const ending = await this.#trainOnce(attempt, resumed);
    if (!resumed || ending?.kind !== "failed" || !ending.message.startsWith("Cannot resume ")) return ending;
    this.#note(`${ending.message.split(". ")[0]}; training from the beginning`);
    this.#candidate.remove();
    return await this.#trainOnce(attempt, false);
  }

  async #trainOnce({ start, inputs }: Attempt, resumed: boolean): Promise<Ending | null> {
    const { config, options } = this;
    const { device = {}, texts = false, events = new RunEvents() } = options;
    using folder = RunFolder.open(this.#candidate.folder);
    folder.requireOwn(config.model);
    let changed: string | null = null; // a file that is not what was hashed
    const ended = events.subscribe((event) => {
      if (event.type !== "started") return;
      for (const name of ["train", "validation", "test"] as const) {
        const facts = event.data[name];
        if (facts && inputs[name] !== null && inputs[name] !== facts.sha256) changed ??= facts.path;
      }
    });
    const from = start === null ? {} : { start: join(config.output, "releases", start, "adapter") };
    const resume = { resume: resumed, allowChange: resumed ? ["checkpoints", "train.log_every"] : [] };
    const run = BackgroundRun.start(this.#candidate.config(config), { device, texts, ...resume, ...from }, events);
    const early = Promise.withResolvers<null>();
    const ending = await this.#until(Promise.race([run.ending, early.promise]), () => {
      const going = run.stop();
      if (going && !run.started) early.resolve(null); // it has nothing to save, and may take long to load the model
      return going;
    });
    ended();
    if (changed === null) return ending;
    this.#candidate.remove(); // of neither the old data nor the new
    throw new UserError(`Cannot retrain: ${changed} changed while the run began. Run it again`);
  }

  /** Measures the candidate beside what is published, and publishes it or does not. */
  async #decide(inputs: InputHashes): Promise<RetrainRecord> {
    const { config } = this;
    const { output, retrain: { metric, margin, keep } } = config;
    for (;;) {
      const { current, facts } = await this.#published();
      // An adapter of another base model says nothing about this one.
      const rival = facts !== null && facts.record.inputs?.model === inputs.model ? current : null;
      if (current !== null && rival === null) this.#note(`release ${current} belongs to another base model: it is not compared`);
      this.#note(`measuring the candidate and ${rival === null ? "the model without adapter" : `release ${rival}`}`);
      const measured = await this.#measure([
        this.#candidate.adapter,
        rival === null ? null : join(output, "releases", rival, "adapter"),
      ]);
      if (measured === null) return await this.#stopped("stopped while the candidate was measured");
      try {
        requireMeasuredOn(config, inputs, measured);
      } catch (error) {
        this.#candidate.remove(); // the next invocation has other inputs and begins anew
        throw error;
      }
      const { evaluations: [candidate, other], ...data } = measured;
      const comparison: Comparison = {
        ...data,
        metric,
        margin,
        candidate: candidate!,
        release: rival,
        published: rival === null ? null : other!,
        base: rival === null ? other! : null,
      };
      using store = await Store.hold(output);
      if (store.current !== current) {
        this.#note(`release ${store.current ?? "none"} became current meanwhile: measuring again`);
        continue;
      }
      const { publish, reason } = decide(comparison);
      const adapter_sha256 = sha256OfFile(join(this.#candidate.adapter, "adapter_model.safetensors"));
      const about = { reason, comparison, cost: this.#candidate.cost(), adapter_sha256 };
      const release = store.nextRelease;
      const record = publish
        ? this.#record(store, { outcome: "published", ...about, release, current: release })
        : this.#record(store, { outcome: "rejected", ...about, exit_code: REJECTED });
      if (publish) {
        requireDiskRoom(output, folderBytes(this.#candidate.folder), "publish the candidate");
        const facts = { format: RECORD_FORMAT, previous: current, adapter_sha256, adapter: config.adapter };
        store.publish(this.#candidate.folder, facts, record);
      } else store.record(record);
      this.#candidate.end(store.history);
      const removed = store.prune(keep);
      if (removed.length > 0) this.#note(`removed old releases: ${removed.join(", ")}`);
      return record;
    }
  }

  async #published(): Promise<{ current: string | null; facts: ReleaseFacts | null }> {
    using store = await Store.hold(this.config.output);
    const { published: facts, current } = store;
    return { current, facts };
  }

  async #measure(adapters: readonly (string | null)[]): Promise<Measured | null> {
    const { device = {} } = this.options;
    const { result, stop } = measureInBackground(this.config, { device }, adapters, this.#note);
    const measured = await this.#until(result, stop);
    if (measured !== null && "kind" in measured) {
      if (measured.kind === "failed") throw new RetrainFailure(measured);
      throw new TypeError(`Cannot measure: the worker answered '${measured.kind}'`);
    }
    return measured;
  }

  async #stopped(reason: string): Promise<RetrainRecord> {
    using store = await Store.hold(this.config.output);
    const record = this.#record(store, { outcome: "stopped", reason, exit_code: STOPPED });
    store.record(record);
    return record;
  }

  /** Records what went wrong, as far as the disk still lets it. */
  async #recordFailure(error: unknown): Promise<void> {
    const exit_code = error instanceof UserError ? error.exitCode : error instanceof RetrainFailure ? error.ending.exitCode : 1;
    const reason = error instanceof Error ? error.message : String(error);
    try {
      using store = await Store.hold(this.config.output);
      store.record(this.#record(store, { outcome: "failed", reason, exit_code }));
    } catch { // what went wrong first is what the reader is told
    }
  }

  #record(store: Store, { outcome, reason, ...varying }: Varying): RetrainRecord {
    const last = store.history.at(-1);
    return {
      format: RECORD_FORMAT,
      number: (last?.number ?? 0) + 1,
      attempt: last?.attempt ?? 0,
      outcome,
      reason,
      exit_code: 0,
      time: new Date().toISOString(),
      seconds: Math.round(performance.now() - this.#start) / 1000,
      version: VERSION,
      release: null,
      current: store.current,
      start: null,
      inputs: null,
      changed: [],
      comparison: null,
      cost: null,
      adapter_sha256: null,
      ...this.#known,
      ...varying,
    };
  }
}

/** @throws {UserError} exit code 2, when a configuration has nothing to compare adapters on */
function requireHeldOut({ data: { test, validation, validation_split } }: Config): void {
  if (test !== null || validation !== null || validation_split !== null) return;
  throw new UserError(
    "Cannot retrain: there is no data to compare adapters on. Add data.test, data.validation or data.validation_split",
    2,
  );
}

/**
 * Makes sure that a result.json in the folder is nobody else's. One that tells nothing lies in a folder of retraining all the same
 * where there is a history, whose last line says what it said.
 * @returns false for such a damaged one
 * @throws {UserError} exit code 2, when it is somebody else's
 */
function requireOwnResult(output: string): boolean {
  const path = join(output, "result.json");
  let text: string;
  try {
    text = readRegularFile(path);
  } catch {
    return true;
  }
  try {
    if ("outcome" in JSON.parse(text)) return true;
  } catch { // not even JSON
  }
  if (new RunFiles(output).has("history.jsonl")) return false;
  throw new UserError(
    `Cannot use the output ${output}: metalora retrain would replace ${path}, which it did not write. Move that file away, or choose ` +
      `another output`,
    2,
  );
}

/** Bytes of what a release takes of a run. */
function folderBytes(folder: string): number {
  const names = ["adapter/adapter_model.safetensors", "report.html", "metrics.jsonl", "weights.jsonl"];
  return names.reduce((sum, name) => {
    try {
      return sum + Deno.statSync(join(folder, name)).size;
    } catch {
      return sum;
    }
  }, 1 << 16);
}
