/** Writing to the terminal, a file or a pipe. What cannot be written there never ends the work that it tells about. */
import { UserError } from "../errors.ts";

const encoder = new TextEncoder();

/** Bytes that a pipe takes all of or nothing (PIPE_BUF): of a longer write that fails, nobody is told how much went through. */
const PIPE_BYTES = 4096;

/** The reader of our output has gone (`metalora … | head`): nothing is left to say. */
export class OutputClosed extends Error {
  override readonly name = "OutputClosed";
}

/**
 * Writes a line to stdout, at once.
 *
 * @throws {OutputClosed} When nobody reads stdout any more; the program then ends quietly.
 * @throws {UserError} When stdout takes nothing, such as a file on a full disk.
 */
export function printLine(text = ""): void {
  try {
    writeAll(Deno.stdout, text + "\n", { patient: true });
  } catch (error) {
    if (error instanceof Deno.errors.BrokenPipe) throw new OutputClosed();
    const what = error instanceof Error ? error.message : String(error);
    throw new UserError(`Cannot write to standard output: ${what}. Free some space where it goes, or send it elsewhere`);
  }
}

/** Writes one object as a line of JSON to stdout (`--json`). Numbers that JSON lacks (NaN, ±Infinity) become null. */
export function printJson(value: unknown): void {
  printLine(JSON.stringify(value));
}

/**
 * Tells on stdout what a work that is done, and saved, came to. When stdout takes nothing, a line on stderr says so.
 *
 * @param print Prints it.
 * @param done What holds all the same, such as "the adapter is in runs/math/adapter".
 * @returns false when it was lost; a reader who has gone has lost nothing.
 */
export function tell(print: () => void, done: string): boolean {
  try {
    print();
    return true;
  } catch (error) {
    if (error instanceof OutputClosed) return true;
    if (!(error instanceof UserError)) throw error;
    printNote(`metalora: ${error.message} (${done})`);
    return false;
  }
}

/** Why the program ends without what it was asked for, and anything more that a program may want to know. */
export interface Failure {
  readonly error: string;
  readonly exit_code: number;
  readonly [key: string]: unknown;
}

/**
 * Writes why the program ends without what it was asked for: a line on stderr, and with `--json` an object on stdout, too.
 *
 * @param error The line, and the exit code that the program will have.
 * @param json Whether `--json` is given.
 */
export function printFailure({ error, ...more }: Failure, json: boolean): void {
  printNote(error);
  if (!json) return;
  try {
    printJson({ error: error.replace(/^metalora: /, ""), ...more });
  } catch { // stdout takes nothing, which may be the very error; stderr has it
  }
}

/** Writes a line to stderr. It is lost when that is a closed pipe, a terminal that hung up, or a file on a full disk. */
export function printNote(text: string): void {
  printProgress(text + "\n");
}

/** Writes text to stderr as it is, for a line that is drawn again and again; lost like a note's. */
export function printProgress(text: string): void {
  try {
    writeAll(Deno.stderr, text);
  } catch { // the work goes on without being watched
  }
}

/** @param patient Waits for the reader of a pipe that is full and that somebody made non-blocking, as it would of any other pipe. */
function writeAll(stream: { writeSync(bytes: Uint8Array): number }, text: string, { patient = false } = {}): void {
  let rest = encoder.encode(text);
  while (rest.length > 0) {
    try {
      const piece = rest.subarray(0, PIPE_BYTES);
      // Deno writes what follows the last line break by a call of its own.
      rest = rest.subarray(stream.writeSync(piece.subarray(0, piece.lastIndexOf(10) + 1 || piece.length)));
    } catch (error) {
      if (!(patient && error instanceof Deno.errors.WouldBlock)) throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5);
    }
  }
}
