/**
 * Rows of a data file: JSONL (one object a line), or JSON (one array of objects). Which of the two a file is shows in its
 * first character, not in its name: many `.json` files are JSONL.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { UserError } from "../errors.ts";
import { refuseLfsPointer, unreadable } from "../files.ts";
import { parseStrictJson, StrictJsonError } from "../tensor/json.ts";

/** One row. */
export interface Row {
  readonly fields: Readonly<Record<string, unknown>>;
  /** JSONL: line of the file; JSON: place in the array; both from 0. */
  readonly index: number;
  /** `file:line`, lines counted from 1, for messages. */
  readonly where: string;
}

const CHUNK_BYTES = 1 << 20;
/** What to do about what is no data: for a file that somebody else made. */
const KINDS = "A data file is JSONL (one object a line) or JSON (one array of objects)";

/**
 * Reads rows one after the other; a JSONL file of any size needs memory for one line only. A byte order mark, CRLF and
 * blank lines are skipped.
 *
 * @param path The file.
 * @param options `unfinished`: what becomes of a last line without a line break, "skip" where its writer may not be done with it.
 * `advice`: what to do about what cannot be read, where the file is no data of the user's.
 * @throws {UserError} With `file:line:column` for what is no JSON object, or when the file cannot be read.
 */
export function* readRows(
  path: string,
  { unfinished = "read", advice = KINDS }: { unfinished?: "read" | "skip"; advice?: string } = {},
): Generator<Row> {
  using file = openData(path);
  if (firstCharacter(file) === "[") yield* arrayRows(path, advice);
  else yield* lineRows(path, file, { unfinished, advice });
}

/** SHA-256 of a file, in hexadecimal; read in pieces. */
export function sha256OfFile(path: string): string {
  using file = openData(path);
  const hash = createHash("sha256");
  const chunk = new Uint8Array(CHUNK_BYTES);
  for (let n = file.readSync(chunk); n !== null; n = file.readSync(chunk)) hash.update(chunk.subarray(0, n));
  return hash.digest("hex");
}

function openData(path: string): Deno.FsFile {
  try {
    const { isFile, isDirectory } = Deno.statSync(path);
    if (isDirectory) throw new UserError(`Cannot read the data ${path}: it is a folder. ${KINDS}`, 2);
    // A pipe can be read once, and opening a named one waits for somebody who writes into it.
    if (!isFile) throw new UserError(`Cannot read the data ${path}: it is not a regular file. Write the data into one`, 2);
    return Deno.openSync(path, { read: true });
  } catch (error) {
    if (error instanceof UserError) throw error;
    throw new UserError(`Cannot read the data ${path}: ${unreadable(error, "Check the path")}`, 2);
  }
}

/** The first character that is neither white space nor a byte order mark; the file is rewound. */
function firstCharacter(file: Deno.FsFile): string {
  const chunk = new Uint8Array(4096);
  let text = "";
  for (let n = file.readSync(chunk); n !== null && text === ""; n = file.readSync(chunk)) {
    text = new TextDecoder().decode(chunk.subarray(0, n)).trimStart();
  }
  file.seekSync(0, Deno.SeekMode.Start);
  return text.charAt(0);
}

function* lineRows(
  path: string,
  file: Deno.FsFile,
  { unfinished, advice }: { unfinished: "read" | "skip"; advice: string },
): Generator<Row> {
  let index = 0;
  for (const bytes of lines(file, unfinished)) {
    const text = decode(path, bytes, { line: index + 1, advice });
    if (text.trim() !== "") {
      yield { fields: parseObject(path, text, { line: index + 1, advice }), index, where: `${path}:${index + 1}` };
    }
    index++;
  }
}

/** Lines without their "\n". A slice is valid until the next one is asked for. */
function* lines(file: Deno.FsFile, unfinished: "read" | "skip"): Generator<Uint8Array> {
  const chunk = new Uint8Array(CHUNK_BYTES);
  let parts: Uint8Array[] = []; // a line that began in earlier chunks
  for (let n = file.readSync(chunk); n !== null; n = file.readSync(chunk)) {
    let start = 0;
    for (let end = chunk.indexOf(10); end >= 0 && end < n; end = chunk.indexOf(10, start)) {
      const tail = chunk.subarray(start, end);
      yield parts.length === 0 ? tail : concatenate([...parts, tail]);
      parts = [];
      start = end + 1;
    }
    if (start < n) parts.push(chunk.slice(start, n));
  }
  if (parts.length > 0 && unfinished === "read") yield concatenate(parts);
}

function concatenate(parts: Uint8Array[]): Uint8Array {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

function* arrayRows(path: string, advice: string): Generator<Row> {
  const text = decode(path, Deno.readFileSync(path), { line: 1, advice });
  const rows = parse(path, text, { line: 1, advice }) as unknown[];
  const starts = elementLines(text);
  for (const [index, fields] of rows.entries()) {
    const where = `${path}:${starts[index]}`;
    if (!isObject(fields)) {
      throw new UserError(`${where}: Cannot use element ${index} of the array: it is ${kindOf(fields)}. ${advice}`, 2);
    }
    yield { fields, index, where };
  }
}

/** The line on which each element of a (valid) JSON array starts, from 1. */
function elementLines(text: string): number[] {
  const result: number[] = [];
  let line = 1;
  let depth = 0;
  let expecting = false; // an element of the outer array comes next
  for (let i = 0; i < text.length; i++) {
    const c = text[i]!;
    if (c === "\n") line++;
    if (/\s/.test(c)) continue;
    if (expecting && c !== "]") {
      result.push(line);
      expecting = false;
    }
    if (c === '"') {
      for (i++; text[i] !== '"'; i++) if (text[i] === "\\") i++;
    } else if (c === "[" || c === "{") {
      expecting = ++depth === 1;
    } else if (c === "]" || c === "}") {
      depth--;
    } else if (c === "," && depth === 1) {
      expecting = true;
    }
  }
  return result;
}

/** Which line of the file, from 1, and what to do about it. */
interface Place {
  readonly line: number;
  readonly advice: string;
}

function decode(path: string, bytes: Uint8Array, { line, advice }: Place): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes); // drops a byte order mark
  } catch {
    throw new UserError(
      `${path}:${line}: Cannot read the data: it is not valid UTF-8. ${advice === KINDS ? "Save the file as UTF-8" : advice}`,
      2,
    );
  }
}

function parseObject(path: string, text: string, place: Place): Record<string, unknown> {
  const value = parse(path, text, place);
  if (isObject(value)) return value;
  const { line, advice } = place;
  throw new UserError(`${path}:${line}: Cannot use the row: it is ${kindOf(value)} instead of an object. ${advice}`, 2);
}

function parse(path: string, text: string, { line, advice }: Place): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    refuseLfsPointer(path, text);
    const { message, offset } = explain(text, error);
    const before = text.slice(0, offset).split("\n");
    const where = `${path}:${line + before.length - 1}:${before.at(-1)!.length + 1}`;
    throw new UserError(`${where}: Cannot read the data: ${message}. ${advice}`, 2);
  }
}

/** V8 gives a position for some errors only; the strict parser gives it for all. */
function explain(text: string, error: unknown): { message: string; offset: number } {
  try {
    parseStrictJson(text);
  } catch (strict) {
    if (strict instanceof StrictJsonError) return { message: strict.message, offset: strict.offset };
  }
  return { message: error instanceof Error ? error.message : String(error), offset: 0 };
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** "a number", "a list", … for messages. */
export function kindOf(value: unknown): string {
  if (value === null) return "null";
  if (Array.isArray(value)) return "a list";
  return typeof value === "object" ? "an object" : typeof value === "boolean" ? String(value) : `a ${typeof value}`;
}
