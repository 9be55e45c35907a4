import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { NumberLiteral, parseStrictJson, type StrictJson, StrictJsonError } from "../../lib/tensor/json.ts";

/** What JSON.parse would have made of it. */
function plain(value: StrictJson): unknown {
  if (value instanceof NumberLiteral) return Number(value.text);
  if (value instanceof Map) return Object.fromEntries([...value].map(([key, entry]) => [key, plain(entry)]));
  return Array.isArray(value) ? value.map(plain) : value;
}

Deno.test("parseStrictJson() agrees with JSON.parse on every JSON text", () => {
  const wellFormed = fc.json({ stringUnit: "grapheme" });
  fc.assert(fc.property(wellFormed, (text) => assertEquals(plain(parseStrictJson(text)), JSON.parse(text))), {
    seed: 1,
    numRuns: 500,
  });
});

Deno.test("parseStrictJson() refuses whatever JSON.parse refuses", () => {
  const alphabet = fc.constantFrom(...'{}[]:,"\\tfnu0129.eE+- \n\u0001a'.split(""), "true", "null", '"a"', "\\u00e9");
  const text = fc.array(alphabet, { maxLength: 12 }).map((parts) => parts.join(""));
  fc.assert(
    fc.property(text, (each) => {
      let valid = true;
      try {
        JSON.parse(each);
      } catch {
        valid = false;
      }
      if (!valid) assertThrows(() => parseStrictJson(each), StrictJsonError);
    }),
    { seed: 2, numRuns: 5000 },
  );
});

Deno.test("parseStrictJson() reports what JSON.parse hides", () => {
  const cases: [string, string, number][] = [
    ['{"a":1,"a":2}', 'the key "a" appears twice', 7],
    ['{"a":1,"\\u0061":2}', 'the key "a" appears twice', 7],
    ['["\\ud800"]', "a string has half of a surrogate pair", 1],
    ["[".repeat(40), "more than 32 nested levels", 32],
    ["[1,]", 'expected a value, found "]"', 3],
    ["[1] x", 'unexpected "x" after the end of the value', 4],
    ["", "expected a value, found the end", 0],
  ];
  for (const [text, message, offset] of cases) {
    const error = assertThrows(() => parseStrictJson(text), StrictJsonError, message);
    assertEquals(error.offset, offset, text);
  }
});

Deno.test("parseStrictJson() keeps numbers that are no plain safe integers apart", () => {
  const numbers = parseStrictJson("[9007199254740991, 9007199254740993, 1.0, 1e3, -0, -5]") as StrictJson[];
  assertEquals(numbers[0], 9007199254740991);
  assertEquals(numbers[5], -5);
  assertEquals(numbers.slice(1, 5).map((each) => (each as NumberLiteral).text), ["9007199254740993", "1.0", "1e3", "-0"]);
  assert(parseStrictJson('{"__proto__": 1}') instanceof Map);
});
