/**
 * Files and folders that are complete or absent: written beside their final place, flushed to the disk, then renamed.
 *
 * @module
 */

import { basename, dirname, join } from "node:path";
import { UserError } from "../errors.ts";
import { reasonOf } from "../files.ts";

let counter = 0;

/** A path beside `path`, on the same file system, that no other writer uses. */
function temporaryBeside(path: string): string {
  return join(dirname(path), `.${basename(path)}.${Deno.pid}-${counter++}.tmp`);
}

/**
 * Writes a file so that `path` holds either its old content or all of the new one.
 *
 * @param path Final path; its folder must exist.
 * @param write Called once with the open, empty file.
 * @throws {UserError} When the file cannot be written; nothing is left behind.
 */
export function writeFileAtomic(path: string, write: (file: Deno.FsFile) => void): void {
  const temporary = temporaryBeside(path);
  try {
    {
      using file = Deno.openSync(temporary, { write: true, createNew: true });
      write(file);
      file.syncSync();
    }
    Deno.renameSync(temporary, path);
    syncFolder(dirname(path));
  } catch (error) {
    removeQuietly(temporary);
    throw asUserError(error, `Cannot write ${path}`);
  }
}

/**
 * Fills a folder so that `path` is either absent (or what it was before) or complete.
 *
 * @param path Final path; parent folders are made.
 * @param fill Called once with the temporary folder; every file that it writes should be flushed (`writeFileAtomic` does).
 * @throws {UserError} When something cannot be written; nothing is left behind.
 */
export function writeFolderAtomic(path: string, fill: (folder: string) => void): void {
  const temporary = temporaryBeside(path);
  const previous = `${temporary}.old`;
  try {
    Deno.mkdirSync(temporary, { recursive: true });
    fill(temporary);
    syncFolder(temporary);
    // A folder cannot be renamed over one that has files in it, so the old one steps aside first.
    const replaced = moveIfPresent(path, previous);
    try {
      Deno.renameSync(temporary, path);
    } catch (error) {
      if (replaced) Deno.renameSync(previous, path);
      throw error;
    }
    syncFolder(dirname(path));
    if (replaced) Deno.removeSync(previous, { recursive: true });
  } catch (error) {
    removeQuietly(temporary);
    // The reader knows the folder by its final name only.
    if (error instanceof UserError) throw new UserError(error.message.replaceAll(temporary, path), error.exitCode);
    throw asUserError(error, `Cannot write the folder ${path}`);
  }
}

/** Writes all of `bytes`; one `writeSync` may write less. */
export function writeAll(file: Deno.FsFile, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length;) done += file.writeSync(bytes.subarray(done));
}

function moveIfPresent(from: string, to: string): boolean {
  try {
    Deno.renameSync(from, to);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/** Flushes a folder's entries, so that a rename inside it survives a power cut. */
export function syncFolder(path: string): void {
  using folder = Deno.openSync(path === "" ? "." : path, { read: true });
  folder.syncSync();
}

function removeQuietly(path: string): void {
  try {
    Deno.removeSync(path, { recursive: true });
  } catch { // It was never made, or has been renamed: the first error is the one to report.
  }
}

function asUserError(error: unknown, action: string): unknown {
  if (error instanceof UserError || !(error instanceof Error)) return error;
  // Deno keeps /proc, /sys and the like from a program that may write elsewhere.
  if (error instanceof Deno.errors.NotCapable) {
    return new UserError(`${action}: programs may not write there. Choose another place`);
  }
  const system = "code" in error && typeof error.code === "string";
  return system ? new UserError(`${action}: ${reasonOf(error)}. Check the folder, its permissions and the free space`, 1) : error;
}
