/** Files that somebody named, and files that somebody may have removed. */
import { dirname } from "node:path";
import { UserError } from "./errors.ts";

/**
 * The text of a regular file. Anything else is refused before it is opened: a named pipe would wait for somebody who writes into it.
 * @throws {Error} with the system's reason, or that it is no regular file
 */
export function readRegularFile(path: string): string {
  if (!Deno.statSync(path).isFile) throw new Error("it is not a regular file");
  return Deno.readTextFileSync(path);
}

/** What the system says, without what Deno puts behind it: what it was doing with which path, perhaps a temporary one. */
export function reasonOf({ message }: Error): string {
  return message.replace(/: \w+ '.*'$/s, "");
}

/**
 * Why a file cannot be read, and what to do.
 * @param advice What to do, unless this user may not read the file.
 */
export function unreadable(error: unknown, advice: string): string {
  if (error instanceof Deno.errors.NotFound) return `there is no such file. ${advice}`;
  if (error instanceof Deno.errors.NotCapable && error.message.startsWith("Requires all access")) { // what is in /dev and /proc
    return "Deno keeps programs from opening it. Write it into a regular file";
  }
  if (error instanceof Deno.errors.PermissionDenied) return `${reasonOf(error)}. Check its permissions`;
  return `${error instanceof Error ? reasonOf(error) : error}. ${advice}`;
}

const LFS_POINTER = "version https://git-lfs.github.com/spec/";

/**
 * @param start How the file begins.
 * @throws {UserError} exit code 2, for the few lines that Git LFS keeps in a file's place until it is fetched
 */
export function refuseLfsPointer(path: string, start: string | Uint8Array): void {
  const text = typeof start === "string" ? start : new TextDecoder().decode(start);
  if (!text.startsWith(LFS_POINTER)) return;
  throw new UserError(`Cannot read ${path}: it is a Git LFS pointer, not the file itself. Run 'git lfs pull' in its folder`, 2);
}

/** A file of a folder as its user named it: `join` would make "config.json" of "./config.json". */
export function within(folder: string, name: string): string {
  return `${folder.replace(/\/+$/, "")}/${name}`;
}

/** @throws {UserError} exit code 2, when there is no folder for a file that is to be written */
export function requireParent(path: string): void {
  const folder = dirname(path);
  if (!exists(folder)) throw new UserError(`Cannot write ${path}: there is no folder ${folder}. Make it first`, 2);
}

/** Removes a file or an empty folder, if it is there. */
export function removeQuietly(path: string): void {
  try {
    Deno.removeSync(path);
  } catch { // gone already, or no longer empty
  }
}

/** Whether something of that name is there, be it a link that leads nowhere or out of reach. */
export function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    return true;
  }
}

/** Whether a folder of that name is there, or a link to one. */
export function isFolder(path: string): boolean {
  try {
    return Deno.statSync(path).isDirectory;
  } catch {
    return false;
  }
}
