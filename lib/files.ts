/** Reading files that somebody named. */

/**
 * The text of a regular file. Anything else is refused before it is opened: a named pipe would wait for somebody who writes into it.
 * @throws {Error} with the system's reason, or that it is no regular file
 */
export function readRegularFile(path: string): string {
  if (!Deno.statSync(path).isFile) throw new Error("it is not a regular file");
  return Deno.readTextFileSync(path);
}
