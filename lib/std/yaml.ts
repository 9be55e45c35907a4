/**
 * `parse` and `stringify` of JSR's `@std/yaml` on top of `npm:yaml`: same names, and the same results for YAML 1.2 documents.
 *
 * JSR cannot be reached from every host that builds metalora; to move there, point `@std/yaml` in deno.json at
 * `jsr:@std/yaml`. Only what this project uses is here: no schemas, no options but those below. Like the package, timestamps
 * become dates, and a document that is empty becomes null.
 */
import { Document, parseDocument } from "yaml";

/** Options of {@linkcode parse}. */
export interface ParseOptions {
  /** Keep the last of several values of a key instead of failing. */
  allowDuplicateKeys?: boolean;
}

/** Options of {@linkcode stringify}. */
export interface StringifyOptions {
  /** Columns for each level (default 2). */
  indent?: number;
  /** Longest line before text is folded (default 80). */
  lineWidth?: number;
  /** Leave out what YAML cannot hold (functions, undefined) instead of failing. */
  skipInvalid?: boolean;
}

/**
 * The value of a YAML document.
 *
 * @throws {SyntaxError} For text that is no YAML, for a key given twice, and for more than one document.
 *
 * @example
 * ```ts
 * import { parse } from "@std/yaml";
 * import { assertEquals } from "@std/assert";
 *
 * assertEquals(parse("lr: 5e-4\nbetas: [0.9, 0.95]"), { lr: 5e-4, betas: [0.9, 0.95] });
 * ```
 */
export function parse(content: string, options: ParseOptions = {}): unknown {
  const document = parseDocument(content.replace(/^\uFEFF/, ""), {
    prettyErrors: true,
    uniqueKeys: !options.allowDuplicateKeys,
    customTags: ["timestamp", "merge"],
  });
  const [error] = document.errors;
  if (error) throw new SyntaxError(error.message);
  return document.toJS();
}

/**
 * A value as a YAML document.
 *
 * @throws {TypeError} For what YAML cannot hold: functions, symbols and undefined.
 *
 * @example
 * ```ts
 * import { stringify } from "@std/yaml";
 * import { assertEquals } from "@std/assert";
 *
 * assertEquals(stringify({ lr: 0.1, name: "a" }), "lr: 0.1\nname: a\n");
 * ```
 */
export function stringify(data: unknown, options: StringifyOptions = {}): string {
  const { indent = 2, lineWidth = 80, skipInvalid = false } = options;
  const value = checked(data, skipInvalid, new Set());
  return new Document(value, { aliasDuplicateObjects: true }).toString({ indent, lineWidth });
}

/** The data without what YAML cannot hold. */
function checked(data: unknown, skip: boolean, above: Set<unknown>): unknown {
  if (typeof data === "function" || typeof data === "symbol" || data === undefined) {
    if (skip) return undefined;
    throw new TypeError(`Cannot stringify ${data === undefined ? "undefined" : `a ${typeof data}`}`);
  }
  if (typeof data !== "object" || data === null || data instanceof Date || above.has(data)) return data;
  above.add(data);
  if (Array.isArray(data)) { for (const each of data) checked(each, skip, above); }
  else for (const each of Object.values(data)) checked(each, skip, above);
  return data;
}
