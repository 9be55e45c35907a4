/** What is wrong with a configuration, in words. */
import type { z } from "zod";
import { didYouMean } from "../nearest.ts";
import { configSchema } from "./schema.ts";
import { SYNONYMS } from "./synonyms.ts";
import { type KeyPath, pathText } from "./document.ts";

/** One thing wrong: where, and the sentence that says so. */
export interface Problem {
  readonly path: KeyPath;
  /** Whether the place to show is the value or the key in front of it. */
  readonly part: "value" | "key";
  readonly message: string;
}

/** A problem in the grammar of all messages: "Cannot use <key>: <what is wrong>". */
export function problem(path: KeyPath, what: string, part: "value" | "key" = "value"): Problem {
  return { path, part, message: `Cannot use ${pathText(path) || "the configuration"}: ${what}` };
}

/** The value at a path, undefined where the path leads nowhere. */
export function valueAt(root: unknown, path: KeyPath): unknown {
  let value = root;
  for (const key of path) {
    if (typeof value !== "object" || value === null || !Object.hasOwn(value, key)) return undefined;
    value = (value as Record<string | number, unknown>)[key];
  }
  return value;
}

type Issue = z.core.$ZodIssue;

/** Values that earlier versions knew, by key, and what to write now. */
const FORMER: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  "train.recompute": { norms: "what it saved is never kept now, mlp is the next that saves memory" },
};

/** Turns what zod found in `input` into problems, one for each unknown key and each wrong value. */
export function problemsOf(issues: readonly Issue[], input: unknown): Problem[] {
  // Of a number that is no safe integer, and beyond its own range as well, the range is said last and says more.
  const last = new Map(issues.map((issue) => [JSON.stringify(issue.path), issue]));
  return [...last.values()].flatMap((issue): Problem[] => {
    const path = issue.path as KeyPath;
    if (issue.code === "unrecognized_keys") return issue.keys.map((key) => unknownKey([...path, key]));
    const found = valueAt(input, path);
    if (found === undefined) return [missingKey(path)];
    return [problem(path, `expected ${expected(issue)}, found ${shown(found)}.${suggestion(issue, found)}`.replace(/\.$/, ""))];
  });
}

function expected(issue: Issue): string {
  switch (issue.code) {
    case "invalid_type":
      if (issue.expected === "int" || isWhole(issue.path as KeyPath)) return "a whole number";
      return {
        number: "a number",
        string: "text",
        boolean: "true or false",
        array: "a list",
        tuple: "a list",
        object: "keys and values",
      }[issue.expected as string] ?? issue.expected;
    case "invalid_value":
      return `one of ${issue.values.join(", ")}`;
    case "too_small":
      if (issue.origin === "string") return "text that is not empty";
      if (issue.origin === "array") return `a list of ${tupleLength(issue.path as KeyPath) ?? `at least ${issue.minimum}`}`;
      return `a number ${issue.inclusive ? "of at least" : "above"} ${issue.minimum}`;
    case "too_big":
      if (issue.origin === "array") return `a list of ${tupleLength(issue.path as KeyPath) ?? `at most ${issue.maximum}`}`;
      return `a number ${issue.inclusive ? "of at most" : "below"} ${issue.maximum}`;
    default:
      return issue.message;
  }
}

function shown(value: unknown): string {
  if (value !== null && typeof value === "object") return Array.isArray(value) ? `a list of ${value.length}` : "keys and values";
  return typeof value === "string" ? `'${value}'` : String(value);
}

function suggestion(issue: Issue, found: unknown): string {
  if (issue.code === "invalid_type" && issue.expected === "object") {
    const keys = keysOf(schemaAt(issue.path as KeyPath));
    return typeof found === "string" && keys.includes("path") ? ` Write { path: ${found} }` : ` Its keys: ${keys.join(", ")}`;
  }
  if (issue.code !== "invalid_value" || typeof found !== "string") return "";
  const former = FORMER[pathText(issue.path as KeyPath)]?.[found];
  if (former !== undefined) return ` '${found}' is of an earlier version: ${former}`;
  return didYouMean(found, issue.values.map(String));
}

function missingKey(path: KeyPath): Problem {
  const description = schemaAt(path)?.description;
  const name = pathText(path);
  const what = `${name} is missing. Add it${description ? ` (${lowerFirst(description)})` : ""}`;
  const { message } = problem(path.slice(0, -1), what);
  return { path, part: "key", message };
}

function unknownKey(path: KeyPath): Problem {
  const key = String(path.at(-1));
  const siblings = keysOf(schemaAt(path.slice(0, -1)));
  // The name that another trainer has for it, a typing error, or the right name in the wrong place.
  const synonym = Object.hasOwn(SYNONYMS, key) ? SYNONYMS[key] : undefined;
  let help = synonym ? ` Did you mean '${synonym}'?` : didYouMean(key, siblings);
  if (help === "") {
    const elsewhere = allPaths().filter((other) => other.at(-1) === key && !other.includes("validation"));
    help = elsewhere.length > 0 ? ` Did you mean '${elsewhere[0]!.join(".")}'?` : ` Known keys here: ${siblings.join(", ")}`;
  }
  return problem(path, `unknown key.${help}`, "key");
}

/** The schema below optional, nullable and default wrappers. */
function unwrap(schema: unknown): unknown {
  let inner = schema;
  while ((inner as { def?: { innerType?: unknown } })?.def?.innerType !== undefined) {
    inner = (inner as { def: { innerType: unknown } }).def.innerType;
  }
  return inner;
}

/** Whether the key at a path holds any text at all (no choice, no number), and whether it may be null as well. */
export function textAt(path: KeyPath): "text" | "text or null" | null {
  const schema = schemaAt(path);
  if ((unwrap(schema) as Definition | undefined)?.def?.type !== "string") return null;
  for (let inner = schema as Definition | undefined; inner?.def; inner = inner.def.innerType) {
    if (inner.def.type === "nullable") return "text or null";
  }
  return "text";
}

/** What zod tells of a schema. */
interface Definition {
  readonly def?: { readonly type?: string; readonly innerType?: Definition };
}

function tupleLength(path: KeyPath): number | undefined {
  return (unwrap(schemaAt(path)) as { def?: { items?: unknown[] } } | undefined)?.def?.items?.length;
}

function isWhole(path: KeyPath): boolean {
  return (unwrap(schemaAt(path)) as { def?: { format?: string } } | undefined)?.def?.format === "safeint";
}

function shapeOf(schema: unknown): Record<string, { description?: string }> | undefined {
  return (unwrap(schema) as { shape?: Record<string, { description?: string }> } | undefined)?.shape;
}

function keysOf(schema: unknown): string[] {
  return Object.keys(shapeOf(schema) ?? {});
}

function schemaAt(path: KeyPath): { description?: string } | undefined {
  let schema: unknown = configSchema;
  for (const key of path) schema = shapeOf(schema)?.[String(key)];
  return schema as { description?: string } | undefined;
}

/** Every key of the schema as a path from the top. */
export function allPaths(schema: unknown = configSchema, prefix: readonly string[] = []): string[][] {
  return Object.entries(shapeOf(schema) ?? {}).flatMap(([key, child]) => {
    const path = [...prefix, key];
    return [path, ...allPaths(child, path)];
  });
}

function lowerFirst(sentence: string): string {
  return /^[A-Z][a-z]/.test(sentence) ? sentence[0]!.toLowerCase() + sentence.slice(1) : sentence;
}
