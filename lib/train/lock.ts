/** A lock file: one process at a time, free again as soon as its holder is gone, however it ended. */
import { UserError } from "../errors.ts";
import { removeQuietly } from "../files.ts";
import { writeAll } from "../tensor/atomic.ts";

/** Long after everybody who found the lock free has written its number. */
const SETTLED_MS = 50;

/** Held until it is disposed of. */
export class FileLock implements Disposable {
  /** @param file The lock file, locked by this process; it is told who holds it. */
  private constructor(readonly path: string, readonly file: Deno.FsFile) {
    try {
      file.truncateSync();
      file.seekSync(0, Deno.SeekMode.Start);
      writeAll(file, new TextEncoder().encode(`${Deno.pid}\n`));
    } catch (error) { // the disk is full
      removeQuietly(path);
      throw error;
    }
  }

  /**
   * Takes the lock, at once or not at all.
   * @param path The lock file; made when it is not there, removed on disposal.
   * @param what What it locks, for the message.
   * @throws {UserError} exit code 75 when another process holds it; an error of the system when it cannot be written, and then it is gone
   */
  static take(path: string, what: string): FileLock {
    for (;;) {
      const file = Deno.openSync(path, { read: true, write: true, create: true });
      try {
        const text = readText(file);
        let kernel = tryLock(file, true);
        if (kernel === false) { // perhaps somebody only looks, who lets go at once
          wait(SETTLED_MS);
          kernel = tryLock(file, true);
        }
        if (!(kernel ?? isFree(text))) throw held(what, readText(file));
        // Its holder may have removed the file after we opened it; then ours is not the one that others see.
        if (file.statSync().ino === inode(path)) {
          const lock = new FileLock(path, file);
          if (kernel !== null) return lock;
          // Of several that found it free at once, the last one to write its number has it.
          wait(SETTLED_MS);
          const now = readText(file);
          if (parseInt(now) !== Deno.pid) throw held(what, now);
          if (file.statSync().ino === inode(path)) return lock;
        }
      } catch (error) {
        file.close();
        throw error;
      }
      file.close();
    }
  }

  /**
   * Looks whether somebody holds the lock; it is neither made nor taken.
   * @param path The lock file.
   * @param what What it locks, for the message.
   * @throws {UserError} exit code 75 when another process holds it; an error of the system when it cannot be read
   */
  static requireFree(path: string, what: string): void {
    let file: Deno.FsFile;
    try {
      file = Deno.openSync(path, { read: true });
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return;
      throw error;
    }
    using _file = file;
    const text = readText(file);
    if (text !== "" && !(tryLock(file, false) ?? isFree(text))) throw held(what, text);
  }

  [Symbol.dispose](): void {
    removeQuietly(this.path);
    this.file.close();
  }
}

/** The kernel's own lock, which dies with the process. @returns null before Deno 2.9, or where the file system has none */
function tryLock(file: Deno.FsFile, exclusive: boolean): boolean | null {
  const { tryLockSync } = file as { tryLockSync?: (exclusive: boolean) => boolean };
  try {
    return tryLockSync ? tryLockSync.call(file, exclusive) : null;
  } catch { // a file system without locks
    return null;
  }
}

/** Whether the number in the file is of no other living process. */
function isFree(text: string): boolean {
  const pid = parseInt(text);
  return !(pid > 0) || pid === Deno.pid || inode(`/proc/${pid}`) === null;
}

function held(what: string, text: string): UserError {
  const holder = /^\d+/.exec(text)?.[0];
  const who = holder ? `the run of process ${holder}` : "another run";
  return new UserError(`Cannot use ${what}: ${who} holds it. Wait for it or choose another output`, 75);
}

function wait(milliseconds: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, milliseconds);
}

function readText(file: Deno.FsFile): string {
  const bytes = new Uint8Array(64);
  file.seekSync(0, Deno.SeekMode.Start);
  return new TextDecoder().decode(bytes.subarray(0, file.readSync(bytes) ?? 0));
}

function inode(path: string): number | null {
  try {
    return Deno.statSync(path).ino;
  } catch {
    return null;
  }
}
