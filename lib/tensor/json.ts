/**
 * A strict JSON reader for file headers. `JSON.parse` hides three things a header must not hide: duplicate keys (the last
 * one wins), integers beyond 2^53 (rounded), and `1.0` or `1e3` where an integer is due. This one reports all of them.
 *
 * @module
 */

/** A number literal that is not a plain safe integer: `1.5`, `1e3`, `-0`, `18446744073709551616`. */
export class NumberLiteral {
  constructor(readonly text: string) {}
}

/** What {@linkcode parseStrictJson} returns; objects are maps, so that a key such as `__proto__` is only a key. */
export type StrictJson = null | boolean | string | number | NumberLiteral | StrictJson[] | Map<string, StrictJson>;

/** Where and why a text is not strict JSON. `offset` counts UTF-16 units from the start of the text. */
export class StrictJsonError extends Error {
  constructor(message: string, readonly offset: number) {
    super(message);
    this.name = "StrictJsonError";
  }
}

// A safetensors header nests three deep. The bound keeps a file of "[[[[…" from exhausting the stack.
const MAX_DEPTH = 32;
// Sticky: matches at lastIndex only. The grammar of RFC 8259 §6.
const NUMBER = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y;

/**
 * Parses `text` as one JSON value and refuses duplicate keys, lone surrogates and everything RFC 8259 refuses.
 *
 * @param text The whole text; white space around the value is allowed.
 * @returns The value; integers in the safe range as numbers, every other number as {@linkcode NumberLiteral}.
 * @throws {StrictJsonError} With the offset at which the text stops being valid.
 */
export function parseStrictJson(text: string): StrictJson {
  return new Parser(text).parse();
}

class Parser {
  #at = 0;

  constructor(readonly text: string) {}

  parse(): StrictJson {
    const value = this.#value(0);
    this.#space();
    if (this.#at < this.text.length) this.#fail(`unexpected ${this.#here()} after the end of the value`);
    return value;
  }

  #value(depth: number): StrictJson {
    this.#space();
    switch (this.text.charCodeAt(this.#at)) {
      case 0x7b: // {
        return this.#object(depth);
      case 0x5b: // [
        return this.#array(depth);
      case 0x22: // "
        return this.#string();
      case 0x74: // t
        return this.#word("true", true);
      case 0x66: // f
        return this.#word("false", false);
      case 0x6e: // n
        return this.#word("null", null);
      default:
        return this.#number();
    }
  }

  #object(depth: number): Map<string, StrictJson> {
    if (depth === MAX_DEPTH) this.#fail(`more than ${MAX_DEPTH} nested levels`);
    const result = new Map<string, StrictJson>();
    this.#at++;
    this.#space();
    if (this.#take("}")) return result;
    do {
      this.#space();
      if (this.text[this.#at] !== '"') this.#fail(`expected a key in quotes, found ${this.#here()}`);
      const start = this.#at;
      const key = this.#string();
      if (result.has(key)) throw new StrictJsonError(`the key ${quote(key)} appears twice`, start);
      this.#space();
      if (!this.#take(":")) this.#fail(`expected ':' after the key ${quote(key)}, found ${this.#here()}`);
      result.set(key, this.#value(depth + 1));
      this.#space();
    } while (this.#take(","));
    if (!this.#take("}")) this.#fail(`expected ',' or '}', found ${this.#here()}`);
    return result;
  }

  #array(depth: number): StrictJson[] {
    if (depth === MAX_DEPTH) this.#fail(`more than ${MAX_DEPTH} nested levels`);
    const result: StrictJson[] = [];
    this.#at++;
    this.#space();
    if (this.#take("]")) return result;
    do {
      result.push(this.#value(depth + 1));
      this.#space();
    } while (this.#take(","));
    if (!this.#take("]")) this.#fail(`expected ',' or ']', found ${this.#here()}`);
    return result;
  }

  #string(): string {
    const start = this.#at++;
    let escaped = false;
    for (;;) {
      const code = this.text.charCodeAt(this.#at);
      if (code === 0x22) break;
      if (Number.isNaN(code)) throw new StrictJsonError("a string has no closing quote", start);
      if (code < 0x20) this.#fail("a control character inside a string");
      if (code === 0x5c) {
        escaped = true;
        this.#at++;
      }
      this.#at++;
    }
    this.#at++;
    const raw = this.text.slice(start, this.#at);
    if (!escaped) return raw.slice(1, -1);
    let value: string;
    try {
      value = JSON.parse(raw);
    } catch {
      throw new StrictJsonError("a string has an invalid escape", start);
    }
    if (!value.isWellFormed()) throw new StrictJsonError("a string has half of a surrogate pair", start);
    return value;
  }

  #number(): number | NumberLiteral {
    NUMBER.lastIndex = this.#at;
    const literal = NUMBER.exec(this.text)?.[0];
    if (literal === undefined) this.#fail(`expected a value, found ${this.#here()}`);
    this.#at += literal.length;
    const value = Number(literal);
    return String(value) === literal && Number.isSafeInteger(value) ? value : new NumberLiteral(literal);
  }

  #word<T extends boolean | null>(word: string, value: T): T {
    if (!this.text.startsWith(word, this.#at)) this.#fail(`expected a value, found ${this.#here()}`);
    this.#at += word.length;
    return value;
  }

  #space(): void {
    for (;;) {
      const code = this.text.charCodeAt(this.#at);
      if (code !== 0x20 && code !== 0x0a && code !== 0x0d && code !== 0x09) return;
      this.#at++;
    }
  }

  #take(character: string): boolean {
    if (this.text[this.#at] !== character) return false;
    this.#at++;
    return true;
  }

  #here(): string {
    return this.#at < this.text.length ? quote(String.fromCodePoint(this.text.codePointAt(this.#at)!)) : "the end";
  }

  #fail(message: string): never {
    throw new StrictJsonError(message, this.#at);
  }
}

/** The text in double quotes, control characters escaped, at most 80 characters of it. */
export function quote(text: string): string {
  return JSON.stringify(text.length > 80 ? `${text.slice(0, 77)}…` : text);
}
