/** Files that somebody named, and files that somebody may have removed. */

/**
 * The text of a regular file. Anything else is refused before it is opened: a named pipe would wait for somebody who writes into it.
 * @throws {Error} with the system's reason, or that it is no regular file
 */
export function readRegularFile(path: string): string {
  if (!Deno.statSync(path).isFile) throw new Error("it is not a regular file");
  return Deno.readTextFileSync(path);
}

/** Removes a file or an empty folder, if it is there. */
export function removeQuietly(path: string): void {
  try {
    Deno.removeSync(path);
  } catch { // gone already, or no longer empty
  }
}
