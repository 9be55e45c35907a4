/** The deep comparison behind `assertEquals`: the rules of `equal` in JSR's `@std/assert`. */

// deno-lint-ignore no-explicit-any
type Keyed = Record<PropertyKey, any>;

/** Classes whose text form says everything about an instance. */
const TEXTUAL = new Set<object>([RegExp.prototype, URL.prototype, URLSearchParams.prototype, Intl.Locale.prototype]);
const typedArrayClass = Object.getPrototypeOf(Uint8Array) as typeof Uint8Array;

/** 0 equals -0 and NaN equals NaN. */
function same(a: unknown, b: unknown): boolean {
  return a === b || Object.is(a, b);
}

function isObject(value: unknown): value is object {
  return typeof value === "object" && value !== null;
}

/** An object without a prototype compares like a plain one. */
function prototypesAgree(a: object, b: object): boolean {
  return (Object.getPrototypeOf(a) ?? Object.prototype) === (Object.getPrototypeOf(b) ?? Object.prototype);
}

/** Own keys, and for instances of classes those of the classes, too: getters on a prototype count. */
function allKeys(value: object): PropertyKey[] {
  const keys: PropertyKey[] = [];
  for (
    let level: object | null = value;
    level !== null && level !== Object.prototype && level !== Array.prototype;
    level = Object.getPrototypeOf(level)
  ) keys.push(...Reflect.ownKeys(level));
  return keys;
}

function bytesOf(value: ArrayBufferLike): Uint8Array {
  return new Uint8Array(value);
}

function numbersEqual(a: ArrayLike<unknown>, b: ArrayLike<unknown>): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (!same(a[i], b[i])) return false;
  return true;
}

/**
 * Deep equality by value, as assertions use it.
 *
 * @throws {TypeError} When asked about a WeakMap or WeakSet, whose contents cannot be seen.
 */
export function equal(actual: unknown, expected: unknown): boolean {
  const underway = new Map<object, object>(); // pairs being compared further up: cycles

  function compare(a: unknown, b: unknown): boolean {
    if (same(a, b)) return true;
    if (!isObject(a) || !isObject(b)) return false;
    if (a instanceof Date && b instanceof Date) return Object.is(a.getTime(), b.getTime());
    if (!prototypesAgree(a, b)) return false;
    if (a instanceof typedArrayClass) return numbersEqual(a, b as Uint8Array);
    if (a instanceof ArrayBuffer || a instanceof SharedArrayBuffer) {
      return numbersEqual(bytesOf(a), bytesOf(b as ArrayBuffer));
    }
    if (a instanceof WeakMap) throw new TypeError("Cannot compare WeakMap instances");
    if (a instanceof WeakSet) throw new TypeError("Cannot compare WeakSet instances");
    if (a instanceof WeakRef) return compare(a.deref(), (b as WeakRef<WeakKey>).deref());
    if (underway.get(a) === b) return true;
    if (Object.keys(a).length !== Object.keys(b).length) return false;
    underway.set(a, b);
    if ((a instanceof Set && b instanceof Set) || (a instanceof Map && b instanceof Map)) return compareCollections(a, b);
    if (TEXTUAL.has(Object.getPrototypeOf(a))) return String(a) === String(b);
    return [...new Set([...allKeys(a), ...allKeys(b)])].every((key) =>
      key in a === key in b && compare((a as Keyed)[key], (b as Keyed)[key])
    );
  }

  /** Maps and sets: keys that are objects match by value. */
  function compareCollections(a: Set<unknown> | Map<unknown, unknown>, b: Set<unknown> | Map<unknown, unknown>): boolean {
    if (a.size !== b.size) return false;
    if (![...a.keys()].some((key) => isObject(key) || typeof key === "function")) {
      return [...a.keys()].every((key) =>
        b.has(key) && (!(a instanceof Map) || compare(a.get(key), (b as Map<unknown, unknown>).get(key)))
      );
    }
    const rest = [...b.entries()];
    return [...a.entries()].every(([key, value]) => rest.some((other) => compare(key, other[0]) && compare(value, other[1])));
  }

  return compare(actual, expected);
}
