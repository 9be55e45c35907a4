/** The output folder of a run (design §5): one run at a time, files complete or absent. */
import { join } from "node:path";
import { UserError } from "../errors.ts";
import { writeAll, writeFileAtomic } from "../tensor/atomic.ts";

const LOCK = ".lock";

/** An output folder that this process holds. */
export class RunFolder implements Disposable {
  readonly #logs = new Map<string, Deno.FsFile>();
  readonly #interrupted = () => this[Symbol.dispose]();

  private constructor(readonly path: string) {
    globalThis.addEventListener("unload", this.#interrupted);
  }

  /**
   * Makes the folder and takes its lock.
   * @throws {UserError} exit code 75 when another run holds it
   */
  static open(path: string): RunFolder {
    try {
      Deno.mkdirSync(path, { recursive: true });
    } catch (error) {
      throw new UserError(
        `Cannot write the output ${path}: ${(error as Error).message}. Choose another output or check its permissions`,
      );
    }
    const lock = join(path, LOCK);
    for (let attempt = 0;; attempt++) {
      try {
        using file = Deno.openSync(lock, { write: true, createNew: true });
        writeAll(file, new TextEncoder().encode(`${Deno.pid}\n`));
        return new RunFolder(path);
      } catch (error) {
        if (!(error instanceof Deno.errors.AlreadyExists)) {
          throw new UserError(
            `Cannot write the output ${path}: ${(error as Error).message}. Choose another output or check its permissions`,
          );
        }
      }
      const holder = readPid(lock);
      if (attempt > 0 || (holder !== null && isAlive(holder))) {
        throw new UserError(
          `Cannot use the output ${path}: the run of process ${holder} holds it. Wait for it or choose another output`,
          75,
        );
      }
      removeQuietly(lock); // left behind by a run that was killed
    }
  }

  /** Removes what an earlier run left, so that nothing of it is taken for this run's. Its adapter stays until it is replaced. */
  removeStale(names: readonly string[]): void {
    for (const name of names) {
      try {
        Deno.removeSync(join(this.path, name), { recursive: true });
      } catch (error) {
        if (!(error instanceof Deno.errors.NotFound)) throw error;
      }
    }
  }

  /** Starts a log of JSON lines, empty. */
  startLog(name: string): void {
    this.#logs.set(name, Deno.openSync(join(this.path, name), { write: true, create: true, truncate: true }));
  }

  /** Adds one object as a line. */
  log(name: string, value: unknown): void {
    writeAll(this.#logs.get(name)!, new TextEncoder().encode(JSON.stringify(value) + "\n"));
  }

  /** Writes a text file, complete or absent. */
  writeText(name: string, text: string): void {
    writeFileAtomic(join(this.path, name), (file) => writeAll(file, new TextEncoder().encode(text)));
  }

  [Symbol.dispose](): void {
    globalThis.removeEventListener("unload", this.#interrupted);
    for (const file of this.#logs.values()) file.close();
    this.#logs.clear();
    removeQuietly(join(this.path, LOCK));
  }
}

function readPid(lock: string): number | null {
  try {
    const pid = Number(Deno.readTextFileSync(lock));
    return Number.isInteger(pid) && pid > 0 ? pid : null;
  } catch {
    return null;
  }
}

/** Whether a process runs: /proc tells without sending it anything. */
function isAlive(pid: number): boolean {
  if (pid === Deno.pid) return true;
  try {
    Deno.statSync(`/proc/${pid}`);
    return true;
  } catch {
    return false;
  }
}

function removeQuietly(path: string): void {
  try {
    Deno.removeSync(path);
  } catch { // gone already
  }
}
