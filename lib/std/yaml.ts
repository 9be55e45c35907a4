/**
 * `parse` and `stringify` of JSR's `@std/yaml` on top of `npm:yaml`: same names, and the same values.
 *
 * JSR cannot be reached from every host that builds metalora; to move there, point `@std/yaml` in deno.json at
 * `jsr:@std/yaml`. Narrower than the package, never different in a value: tags other than those of plain data (`!!set`,
 * `!own`) and tabs as indentation are refused, and options not listed here are missing. Like the package, numbers follow
 * YAML 1.1 (`017` is 15, `1_000` is 1000), timestamps become dates and an empty document null. `stringify` may choose other
 * quotes or line breaks for unusual text; read back, it is the same.
 */
import { Document, isScalar, parseDocument, type ScalarTag, type SchemaOptions, visit } from "yaml";

/** Whole numbers as the package reads them: binary, octal with a leading 0, hexadecimal, decimal; `_` anywhere behind. */
const integer: ScalarTag = {
  tag: "tag:yaml.org,2002:int",
  default: true,
  identify: (value) => Number.isInteger(value),
  test: /^[-+]?(0b[01_]*[01]|0x[0-9a-fA-F_]*[0-9a-fA-F]|0[0-7_]*[0-7]|0|[1-9](?:[0-9_]*[0-9])?)$/,
  resolve(text) {
    const sign = text.startsWith("-") ? -1 : 1;
    const digits = text.replace(/^[-+]/, "").replaceAll("_", "");
    return sign * Number(/^0[0-7]+$/.test(digits) ? `0o${digits}` : digits);
  },
};

/** Numbers with a point or an exponent. */
const float: ScalarTag = {
  tag: "tag:yaml.org,2002:float",
  default: true,
  identify: (value) => typeof value === "number",
  test:
    /^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9_]+(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$/,
  resolve(text) {
    const plain = text.replaceAll("_", "").toLowerCase();
    if (plain.endsWith(".inf")) return plain.startsWith("-") ? -Infinity : Infinity;
    return plain === ".nan" ? NaN : Number(plain);
  },
};

type Tags = Extract<NonNullable<SchemaOptions["customTags"]>, (tags: never) => unknown>;

const customTags: Tags = (tags) => [
  ...tags.filter((tag) => typeof tag !== "object" || !/:(int|float)$/.test(tag.tag)),
  integer,
  float,
  "timestamp",
];

/** A map may be merged into another where it is read; none that is written is. */
const readTags: Tags = (tags) => [...customTags(tags), "merge"];

/** Text that readers, of YAML 1.1 or 1.2, take for a truth value, a number or, as a key, for a merge. */
const AMBIGUOUS = /^(y|n|yes|no|on|off|[-+]?0o[0-7]+|<<)$/i;

const PLAIN_TAGS = /^tag:yaml\.org,2002:(null|bool|int|float|str|seq|map|timestamp|merge)$/;

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
    customTags: readTags,
  });
  const error = document.errors[0] ?? document.warnings[0];
  if (error) throw new SyntaxError(error.message);
  visit(document, {
    Node(_, { tag }) {
      if (tag !== undefined && !PLAIN_TAGS.test(tag)) throw new SyntaxError(`Cannot parse the tag ${tag}: plain data expected`);
    },
    Pair(_, { key }) {
      if (!isScalar(key)) throw new SyntaxError("Cannot parse a key that is a list or a map: text expected");
      key.value ??= "null";
    },
  });
  try {
    return document.toJS();
  } catch (cause) { // an alias without its anchor
    throw new SyntaxError((cause as Error).message, { cause });
  }
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
  const { indent = 2, lineWidth = 80 } = options;
  refuseInvalid(data, new Set());
  const document = new Document(data, { customTags });
  visit(document, {
    Scalar(_, scalar) {
      if (typeof scalar.value === "string" && AMBIGUOUS.test(scalar.value)) scalar.type = "QUOTE_SINGLE";
    },
  });
  return document.toString({ indent, lineWidth, singleQuote: true });
}

/** Throws for anything that YAML cannot hold; `above` are the objects around it. */
function refuseInvalid(data: unknown, above: Set<unknown>): void {
  if (typeof data === "function" || typeof data === "symbol") throw new TypeError(`Cannot stringify a ${typeof data}`);
  if (data === undefined) throw new TypeError("Cannot stringify undefined");
  if (typeof data !== "object" || data === null || above.has(data)) return;
  above.add(data);
  for (const each of Object.values(data)) refuseInvalid(each, above);
}
