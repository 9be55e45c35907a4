/** Writing to the terminal or a pipe. */

const encoder = new TextEncoder();

/** The reader of our output has gone (`metalora … | head`): nothing is left to say. */
export class OutputClosed extends Error {
  override readonly name = "OutputClosed";
}

/**
 * Writes a line to stdout, at once.
 *
 * @throws {OutputClosed} When nobody reads stdout any more; the program then ends quietly.
 */
export function printLine(text = ""): void {
  try {
    writeAll(Deno.stdout, text + "\n");
  } catch (error) {
    if (error instanceof Deno.errors.BrokenPipe) throw new OutputClosed();
    throw error;
  }
}

/** Writes one object as a line of JSON to stdout (`--json`). Numbers that JSON lacks (NaN, ±Infinity) become null. */
export function printJson(value: unknown): void {
  printLine(JSON.stringify(value));
}

/** Writes a line to stderr; whether anybody reads it does not matter. */
export function printNote(text: string): void {
  try {
    writeAll(Deno.stderr, text + "\n");
  } catch (error) {
    if (!(error instanceof Deno.errors.BrokenPipe)) throw error;
  }
}

function writeAll(stream: { writeSync(bytes: Uint8Array): number }, text: string): void {
  let rest = encoder.encode(text);
  while (rest.length > 0) rest = rest.subarray(stream.writeSync(rest));
}
