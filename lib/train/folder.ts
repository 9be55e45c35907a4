/** The output folder of a run (design §5): one run at a time, files complete or absent. */
import { dirname, join, normalize, resolve } from "node:path";
import type { Config } from "../config/schema.ts";
import { UserError } from "../errors.ts";
import { peftDamage } from "../export/peft.ts";
import { exists, isFolder, readRegularFile, reasonOf, removeQuietly, within } from "../files.ts";
import { syncFolder, writeAll, writeFileAtomic } from "../tensor/atomic.ts";
import { FileLock } from "./lock.ts";

const LOCK = ".lock";
/** What writeFileAtomic and writeFolderAtomic leave behind when the process is killed in the middle. */
const TEMPORARY = /^\..+\.\d+-\d+\.tmp(\.old)?$/;

/** An output folder that this process holds. The thread that writes into it may be another one: it uses {@linkcode RunFiles}. */
export class RunFolder implements Disposable {
  readonly #interrupted = () => this[Symbol.dispose]();
  /** Folders that did not exist before, innermost first; they go again if nothing is written. */
  readonly #made: readonly string[];

  readonly #lock: FileLock;

  private constructor(readonly path: string, lock: FileLock, made: readonly string[]) {
    this.#lock = lock;
    this.#made = made;
    globalThis.addEventListener("unload", this.#interrupted);
  }

  /**
   * Makes the folder and takes its lock; a lock and unfinished files of a run that was killed are removed.
   * @throws {UserError} exit code 75 when another run holds it; 1 when it cannot be written. Nothing stays of the attempt
   */
  static open(path: string): RunFolder {
    refuseRoot(path);
    return writing(path, () =>
      besideOthers(() => {
        const made = missing(normalize(path)); // what is made, and every file in it, has that name
        try {
          Deno.mkdirSync(normalize(path), { recursive: true });
          const lock = FileLock.take(join(path, LOCK), whatOf(path));
          try {
            for (const folder of [path, join(path, "checkpoints")]) removeUnfinished(folder);
          } catch (error) {
            lock[Symbol.dispose]();
            throw error;
          }
          return new RunFolder(path, lock, made);
        } catch (error) {
          for (const folder of made) removeQuietly(folder);
          throw error;
        }
      }));
  }

  /**
   * Makes sure that what a run would replace here was written by a run, and is nobody's own.
   * @param model Folder of the run's model, which is no place for what the run writes.
   * @throws {UserError} exit code 2, naming the first file or folder that no run wrote
   */
  requireOwn(model: string): void {
    requireOwn(this.path, model);
  }

  /**
   * Makes sure that a run of its own, which belongs to no retrain, goes neither among releases nor into an adapter.
   * @throws {UserError} exit code 2
   */
  requireApart(): void {
    requireApart(this.path);
  }

  [Symbol.dispose](): void {
    globalThis.removeEventListener("unload", this.#interrupted);
    this.#lock[Symbol.dispose]();
    for (const folder of this.#made) removeQuietly(folder); // only while it is empty
  }
}

/**
 * What keeps a run from writing an output: it cannot be written, is somebody else's, or another run holds it. Nothing that a run
 * beside it could use is made, held or removed: neither the folder nor its lock.
 * @returns null where nothing does
 */
export function outputProblem({ output, model }: Pick<Config, "output" | "model">): UserError | null {
  try {
    refuseRoot(output);
    writing(output, () => besideOthers(() => tryWriting(output)));
    requireOwn(output, model);
    requireApart(output);
    return null;
  } catch (error) {
    if (error instanceof UserError) return error;
    throw error;
  }
}

/** Writes the files of an output folder that somebody holds. */
export class RunFiles implements Disposable {
  readonly #logs = new Map<string, Deno.FsFile>();
  /** The folder as it was when its first log was opened. */
  #folder: Deno.FileInfo | null = null;

  constructor(readonly path: string) {}

  /** Whether something of that name is there. */
  has(name: string): boolean {
    return exists(join(this.path, name));
  }

  /** Removes what an earlier run left, so that nothing of it is taken for this run's. */
  remove(names: readonly string[]): void {
    writing(this.path, () => {
      for (const name of names) {
        if (this.has(name)) Deno.removeSync(join(this.path, name), { recursive: true });
      }
    });
  }

  /**
   * Moves the adapter of an earlier run, with the configuration that made it, to `previous/`: it never stands beside another
   * configuration, and a run that fails has not destroyed it.
   */
  setAside(): void {
    if (!this.has("adapter")) return;
    const previous = join(this.path, "previous");
    this.remove(["previous"]);
    writing(this.path, () => {
      Deno.mkdirSync(previous);
      if (this.has("config.yaml")) Deno.copyFileSync(join(this.path, "config.yaml"), join(previous, "config.yaml"));
      Deno.renameSync(join(this.path, "adapter"), join(previous, "adapter"));
      syncFolder(this.path);
    });
  }

  /**
   * Moves the checkpoints of a run that was interrupted to `previous/`, in the place of those that are there: whoever begins anew by
   * mistake has not lost hours of work.
   */
  setCheckpointsAside(): void {
    const kept = join("previous", "checkpoints");
    this.remove([kept]);
    writing(this.path, () => {
      Deno.mkdirSync(join(this.path, "previous"), { recursive: true });
      Deno.renameSync(join(this.path, "checkpoints"), join(this.path, kept));
      syncFolder(this.path);
    });
  }

  /** Starts a log of JSON lines, empty. */
  startLog(name: string): void {
    this.#openLog(name, 0);
  }

  /**
   * Goes on with a log behind its first `bytes` bytes; what follows them is cut off.
   * @returns false when the log has lost some of those; it goes on behind its last whole line then
   */
  continueLog(name: string, bytes: number): boolean {
    const path = join(this.path, name);
    const size = this.has(name) ? Deno.statSync(path).size : 0;
    this.#openLog(name, size >= bytes ? bytes : wholeLines(path, size));
    return size >= bytes;
  }

  #openLog(name: string, bytes: number): void {
    writing(this.path, () => {
      this.#folder ??= Deno.statSync(this.path);
      const file = Deno.openSync(join(this.path, name), { write: true, create: true });
      this.#logs.set(name, file);
      file.truncateSync(bytes);
      file.seekSync(0, Deno.SeekMode.End);
    });
  }

  /**
   * Adds one object as a line.
   * @throws {UserError} when somebody has removed the folder, or put another in its place
   */
  log(name: string, value: unknown): void {
    const { dev, ino } = this.#folder!;
    const now = statOf(this.path);
    if (now?.dev !== dev || now.ino !== ino) {
      throw new UserError(`Cannot go on: the output ${this.path} was removed or replaced while this run wrote it. Train again`);
    }
    writing(this.path, () => writeAll(this.#logs.get(name)!, new TextEncoder().encode(JSON.stringify(value) + "\n")));
  }

  /** Flushes a log to the disk. @returns its bytes */
  flushLog(name: string): number {
    return writing(this.path, () => {
      const file = this.#logs.get(name)!;
      file.syncSync();
      return file.statSync().size;
    });
  }

  /** Writes a text file, complete or absent. */
  writeText(name: string, text: string): void {
    const write = (file: Deno.FsFile) => writeAll(file, new TextEncoder().encode(text));
    writing(this.path, () => writeFileAtomic(join(this.path, name), write));
  }

  [Symbol.dispose](): void {
    for (const file of this.#logs.values()) file.close();
    this.#logs.clear();
  }
}

/** Where the files of a run lie: in the output, or where `retrain` has published into it, in the current release, be it there or gone. */
export function runFolder(output: string): string {
  const release = within(output, "current");
  try {
    return Deno.lstatSync(release).isSymlink ? release : output;
  } catch { // there is none
    return output;
  }
}

/** Whether the run in an output came to its end, and the adapter that it wrote can still be used. */
export function isComplete(output: string): boolean {
  return new RunFiles(output).has("adapter") && adapterDamage(output) === null;
}

/** What is wrong with the adapter in an output, see {@linkcode peftDamage}; null: nothing, or there is none. */
export function adapterDamage(output: string): string | null {
  return new RunFiles(output).has("adapter") ? peftDamage(join(output, "adapter")) : null;
}

/** Removes what a process that was killed had not finished writing into a folder that somebody holds. */
export function removeUnfinished(folder: string): void {
  for (const name of namesIn(folder)) {
    if (TEMPORARY.test(name)) Deno.removeSync(join(folder, name), { recursive: true });
  }
}

/** What the system says of a path; null: it leads nowhere. */
function statOf(path: string): Deno.FileInfo | null {
  try {
    return Deno.statSync(path);
  } catch {
    return null;
  }
}

/** Bytes of a file up to and with its last line break. */
function wholeLines(path: string, size: number): number {
  if (size === 0) return 0;
  using file = Deno.openSync(path, { read: true });
  const chunk = new Uint8Array(1 << 16);
  for (let end = size; end > 0;) {
    const start = Math.max(0, end - chunk.length);
    file.seekSync(start, Deno.SeekMode.Start);
    const last = chunk.subarray(0, file.readSync(chunk.subarray(0, end - start)) ?? 0).lastIndexOf(10);
    if (last >= 0) return start + last + 1;
    end = start;
  }
  return 0;
}

/** Names in a folder; none where there is no folder. */
function namesIn(folder: string): string[] {
  return isFolder(folder) ? Array.from(Deno.readDirSync(folder), ({ name }) => name) : [];
}

/** @throws {UserError} exit code 2, for the root of the file system */
function refuseRoot(path: string): void {
  if (resolve(path) === "/") throw new UserError("Cannot use the output /: a run writes a folder of its own. Name one", 2);
}

/** What the lock of an output locks, for the message. */
const whatOf = (path: string): string => `the output ${path}`;

/** Repeats what failed because a run that ended removed the empty folder that it had made. */
function besideOthers<T>(action: () => T): T {
  for (let tries = 1;; tries++) {
    try {
      return action();
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound) || tries === 20) throw error;
    }
  }
}

/** Writes a temporary file into a folder, or where it is not there into the nearest one above it, unless a run holds the folder. */
function tryWriting(path: string): void {
  const folder = normalize(path);
  const outermost = missing(folder).at(-1);
  const there = outermost === undefined ? folder : dirname(outermost);
  const { isDirectory, isSymlink } = Deno.lstatSync(there);
  if (!isDirectory && !(isSymlink && isFolder(there))) Deno.mkdirSync(there); // fails, with the reason that a run would get
  if (outermost === undefined) FileLock.requireFree(join(folder, LOCK), whatOf(path));
  // Killed here, it leaves a name that the next run in that folder removes.
  const probe = join(there, `.probe-${crypto.randomUUID()}.${Deno.pid}-0.tmp`);
  try {
    Deno.writeTextFileSync(probe, "metalora\n", { createNew: true });
  } finally {
    removeQuietly(probe);
  }
}

/** See {@linkcode RunFolder.requireOwn}. */
function requireOwn(path: string, model: string): void {
  if (sameFolder(path, model)) {
    throw new UserError(
      `Cannot use the output ${path}: it is the folder of the model. A run writes a folder of its own: choose another output`,
      2,
    );
  }
  const replaced = ["config.yaml", "adapter", "checkpoints", "previous", "metrics.jsonl", "weights.jsonl", "report.html"];
  const first = replaced.find((name) => exists(join(path, name)));
  if (first === undefined || ownConfig(join(path, "config.yaml"))) return;
  throw new UserError(
    `Cannot use the output ${path}: it holds '${first}', but no configuration that a run of metalora wrote. Choose another output`,
    2,
  );
}

/** See {@linkcode RunFolder.requireApart}. */
function requireApart(path: string): void {
  const holds = (folder: string, ...names: string[]) => names.every((name) => exists(join(folder, name)));
  const what = holds(path, "releases", "history.jsonl")
    ? "metalora retrain keeps its releases there"
    : holds(dirname(resolve(path)), "adapter_config.json")
    ? "it lies in the folder of an adapter"
    : null;
  if (what !== null) throw new UserError(`Cannot use the output ${path}: ${what}. Choose another output`, 2);
}

/** Folders on the way to `path` that do not exist, `path` itself first. */
function missing(path: string): string[] {
  const folders: string[] = [];
  for (let folder = path; !exists(folder); folder = dirname(folder)) folders.push(folder);
  return folders;
}

/**
 * Runs what writes into the output and turns what the system says about it into a line for the reader.
 * @throws {UserError} for an error of the system; others pass
 */
export function writing<T>(path: string, action: () => T): T {
  try {
    return action();
  } catch (error) {
    if (error instanceof UserError || !(error instanceof Error)) throw error;
    // Deno keeps /proc, /sys and the like from a program that may write elsewhere.
    if (error instanceof Deno.errors.NotCapable) {
      throw new UserError(`Cannot write the output ${path}: programs may not write there. Choose another output`);
    }
    if (error instanceof Deno.errors.AlreadyExists || error instanceof Deno.errors.NotADirectory) {
      throw new UserError(`Cannot use the output ${path}: it, or what it lies in, is no folder. Choose another output`, 2);
    }
    // Some errors have no code, such as a file beyond the allowed size.
    if (!("code" in error) && !/\(os error \d+\)/.test(error.message)) throw error;
    throw new UserError(
      `Cannot write the output ${path}: ${reasonOf(error)}. Choose another output, or check its permissions and the free space`,
    );
  }
}

/** Whether two names are those of one folder. */
function sameFolder(one: string, other: string): boolean {
  try {
    return Deno.realPathSync(one) === Deno.realPathSync(other);
  } catch { // one is not there
    return false;
  }
}

/** Whether a configuration begins with the line that runs put on top. */
function ownConfig(path: string): boolean {
  try {
    return readRegularFile(path).startsWith("# metalora ");
  } catch {
    return false;
  }
}
