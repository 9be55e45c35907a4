import {
  assert,
  assertAlmostEquals,
  assertArrayIncludes,
  assertEquals,
  AssertionError,
  assertIsError,
  assertNotEquals,
  assertRejects,
  assertStrictEquals,
  assertStringIncludes,
  assertThrows,
  equal,
} from "@std/assert";
import fc from "fast-check";

Deno.test("equal() compares by value: typed arrays, maps, sets, dates, patterns, errors", () => {
  class Point {
    constructor(readonly x: number) {}
  }
  const pairs: [unknown, unknown, boolean][] = [
    [0, -0, true],
    [NaN, NaN, true],
    [1, 1n, false],
    [[1, [2]], [1, [2]], true],
    [[1, undefined], [1], false],
    [{ a: undefined }, {}, false],
    [{ a: undefined }, { b: undefined }, false],
    [{ a: 1, b: 2 }, { b: 2, a: 1 }, true],
    [Object.assign(Object.create(null), { a: 1 }), { a: 1 }, true],
    [new Point(1), new Point(1), true],
    [new Point(1), { x: 1 }, false],
    [new Float32Array([0, NaN]), new Float32Array([-0, NaN]), true],
    [new Float32Array([1]), new Float64Array([1]), false],
    [new Uint8Array([1]).buffer, new Uint8Array([1]).buffer, true],
    [new Uint8Array([1]).buffer, new Uint8Array([2]).buffer, false],
    [new Map([[{ k: 1 }, "v"]]), new Map([[{ k: 1 }, "v"]]), true],
    [new Map([["k", { v: 1 }]]), new Map([["k", { v: 2 }]]), false],
    [new Set([1, 2]), new Set([2, 1]), true],
    [new Set([{ a: 1 }]), new Set([{ a: 2 }]), false],
    [new Date(5), new Date(5), true],
    [new Date(5), new Date(6), false],
    [/a/g, /a/g, true],
    [/a/g, /a/i, false],
    [new URL("http://a/b"), new URL("http://a/c"), false],
    [new Error("a"), new Error("b"), false],
    [null, undefined, false],
    [() => 1, () => 1, false],
  ];
  for (const [a, b, expected] of pairs) {
    assertStrictEquals(equal(a, b), expected, Deno.inspect([a, b]));
    assertStrictEquals(equal(b, a), expected, Deno.inspect([b, a]));
  }
  assertThrows(() => equal(new WeakMap(), new WeakMap()), TypeError, "Cannot compare WeakMap");
});

Deno.test("equal() ends on cyclic values", () => {
  const ring = (value: number) => {
    const a: Record<string, unknown> = { value };
    a.self = a;
    return a;
  };
  assert(equal(ring(1), ring(1)));
  assert(!equal(ring(1), ring(2)));
});

Deno.test("equal() holds for a deep copy and fails after any change of a leaf (property)", () => {
  fc.assert(fc.property(fc.jsonValue(), (value) => equal(value, structuredClone(value))));
  fc.assert(fc.property(fc.dictionary(fc.string(), fc.integer()), fc.string(), fc.integer(), (object, key, value) => {
    const changed = { ...object, [key]: value };
    return equal(object, changed) === (Object.hasOwn(object, key) && object[key] === value);
  }));
});

Deno.test("assertEquals() shows the difference and the message", () => {
  const error = assertThrows(() => assertEquals({ a: 1, b: [1, 2] }, { a: 1, b: [1, 3] }, "rows"), AssertionError);
  assertStringIncludes(error.message, "Values are not equal: rows");
  assertStringIncludes(error.message, "3");
  assertNotEquals([1], [2]);
  assertThrows(() => assertNotEquals([1], [1]), AssertionError);
});

Deno.test("assertEquals() stays quick on arrays of a million numbers", () => {
  const [a, b] = [new Float32Array(1e6), new Float32Array(1e6)];
  b[999_999] = 1;
  assertThrows(() => assertEquals(a, b), AssertionError, "first difference at [999999]: 0 and 1");
});

Deno.test("assertStrictEquals() tells a copy from the thing itself", () => {
  assertThrows(() => assertStrictEquals([1], [1]), AssertionError, "same structure but are not reference-equal");
  assertThrows(() => assertStrictEquals(0, -0), AssertionError, "not strictly equal");
});

Deno.test("assertAlmostEquals() uses 1e-7 of the expected value unless told", () => {
  assertAlmostEquals(1e8, 1e8 + 9);
  assertThrows(() => assertAlmostEquals(1e8, 1e8 + 11), AssertionError, "is greater than");
  assertAlmostEquals(0.01, 0.02, 0.1);
  assertThrows(() => assertAlmostEquals(0.01, 0.02, 0.001), AssertionError);
  assertThrows(() => assertAlmostEquals(NaN, 1, 5), AssertionError);
});

Deno.test("assertThrows() demands the class and the text, and returns the error", () => {
  const thrower = () => {
    throw new RangeError("offset 9 lies past the end");
  };
  assertStrictEquals(assertThrows(thrower, RangeError, "past the end").message, "offset 9 lies past the end");
  assertThrows(() => assertThrows(thrower, TypeError), AssertionError, 'be instance of "TypeError"');
  assertThrows(() => assertThrows(thrower, RangeError, "elsewhere"), AssertionError, 'include "elsewhere"');
  assertThrows(() => assertThrows(() => 1), AssertionError, "Expected function to throw.");
  assertThrows(() => assertThrows(() => 1, Error, "", "note"), AssertionError, "Expected function to throw: note");
  assertStrictEquals(
    assertThrows(() => {
      // deno-lint-ignore no-throw-literal
      throw "text";
    }),
    "text",
  );
});

Deno.test("assertRejects() demands a promise, its rejection, the class and the text", async () => {
  const failing = () => Promise.reject(new TypeError("no shape"));
  assertStrictEquals((await assertRejects(failing, TypeError, "shape")).message, "no shape");
  await assertRejects(() => assertRejects(failing, RangeError), AssertionError, "instance of");
  await assertRejects(() => assertRejects(() => Promise.resolve(1)), AssertionError, "Expected function to reject.");
  await assertRejects(
    () =>
      assertRejects(() => {
        throw new Error("at once");
      }),
    AssertionError,
    "throws when expected to reject",
  );
});

Deno.test("assertArrayIncludes(), assertIsError() and assertStringIncludes() name what is missing", () => {
  assertArrayIncludes([{ a: 1 }, { a: 2 }], [{ a: 2 }]);
  assertThrows(() => assertArrayIncludes([1, 2], [2, 3]), AssertionError, "missing: [\n  3,\n]");
  assertIsError(new Error("\x1b[31mred\x1b[0m"), Error, /^red$/);
  assertThrows(() => assertStringIncludes("abc", "x"), AssertionError, 'Expected actual: "abc" to contain: "x".');
});
