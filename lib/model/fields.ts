import { UserError } from "../errors.ts";

/** A JSON object read field by field; each missing or wrong one becomes one clear line. `null` counts as missing. */
export class Fields {
  private constructor(readonly path: string, readonly prefix: string, readonly values: Record<string, unknown>) {}

  /** @throws {UserError} When `value` is not an object. */
  static of(path: string, value: unknown, prefix: string = ""): Fields {
    if (typeof value !== "object" || value === null || Array.isArray(value)) {
      const what = prefix === "" ? "it" : prefix.slice(0, -1);
      throw new UserError(`Cannot read ${path}: ${what} is ${show(value)} instead of an object. Correct the file`, 2);
    }
    return new Fields(path, prefix, value as Record<string, unknown>);
  }

  has(key: string): boolean {
    return this.raw(key) !== undefined;
  }

  /** The value as it stands, undefined for null. */
  raw(key: string): unknown {
    return Object.hasOwn(this.values, key) ? this.values[key] ?? undefined : undefined;
  }

  string(key: string, fallback?: string): string {
    return this.#typed(key, "a string", (v): v is string => typeof v === "string", fallback);
  }

  strings(key: string, fallback?: string[]): string[] {
    const isStrings = (v: unknown): v is string[] => Array.isArray(v) && v.every((entry) => typeof entry === "string");
    return this.#typed(key, "a list of strings", isStrings, fallback);
  }

  number(key: string, fallback?: number): number {
    return this.#typed(key, "a finite number", (v): v is number => typeof v === "number" && Number.isFinite(v), fallback);
  }

  /** An integer above 0. */
  positive(key: string, fallback?: number): number {
    const isPositive = (v: unknown): v is number => typeof v === "number" && Number.isSafeInteger(v) && v > 0;
    return this.#typed(key, "an integer above 0", isPositive, fallback);
  }

  boolean(key: string, options: { default?: boolean } = {}): boolean {
    return this.#typed(key, "true or false", (v): v is boolean => typeof v === "boolean", options.default);
  }

  /** @throws {UserError} Always: what was found, then what to do. */
  refuse(what: string, advice: string): never {
    throw new UserError(`Cannot use ${this.path}: ${this.prefix}${what}. ${advice}`, 2);
  }

  #typed<T>(key: string, kind: string, accepts: (value: unknown) => value is T, fallback: T | undefined): T {
    const value = this.raw(key);
    if (value === undefined) return fallback ?? this.refuse(`${key} is missing`, `Give ${kind}`);
    return accepts(value) ? value : this.refuse(`${key} is ${show(value)}`, `Give ${kind}`);
  }
}

function show(value: unknown): string {
  if (value === undefined) return "missing";
  const text = JSON.stringify(value);
  return text.length > 60 ? `${text.slice(0, 57)}…` : text;
}
