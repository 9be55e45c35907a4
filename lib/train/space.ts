/** Free disk space, looked at before something large is written. */
import { statfsSync } from "node:fs";
import { dirname } from "node:path";
import { counted } from "../counted.ts";
import { UserError } from "../errors.ts";
import { formatBytes } from "./memory.ts";

/** Bytes that the file system of a folder still has for this user; null where the system does not tell. */
export function freeBytes(folder: string): number | null {
  try {
    const { bavail, bsize } = statfsSync(folder, { bigint: true });
    return Number(bavail * bsize);
  } catch {
    return null;
  }
}

/** The folder itself, or the innermost one on the way to it that is there: the disk that it will be on. */
export function existingFolder(folder: string): string {
  try {
    Deno.statSync(folder);
    return folder;
  } catch { // not there, or not to be looked at
    return existingFolder(dirname(folder));
  }
}

/**
 * @param folder An existing folder on the disk that is written to.
 * @param bytes What is to be written.
 * @param action Such as "save the checkpoint of step 100": what cannot be done.
 * @param free Bytes that are free there.
 * @throws {UserError} when it does not fit
 */
export function requireDiskRoom(folder: string, bytes: number, action: string, free: number | null = freeBytes(folder)): void {
  if (free === null || bytes <= free) return;
  const rounded = [formatBytes(bytes), formatBytes(free)] as const;
  // Rounded they may be the same.
  const [takes, left] = rounded[0] === rounded[1] ? [counted(bytes, "byte"), counted(free, "byte")] : rounded;
  throw new UserError(
    `Cannot ${action}: it takes ${takes}, and the disk of ${folder} has ${left} left. ` +
      `Free some space, or choose another output`,
  );
}
