/** HTML out of untrusted text. */

const ENTITIES: Readonly<Record<string, string>> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };

/** HTML that needs no further escaping. */
export class Html {
  constructor(readonly text: string) {}
}

/** Makes any text safe between tags and inside quoted attributes; control characters, which HTML forbids, become U+FFFD. */
export function escapeHtml(text: string): string {
  // deno-lint-ignore no-control-regex
  return text.replace(/[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]/g, "\ufffd").replace(/[&<>"']/g, (character) => ENTITIES[character]!);
}

type Value = string | number | Html | readonly Html[];

/**
 * A template whose values are escaped, unless they are HTML themselves: markup`<b>${name}</b>`. (Not named `html`: `deno fmt`
 * would put white space into those.)
 */
export function markup(strings: TemplateStringsArray, ...values: Value[]): Html {
  return new Html(strings.map((part, i) => i === 0 ? part : render(values[i - 1]!) + part).join(""));
}

function render(value: Value): string {
  if (value instanceof Html) return value.text;
  if (typeof value === "string" || typeof value === "number") return escapeHtml(String(value));
  return value.map(({ text }) => text).join("");
}
