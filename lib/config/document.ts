/** A YAML file as a value together with the place of every key in it. */
import { isMap, isScalar, isSeq, LineCounter, parseDocument, visit } from "yaml";
import type { Node, Pair, YAMLError } from "yaml";
import { UserError } from "../errors.ts";

/** Keys and list positions from the top of the file down to a value. */
export type KeyPath = readonly (string | number)[];

/** A parsed YAML document. */
export interface ConfigDocument {
  /** Plain JavaScript value of the document. */
  readonly value: Record<string, unknown>;
  /** A line for every key that stands a second time in its group. */
  readonly repeated: readonly string[];
  /**
   * `file:line:column` of a value, of its key, or of the innermost part of the path that the file has.
   *
   * @param part The value itself, or the key in front of it.
   */
  locate(path: KeyPath, part?: "value" | "key"): string;
}

/**
 * What the YAML library has against a text, in one line.
 * @param advice What may help where it cannot be parsed.
 */
export function yamlReason({ code, message }: YAMLError, advice = ""): string {
  if (code === "RESOURCE_EXHAUSTION") return "it is nested too deeply. No key of a configuration is more than 5 levels deep";
  return message.replace(/\s+/g, " ") + advice;
}

/** The path as people write it: `data.train.path`, `optimizer.betas[1]`. */
export function pathText(path: KeyPath): string {
  return path.map((part) => typeof part === "number" ? `[${part}]` : `.${part}`).join("").replace(/^\./, "");
}

/**
 * Parses a configuration.
 *
 * @param text Contents of the file.
 * @param name Name of the file, put in front of every error.
 * @throws {UserError} `name:line:column: …` for text that is no YAML, is empty, or is no mapping at the top.
 */
export function parseConfigDocument(text: string, name: string): ConfigDocument {
  const lines = new LineCounter();
  const place = (offset: number) => {
    const { line, col } = lines.linePos(offset);
    return `${name}:${line || 1}:${col || 1}`;
  };
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false, uniqueKeys: true, merge: true });
  const line = (offset: number, what: string) => `${place(offset)}: Cannot read the configuration: ${what}`;
  const error = document.errors.find(({ code }) => code !== "DUPLICATE_KEY") ?? document.warnings[0];
  if (error !== undefined) {
    const what = error.code === "MULTIPLE_DOCS"
      ? "a second document starts here. Keep one configuration a file"
      : yamlReason(error, document.errors.length > 0 ? ". Check the colons, brackets and indentation there and above" : "");
    throw new UserError(line(error.pos[0], what), 2);
  }
  if (document.contents === null || (isScalar(document.contents) && document.contents.value === null)) {
    throw new UserError(
      `${name}:1:1: Cannot read the configuration: the file is empty. At least model, output and data are needed`,
      2,
    );
  }
  if (!isMap(document.contents)) {
    throw new UserError(line(document.contents.range![0], "expected keys and values, such as 'model: models/tiny'"), 2);
  }
  visit(document, {
    Alias(_, alias) {
      if (alias.resolve(document) !== undefined) return;
      const what = `*${alias.source} refers to an anchor (&${alias.source}) that is not in the file above it`;
      throw new UserError(line(alias.range![0], what), 2);
    },
  });
  let value: Record<string, unknown>;
  try {
    value = document.toJS({ maxAliasCount: 100 });
  } catch (cause) { // more aliases than a person writes
    throw new UserError(`${name}:1:1: Cannot read the configuration: ${(cause as Error).message}`, 2);
  }

  return {
    value,
    repeated: document.errors.map(({ pos: [offset] }) => line(offset, duplicate(text, offset))),
    locate(path, part = "value") {
      let node: unknown = document.contents;
      let offset = 0;
      for (const [depth, key] of path.entries()) {
        const last = depth === path.length - 1;
        if (isMap(node)) {
          const pair: Pair | undefined = node.items.findLast((item) =>
            String((item.key as { value?: unknown })?.value) === String(key)
          );
          if (pair === undefined) break;
          const at = (pair.key as Node).range![0];
          offset = last && part === "value" ? (pair.value as Node | null)?.range?.[0] ?? at : at;
          node = pair.value;
        } else if (isSeq(node)) {
          const item = node.items[Number(key)] as Node | undefined;
          if (item === undefined) break;
          offset = item.range![0];
          node = item;
        } else break;
      }
      return place(offset);
    },
  };
}

function duplicate(text: string, offset: number): string {
  const key = /^[^\s:]+/.exec(text.slice(offset))?.[0] ?? "a key";
  return `the key '${key}' stands here a second time. Keep one of the two`;
}
