/**
 * From the fields of a row to the parts of a sample.
 *
 * @module
 */

import { basename, extname } from "node:path";
import type { DataSource } from "../config/schema.ts";
import { UserError } from "../errors.ts";
import { kindOf, type Row } from "./readers.ts";

/** A row, understood: text before any template. */
export interface Example {
  /** The row's own `id`, else `<file stem>:<index from 0>`. */
  readonly id: string;
  /** What is asked: the instruction, or the prompt. */
  readonly instruction: string;
  /** Further context; empty where there is none. */
  readonly input: string;
  /** The answer. */
  readonly response: string;
  /** Where the row came from, if it says so. */
  readonly source: string | null;
}

/** What {@linkcode toExample} needs to know about the file. */
export type Format = Pick<DataSource, "path" | "format" | "fields">;

/**
 * Picks the parts of a sample out of a row.
 *
 * - `alpaca`: instruction, input (may be absent, null or empty unless the configuration renames it), output.
 * - `prompt-completion`: prompt, completion.
 *
 * @param row The row.
 * @param format Format and names of the fields.
 * @throws {UserError} With `file:line`, the fields that the row has and the key to set, when a field is missing or no text.
 */
export function toExample(row: Row, { path, format, fields }: Format): Example {
  const parts = "prompt" in fields
    ? {
      instruction: text(row, fields.prompt, "prompt", format),
      input: "",
      response: text(row, fields.completion, "completion", format),
    }
    : {
      instruction: text(row, fields.instruction, "instruction", format),
      input: inputText(row, fields.input, format),
      response: text(row, fields.output, "output", format),
    };
  const { id, source } = row.fields;
  return {
    id: typeof id === "string" || typeof id === "number" ? String(id) : `${basename(path, extname(path))}:${row.index}`,
    ...parts,
    source: typeof source === "string" ? source : null,
  };
}

/** Files without any input at all are common; a renamed field that is not there is a mistake. */
function inputText(row: Row, name: string | null, format: string): string {
  if (name === null) return "";
  const value = row.fields[name];
  return value === null || (value === undefined && name === "input") ? "" : text(row, name, "input", format);
}

function text(row: Row, name: string, role: string, format: string): string {
  const value = Object.hasOwn(row.fields, name) ? row.fields[name] : undefined;
  if (typeof value === "string") return value;
  const found = value === undefined
    ? `it has no field "${name}" (it has: ${Object.keys(row.fields).slice(0, 20).join(", ") || "none"})`
    : `its field "${name}" is ${kindOf(value)} instead of text`;
  throw new UserError(
    `${row.where}: Cannot use the row as ${format}: ${found}. Set fields.${role} of this data to the name of the field, or correct the row`,
    2,
  );
}
