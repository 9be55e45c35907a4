/**
 * The assertions of JSR's `@std/assert` that this project uses: same names, signatures, rules and errors.
 *
 * JSR cannot be reached from every host that builds metalora; to move there, point `@std/assert` in deno.json at
 * `jsr:@std/assert`. The difference shown by `assertEquals` is drawn by `node:assert` instead of the package's own painter.
 */
import { AssertionError as NodeAssertionError } from "node:assert/strict";
import { equal } from "./_equal.ts";

export { equal };

// deno-lint-ignore no-explicit-any
type Constructor<T> = abstract new (...args: any[]) => T;

/** What a failed assertion throws. */
export class AssertionError extends Error {
  /** @param message What was expected and what was found. */
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "AssertionError";
  }
}

function suffix(msg?: string): string {
  return msg ? `: ${msg}` : ".";
}

function show(value: unknown): string {
  return Deno.inspect(value, {
    depth: Infinity,
    iterableLimit: 200,
    strAbbreviateSize: 10_000,
    sorted: true,
    compact: false,
    trailingComma: true,
  });
}

/** Line by line difference; of long values only the beginnings and the first place where lists differ: a difference would take minutes. */
function difference(actual: unknown, expected: unknown): string {
  const [a, b] = [show(actual), show(expected)];
  const cut = /more (items|characters)/;
  if (a.length + b.length < 40_000 && !cut.test(a) && !cut.test(b)) {
    return new NodeAssertionError({ actual, expected, operator: "deepStrictEqual" }).message.replace(/^.*\n/, "");
  }
  let place = "";
  if (ArrayBuffer.isView(actual) || Array.isArray(actual)) {
    const [left, right] = [actual as ArrayLike<unknown>, expected as ArrayLike<unknown>];
    const at = Array.from(left).findIndex((value, i) => !equal(value, right[i]));
    place = at < 0
      ? `lengths ${left.length} and ${right.length}\n`
      : `first difference at [${at}]: ${show(left[at])} and ${show(right[at])}\n`;
  }
  return `${place}actual: ${a.slice(0, 2_000)}\nexpected: ${b.slice(0, 2_000)}`;
}

/** Asserts that the expression is truthy. */
export function assert(expr: unknown, msg = ""): asserts expr {
  if (!expr) throw new AssertionError(msg);
}

/** Asserts that the expression is falsy. */
export function assertFalse(expr: unknown, msg = ""): asserts expr is false | 0 | 0n | "" | null | undefined {
  if (expr) throw new AssertionError(msg);
}

/** Fails. */
export function fail(msg?: string): never {
  throw new AssertionError(`Failed assertion${suffix(msg)}`);
}

/** Asserts deep equality by value (0 equals -0, NaN equals NaN). */
export function assertEquals<T>(actual: T, expected: T, msg?: string): void {
  if (equal(actual, expected)) return;
  throw new AssertionError(`Values are not equal${suffix(msg)}\n${difference(actual, expected)}`);
}

/** Asserts that two values differ somewhere. */
export function assertNotEquals<T>(actual: T, expected: T, msg?: string): void {
  if (!equal(actual, expected)) return;
  throw new AssertionError(`Expected actual: ${show(actual)} not to be: ${show(expected)}${suffix(msg)}`);
}

/** Asserts `Object.is`. */
export function assertStrictEquals<T>(actual: unknown, expected: T, msg?: string): asserts actual is T {
  if (Object.is(actual, expected)) return;
  const [a, b] = [show(actual), show(expected)];
  throw new AssertionError(
    a === b
      ? `Values have the same structure but are not reference-equal${suffix(msg)}\n\n${a}\n`
      : `Values are not strictly equal${suffix(msg)}\n${difference(actual, expected)}`,
  );
}

/**
 * Asserts |expected - actual| <= tolerance.
 *
 * @param tolerance Absolute; 1e-7 of the expected value when omitted.
 */
export function assertAlmostEquals(actual: number, expected: number, tolerance?: number, msg?: string): void {
  if (Object.is(actual, expected)) return;
  const delta = Math.abs(expected - actual);
  const limit = tolerance ?? (isFinite(expected) ? Math.abs(expected * 1e-7) : 1e-7);
  if (delta <= limit) return;
  const f = (n: number) => Number.isInteger(n) ? n : n.toExponential();
  throw new AssertionError(
    `Expected actual: "${f(actual)}" to be close to "${f(expected)}": delta "${f(delta)}" is greater than "${f(limit)}"${
      suffix(msg)
    }`,
  );
}

/** Asserts that the value is neither null nor undefined. */
export function assertExists<T>(actual: T, msg?: string): asserts actual is NonNullable<T> {
  if (actual !== undefined && actual !== null) return;
  throw new AssertionError(`Expected actual: "${actual}" to not be null or undefined${suffix(msg)}`);
}

/** Asserts that the text contains another. */
export function assertStringIncludes(actual: string, expected: string, msg?: string): void {
  if (actual.includes(expected)) return;
  throw new AssertionError(`Expected actual: "${actual}" to contain: "${expected}"${suffix(msg)}`);
}

/** Asserts that the array has an equal to each of the expected elements. */
export function assertArrayIncludes<T>(actual: ArrayLike<T>, expected: ArrayLike<T>, msg?: string): void {
  const missing = Array.from(expected).filter((item) => !Array.from(actual).some((each) => equal(item, each)));
  if (missing.length === 0) return;
  throw new AssertionError(
    `Expected actual: "${show(actual)}" to include: "${show(expected)}"${suffix(msg)}\nmissing: ${show(missing)}`,
  );
}

/** Asserts that the text matches the pattern. */
export function assertMatch(actual: string, expected: RegExp, msg?: string): void {
  if (expected.test(actual)) return;
  throw new AssertionError(`Expected actual: "${actual}" to match: "${expected}"${suffix(msg)}`);
}

/** Asserts that the text does not match the pattern. */
export function assertNotMatch(actual: string, expected: RegExp, msg?: string): void {
  if (!expected.test(actual)) return;
  throw new AssertionError(`Expected actual: "${actual}" to not match: "${expected}"${suffix(msg)}`);
}

/** Asserts actual > expected. */
export function assertGreater<T>(actual: T, expected: T, msg?: string): void {
  if (!(actual > expected)) throw new AssertionError(msg ?? `Expect ${show(actual)} > ${show(expected)}`);
}

/** Asserts actual >= expected. */
export function assertGreaterOrEqual<T>(actual: T, expected: T, msg?: string): void {
  if (!(actual >= expected)) throw new AssertionError(msg ?? `Expect ${show(actual)} >= ${show(expected)}`);
}

/** Asserts actual < expected. */
export function assertLess<T>(actual: T, expected: T, msg?: string): void {
  if (!(actual < expected)) throw new AssertionError(msg ?? `Expect ${show(actual)} < ${show(expected)}`);
}

/** Asserts actual <= expected. */
export function assertLessOrEqual<T>(actual: T, expected: T, msg?: string): void {
  if (!(actual <= expected)) throw new AssertionError(msg ?? `Expect ${show(actual)} <= ${show(expected)}`);
}

/** Asserts that the value is an instance of the class. */
export function assertInstanceOf<T extends Constructor<unknown>>(
  actual: unknown,
  expectedType: T,
  msg = "",
): asserts actual is InstanceType<T> {
  if (actual instanceof expectedType) return;
  const wanted = expectedType.name;
  const found = actual === null
    ? "null"
    : actual === undefined
    ? "undefined"
    : typeof actual === "object"
    ? actual.constructor?.name ?? "Object"
    : typeof actual;
  const but = found === wanted ? "" : found === "function" ? " but was not an instanced object" : ` but was "${found}"`;
  throw new AssertionError(`Expected object to be an instance of "${wanted}"${but}${suffix(msg)}`);
}

/** Asserts that the value is an Error of the class whose message contains, or matches, `msgMatches`. */
export function assertIsError<E extends Error = Error>(
  error: unknown,
  ErrorClass?: Constructor<E>,
  msgMatches?: string | RegExp,
  msg?: string,
): asserts error is E {
  if (!(error instanceof Error)) throw new AssertionError(`Expected "error" to be an Error object${suffix(msg)}`);
  if (ErrorClass && !(error instanceof ErrorClass)) {
    throw new AssertionError(
      `Expected error to be instance of "${ErrorClass.name}", but was "${error.constructor?.name}"${suffix(msg)}`,
    );
  }
  if (!msgMatches) return;
  const text = stripColours(error.message);
  if (typeof msgMatches === "string" ? text.includes(stripColours(msgMatches)) : msgMatches.test(text)) return;
  const wanted = typeof msgMatches === "string" ? JSON.stringify(msgMatches) : String(msgMatches);
  throw new AssertionError(`Expected error message to include ${wanted}, but got ${JSON.stringify(error.message)}${suffix(msg)}`);
}

function stripColours(text: string): string {
  // deno-lint-ignore no-control-regex
  return text.replace(/\x1b\[[0-9;]*m/g, "");
}

/** The two call forms of assertThrows and assertRejects, told apart by the type of the second argument. */
function expectation<E extends Error>(
  classOrMsg: Constructor<E> | string | undefined,
  second: string | undefined,
  msg: string | undefined,
): { ErrorClass?: Constructor<E>; includes?: string | undefined; msg?: string | undefined } {
  if (typeof classOrMsg === "string") return { msg: classOrMsg };
  const isClass = classOrMsg === undefined || classOrMsg.prototype instanceof Error || classOrMsg.prototype === Error.prototype;
  if (!isClass) return { msg: second };
  return { ...(classOrMsg && { ErrorClass: classOrMsg }), includes: second, msg };
}

/** Asserts that the function throws; returns what it threw. */
export function assertThrows(fn: () => unknown, msg?: string): unknown;
/** Asserts that the function throws an Error of the class, with `msgIncludes` in its message; returns it. */
export function assertThrows<E extends Error = Error>(
  fn: () => unknown,
  ErrorClass: Constructor<E>,
  msgIncludes?: string,
  msg?: string,
): E;
export function assertThrows<E extends Error = Error>(
  fn: () => unknown,
  classOrMsg?: Constructor<E> | string,
  second?: string,
  third?: string,
): unknown {
  const { ErrorClass, includes, msg } = expectation(classOrMsg, second, third);
  let thrown: unknown;
  try {
    fn();
  } catch (error) {
    if (!ErrorClass) return error;
    if (!(error instanceof Error)) throw new AssertionError(`A non-Error object was thrown${suffix(msg)}`);
    thrown = error;
  }
  if (thrown === undefined) throw new AssertionError(`Expected function to throw${suffix(msg)}`);
  assertIsError(thrown, ErrorClass, includes, msg);
  return thrown;
}

/** Asserts that the promise which the function returns is rejected; returns the reason. */
export function assertRejects(fn: () => PromiseLike<unknown>, msg?: string): Promise<unknown>;
/** Asserts that it is rejected with an Error of the class, with `msgIncludes` in its message; returns it. */
export function assertRejects<E extends Error = Error>(
  fn: () => PromiseLike<unknown>,
  ErrorClass: Constructor<E>,
  msgIncludes?: string,
  msg?: string,
): Promise<E>;
export async function assertRejects<E extends Error = Error>(
  fn: () => PromiseLike<unknown>,
  classOrMsg?: Constructor<E> | string,
  second?: string,
  third?: string,
): Promise<unknown> {
  const { ErrorClass, includes, msg } = expectation(classOrMsg, second, third);
  const notRejecting = new AssertionError(`Function throws when expected to reject${suffix(msg)}`);
  let promise: PromiseLike<unknown>;
  try {
    promise = fn();
  } catch {
    throw notRejecting;
  }
  if (typeof promise?.then !== "function") throw notRejecting;
  try {
    await promise;
  } catch (error) {
    if (!ErrorClass) return error;
    if (!(error instanceof Error)) throw new AssertionError(`A non-Error object was rejected${suffix(msg)}`);
    assertIsError(error, ErrorClass, includes, msg);
    return error;
  }
  throw new AssertionError(`Expected function to reject${suffix(msg)}`);
}
