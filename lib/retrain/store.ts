/**
 * The published side of a retraining folder: `current`, releases, history and result, changed together or not at all.
 *
 *   current -> releases/0003    the published release; replaced by rename
 *   releases/0003/              adapter/, release.json, config.yaml, report.html, metrics.jsonl, weights.jsonl
 *   history.jsonl               a RetrainRecord a line
 *   result.json                 the RetrainRecord of the last invocation
 *   releases/journal.json       only while something is being changed: what the next holder has to finish
 *
 * A change is written to the journal first, then made step by step, each step flushed and harmless to repeat. Whoever takes the
 * lock finishes what the journal tells, so that a power cut leaves all of a change or nothing of it. The lock is held for
 * moments only: a rollback does not wait for a training.
 */
import { join } from "node:path";
import { sha256OfFile } from "../data/readers.ts";
import { UserError } from "../errors.ts";
import { exists, isFolder, readRegularFile, reasonOf } from "../files.ts";
import { syncFolder, writeAll, writeFolderAtomic } from "../tensor/atomic.ts";
import { removeUnfinished, RunFiles, writing } from "../train/folder.ts";
import { FileLock } from "../train/lock.ts";
import type { ReleaseFacts, RetrainRecord } from "./records.ts";

const WEIGHTS = "adapter/adapter_model.safetensors", CONFIG = "adapter/adapter_config.json";
const PATIENCE_MS = 60_000; // copying an adapter of gigabytes to a slow disk takes seconds

/** What is to be changed. */
interface Journal {
  readonly record: RetrainRecord;
}

/** The published side, held by this process. */
export class Store implements Disposable {
  /** What was found half-done and finished, or damaged and passed over, for the reader. */
  readonly notes: readonly string[];

  private constructor(readonly output: string, readonly lock: FileLock) {
    const { damaged } = readHistory(output);
    const lines = damaged.map((line) => `line ${line} of ${join(output, "history.jsonl")} is damaged: it is passed over`);
    this.notes = [...lines, ...this.#recover()];
  }

  /**
   * Takes the lock, waiting while a neighbour publishes or rolls back, and finishes what was interrupted. Where somebody has removed
   * the whole folder of releases to begin anew, nothing is current any more.
   * @param output Folder of the retraining, which exists.
   * @throws {UserError} exit code 75 when somebody holds it for a minute; 1 when it cannot be written
   */
  static async hold(output: string): Promise<Store> {
    const releases = join(output, "releases");
    writing(output, () => {
      if (!exists(releases) && linked(output) !== null) Deno.removeSync(join(output, "current"));
      Deno.mkdirSync(releases, { recursive: true });
    });
    for (let waited = 0;; waited += 50) {
      try {
        const lock = FileLock.take(join(releases, ".lock"), `the releases of ${output}`);
        try {
          return writing(output, () => new Store(output, lock));
        } catch (error) {
          lock[Symbol.dispose]();
          throw error;
        }
      } catch (error) {
        if (!(error instanceof UserError && error.exitCode === 75) || waited >= PATIENCE_MS) throw error;
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    }
  }

  [Symbol.dispose](): void {
    this.lock[Symbol.dispose]();
  }

  /** The current release; null: nothing is published, or what was is gone. */
  get current(): string | null {
    const release = linked(this.output);
    return release !== null && this.releases.includes(release) ? release : null;
  }

  /**
   * Where the current release comes from; null: nothing is published.
   * @throws {UserError} when it is gone, or not as it was published
   */
  get published(): ReleaseFacts | null {
    const release = linked(this.output) ?? (this.releases.length > 0 ? this.#last : null);
    return release === null ? null : this.facts(release);
  }

  /** The release that was current when somebody last wrote it down; where nobody has, the newest one. */
  get #last(): string | null {
    return this.history.findLast(({ current }) => current !== null)?.current ?? this.releases.at(-1) ?? null;
  }

  /** Releases that are there, oldest first. */
  get releases(): string[] {
    return Array.from(Deno.readDirSync(join(this.output, "releases")), ({ name }) => name)
      .filter((name) => /^\d{4,}$/.test(name) && new RunFiles(this.folder(name)).has("release.json")).sort((a, b) =>
        Number(a) - Number(b)
      );
  }

  /** The name of the next release: a number, because clocks jump. */
  get nextRelease(): string {
    const named = this.history.flatMap(({ release }) => release ?? []);
    return String(Math.max(0, ...[...this.releases, ...named].map(Number)) + 1).padStart(4, "0");
  }

  /** Every record, oldest first. A last line that a power cut left half-written is none, nor is one that somebody has damaged. */
  get history(): RetrainRecord[] {
    return readHistory(this.output).records;
  }

  /** Folder of a release. */
  folder(release: string): string {
    return join(this.output, "releases", release);
  }

  /**
   * What release.json says.
   * @throws {UserError} when the release is not as it was published
   */
  facts(release: string): ReleaseFacts {
    const folder = this.folder(release);
    const damage = damageOf(folder);
    if (damage === null) return readFacts(folder)!;
    const whole = this.releases.filter((other) => other !== release && this.isWhole(other));
    const advice = whole.length > 0
      ? `Go back to a whole one (${whole.join(", ")}) with metalora retrain CONFIG --rollback --release N`
      : "No other one is whole: restore it";
    const anew = `remove ${join(this.output, "releases")} to begin anew`;
    throw new UserError(`Cannot use the release ${folder}: ${damage}. ${advice}, or ${anew}`);
  }

  /** Whether a release is as it was published. */
  isWhole(release: string): boolean {
    return damageOf(this.folder(release)) === null;
  }

  /** The release that one replaced; null: it was the first, or does not tell. */
  previous(release: string): string | null {
    return readFacts(this.folder(release))?.previous ?? null;
  }

  /**
   * Publishes a candidate: its files become a release, and `current` points there.
   * @param candidate Output folder of a complete run.
   */
  publish(candidate: string, facts: Omit<ReleaseFacts, "release" | "record">, record: RetrainRecord): void {
    const release = record.release!;
    this.#change({ record }, () => {
      writeFolderAtomic(this.folder(release), (folder) => {
        Deno.mkdirSync(join(folder, "adapter"));
        for (const name of [CONFIG, WEIGHTS]) copy(join(candidate, name), join(folder, name));
        syncFolder(join(folder, "adapter"));
        for (const name of ["config.yaml", "report.html", "metrics.jsonl", "weights.jsonl"]) {
          if (new RunFiles(candidate).has(name)) copy(join(candidate, name), join(folder, name));
        }
        write(join(folder, "release.json"), JSON.stringify({ ...facts, release, record }, null, 2) + "\n");
      });
    });
  }

  /** Records what changes no release, or (with `record.current` another one than before) a rollback. */
  record(record: RetrainRecord): void {
    this.#change({ record }, () => {});
  }

  /** Writes result.json alone: what is not worth a line of the history. */
  result(record: RetrainRecord): void {
    writing(this.output, () => replace(join(this.output, "result.json"), JSON.stringify(record, null, 2) + "\n"));
  }

  /**
   * Removes the oldest releases but for `keep` of them; the current one and the one that it replaced always stay.
   * @returns those removed
   */
  prune(keep: number): string[] {
    const { current } = this;
    const previous = current === null ? null : this.previous(current);
    const free = this.releases.filter((release) => release !== current && release !== previous);
    const removed = free.slice(0, Math.max(0, this.releases.length - keep));
    writing(this.output, () => {
      for (const release of removed) {
        const going = join(this.output, "releases", `.${release}.${Deno.pid}-0.tmp`);
        Deno.renameSync(this.folder(release), going);
        Deno.removeSync(going, { recursive: true });
      }
    });
    return removed;
  }

  get #journal(): string {
    return join(this.output, "releases", "journal.json");
  }

  #change(journal: Journal, fill: () => void): void {
    writing(this.output, () => {
      this.#recover(); // a change of this process that failed half-way
      replace(this.#journal, JSON.stringify(journal));
      try {
        fill();
      } catch (error) {
        Deno.removeSync(this.#journal); // the disk is full: nothing has changed, and nothing is to be finished
        throw error;
      }
      this.#finish(journal);
    });
  }

  /** Everything behind the release's folder; may be repeated. */
  #finish({ record }: Journal): void {
    const { output } = this;
    if (record.current !== null && record.current !== linked(output)) link(output, record.current);
    const path = join(output, "history.jsonl");
    if ((this.history.at(-1)?.number ?? 0) < record.number) append(path, JSON.stringify(record) + "\n");
    replace(join(output, "result.json"), JSON.stringify(record, null, 2) + "\n");
    Deno.removeSync(this.#journal);
    syncFolder(join(output, "releases"));
  }

  #recover(): string[] {
    const notes: string[] = [];
    const { output } = this;
    removeUnfinished(join(output, "releases"));
    for (const path of [`${this.#journal}.new`, join(output, "result.json.new"), join(output, ".current.new")]) {
      removeIfThere(path);
    }
    const pending = readJson(this.#journal) as Journal | null;
    if (pending !== null) {
      const { record } = pending;
      // Without its folder, a publication had not begun: the candidate is still there and is measured again.
      if (record.release === null || this.releases.includes(record.release)) {
        this.#finish(pending);
        notes.push(`finished what was interrupted: ${record.outcome}${record.release ? ` release ${record.release}` : ""}`);
      } else Deno.removeSync(this.#journal);
    }
    const last = this.#last;
    if (linked(output) === null && last !== null && this.releases.includes(last)) {
      link(output, last);
      notes.push(`the link current was gone: it points to release ${last} again`);
    }
    return notes;
  }
}

const readFacts = (folder: string) => readJson(join(folder, "release.json")) as ReleaseFacts | null;

/** What keeps the release in a folder from being used; null: it is as it was published. */
function damageOf(folder: string): string | null {
  if (!isFolder(folder)) return "it is gone";
  const facts = readFacts(folder);
  if (facts === null) return "it has no readable release.json";
  if (readJson(join(folder, CONFIG)) === null) return `it has no readable ${CONFIG}`;
  try {
    return sha256OfFile(join(folder, WEIGHTS)) === facts.adapter_sha256 ? null : `${WEIGHTS} is not what was published`;
  } catch {
    return `${WEIGHTS} cannot be read`;
  }
}

/** The release that `current` points to, whether it is there or not; null where there is no such link. */
export function linked(output: string): string | null {
  const path = join(output, "current");
  try {
    return /^releases\/(\d{4,})$/.exec(Deno.readLinkSync(path))?.[1] ?? null;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return null;
    throw new UserError(`Cannot use the output ${output}: ${path} is no link that metalora made. Move it away`, 2);
  }
}

/** Points `current` to a release: the new link takes the place of the old one in one rename. */
function link(output: string, release: string): void {
  const fresh = join(output, ".current.new");
  removeIfThere(fresh);
  Deno.symlinkSync(`releases/${release}`, fresh);
  Deno.renameSync(fresh, join(output, "current"));
  syncFolder(output);
}

/**
 * Writes a file in one rename. Its temporary has a fixed name: the lock has one holder, and a training that starts meanwhile
 * removes temporaries of other names.
 */
function replace(path: string, text: string): void {
  const fresh = `${path}.new`;
  write(fresh, text);
  Deno.renameSync(fresh, path);
  syncFolder(join(path, ".."));
}

function write(path: string, text: string): void {
  using file = Deno.openSync(path, { write: true, create: true, truncate: true });
  writeAll(file, new TextEncoder().encode(text));
  file.syncSync();
}

/** Adds a line behind the last whole one. */
function append(path: string, line: string): void {
  const fresh = !new RunFiles(join(path, "..")).has("history.jsonl");
  using file = Deno.openSync(path, { read: true, write: true, create: true });
  const text = Deno.readFileSync(path);
  file.truncateSync(text.lastIndexOf(10) + 1);
  file.seekSync(0, Deno.SeekMode.End);
  writeAll(file, new TextEncoder().encode(line));
  file.syncSync();
  if (fresh) syncFolder(join(path, ".."));
}

function copy(from: string, to: string): void {
  Deno.copyFileSync(from, to);
  using file = Deno.openSync(to, { read: true });
  file.syncSync();
}

function removeIfThere(path: string): void {
  try {
    Deno.removeSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

function readJson(path: string): unknown {
  try {
    return JSON.parse(readRegularFile(path));
  } catch {
    return null;
  }
}

/** The records of history.jsonl, and the numbers of the whole lines that are none, from 1. */
function readHistory(output: string): { records: RetrainRecord[]; damaged: number[] } {
  const path = join(output, "history.jsonl");
  let text: string;
  try {
    text = readRegularFile(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return { records: [], damaged: [] };
    throw new UserError(`Cannot read the history ${path}: ${reasonOf(error as Error)}. Restore the file, or move it away`);
  }
  const lines = text.split("\n").slice(0, -1).map((line, i) => ({ line, number: i + 1, record: recordOf(line) }));
  return {
    records: lines.flatMap(({ record }) => record ?? []),
    damaged: lines.flatMap(({ line, number, record }) => record === null && line !== "" ? [number] : []),
  };
}

/** The record in a line; null: somebody has damaged it. */
function recordOf(line: string): RetrainRecord | null {
  try {
    const record = JSON.parse(line);
    return "outcome" in record ? record : null;
  } catch { // not even JSON, or no object
    return null;
  }
}
