/** The output folder of a run (design §5): one run at a time, files complete or absent. */
import { dirname, join } from "node:path";
import { UserError } from "../errors.ts";
import { writeAll, writeFileAtomic } from "../tensor/atomic.ts";
import { FileLock } from "./lock.ts";

const LOCK = ".lock";
/** What writeFileAtomic and writeFolderAtomic leave behind when the process is killed in the middle. */
const TEMPORARY = /^\..+\.\d+-\d+\.tmp(\.old)?$/;

/** An output folder that this process holds. */
export class RunFolder implements Disposable {
  readonly #logs = new Map<string, Deno.FsFile>();
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
   * @throws {UserError} exit code 75 when another run holds it; 1 when it cannot be written
   */
  static open(path: string): RunFolder {
    return writing(path, () => {
      const made = missing(path);
      Deno.mkdirSync(path, { recursive: true });
      const lock = FileLock.take(join(path, LOCK), `the output ${path}`);
      for (const { name } of Deno.readDirSync(path)) {
        if (TEMPORARY.test(name)) Deno.removeSync(join(path, name), { recursive: true });
      }
      return new RunFolder(path, lock, made);
    });
  }

  /**
   * Makes sure that what a run would replace here was written by a run, and is nobody's own.
   * @throws {UserError} exit code 2, naming the first file or folder that no run wrote
   */
  requireOwn(): void {
    const replaced = ["config.yaml", "adapter", "checkpoints", "metrics.jsonl", "weights.jsonl", "report.html"];
    const there = replaced.filter((name) => exists(join(this.path, name)));
    const first = there[0];
    if (first === undefined || ownConfig(join(this.path, "config.yaml"))) return;
    throw new UserError(
      `Cannot use the output ${this.path}: it holds '${first}', but no configuration that a run of metalora wrote. Choose another output`,
      2,
    );
  }

  /** Removes what an earlier run left, so that nothing of it is taken for this run's. Its adapter stays until it is replaced. */
  removeStale(names: readonly string[]): void {
    writing(this.path, () => {
      for (const name of names) {
        try {
          Deno.removeSync(join(this.path, name), { recursive: true });
        } catch (error) {
          if (!(error instanceof Deno.errors.NotFound)) throw error;
        }
      }
    });
  }

  /** Starts a log of JSON lines, empty. */
  startLog(name: string): void {
    const open = () => Deno.openSync(join(this.path, name), { write: true, create: true, truncate: true });
    this.#logs.set(name, writing(this.path, open));
  }

  /** Adds one object as a line. */
  log(name: string, value: unknown): void {
    writing(this.path, () => writeAll(this.#logs.get(name)!, new TextEncoder().encode(JSON.stringify(value) + "\n")));
  }

  /** Writes a text file, complete or absent. */
  writeText(name: string, text: string): void {
    writeFileAtomic(join(this.path, name), (file) => writeAll(file, new TextEncoder().encode(text)));
  }

  [Symbol.dispose](): void {
    globalThis.removeEventListener("unload", this.#interrupted);
    for (const file of this.#logs.values()) file.close();
    this.#logs.clear();
    this.#lock[Symbol.dispose]();
    for (const folder of this.#made) removeQuietly(folder); // only while it is empty
  }
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
    // Some errors have no code, such as a file beyond the allowed size.
    if (!("code" in error) && !/\(os error \d+\)/.test(error.message)) throw error;
    throw new UserError(
      `Cannot write the output ${path}: ${error.message}. Choose another output, or check its permissions and the free space`,
    );
  }
}

/** Whether a configuration begins with the line that runs put on top. */
function ownConfig(path: string): boolean {
  try {
    return Deno.readTextFileSync(path).startsWith("# metalora ");
  } catch {
    return false;
  }
}

function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    return true;
  }
}

function removeQuietly(path: string): void {
  try {
    Deno.removeSync(path);
  } catch { // gone already
  }
}
