/** A lock file: one process at a time, free again as soon as its holder is gone, however it ended. */
import { UserError } from "../errors.ts";
import { writeAll } from "../tensor/atomic.ts";

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
        if (!tryLock(file, text)) {
          const holder = /^\d+/.exec(text)?.[0];
          throw new UserError(
            `Cannot use ${what}: ${holder ? `the run of process ${holder}` : "another run"} holds it. ` +
              `Wait for it or choose another output`,
            75,
          );
        }
        // Its holder may have removed the file after we opened it; then ours is not the one that others see.
        if (file.statSync().ino === inode(path)) return new FileLock(path, file);
      } catch (error) {
        file.close();
        throw error;
      }
      file.close();
    }
  }

  [Symbol.dispose](): void {
    removeQuietly(this.path);
    this.file.close();
  }
}

/** The kernel's own lock, which dies with the process; before Deno 2.9, or where the file system has none, the number in the file. */
function tryLock(file: Deno.FsFile, text: string): boolean {
  const { tryLockSync } = file as { tryLockSync?: (exclusive: boolean) => boolean };
  try {
    if (tryLockSync) return tryLockSync.call(file, true);
  } catch { // a file system without locks
  }
  const pid = Number(text);
  return !(pid > 0) || pid === Deno.pid || inode(`/proc/${pid}`) === null;
}

function removeQuietly(path: string): void {
  try {
    Deno.removeSync(path);
  } catch { // somebody removed the folder
  }
}

function readText(file: Deno.FsFile): string {
  const bytes = new Uint8Array(64);
  return new TextDecoder().decode(bytes.subarray(0, file.readSync(bytes) ?? 0));
}

function inode(path: string): number | null {
  try {
    return Deno.statSync(path).ino;
  } catch {
    return null;
  }
}
