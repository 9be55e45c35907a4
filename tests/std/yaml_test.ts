import { assertEquals, assertInstanceOf, assertThrows } from "@std/assert";
import { parse, stringify } from "@std/yaml";
import { parse as parse12 } from "yaml";
import fc from "fast-check";

Deno.test("parse() reads plain data, numbers as YAML 1.1 writes them, and timestamps", () => {
  const cases: [string, unknown][] = [
    ["", null],
    ["# nothing", null],
    ["a: 1\nb: [x, 2.5, true, ~]", { a: 1, b: ["x", 2.5, true, null] }],
    ["a: 5e-4", { a: 5e-4 }],
    ["a: 017", { a: 15 }],
    ["a: 0o17", { a: "0o17" }],
    ["a: 0b11", { a: 3 }],
    ["a: -0x1F", { a: -31 }],
    ["a: 1_000", { a: 1000 }],
    ["a: -.INF", { a: -Infinity }],
    ["a: .nan", { a: NaN }],
    ["a: yes", { a: "yes" }],
    ["a: 190:20:30", { a: "190:20:30" }],
    ["a: 2001-12-14", { a: new Date("2001-12-14") }],
    ["a: &x {q: 1}\nb: {<<: *x, r: 2}", { a: { q: 1 }, b: { q: 1, r: 2 } }],
    ["null: z", { null: "z" }],
    ["\uFEFFa: 1", { a: 1 }],
    ["a: |\n  x\n  y\n", { a: "x\ny\n" }],
  ];
  for (const [text, value] of cases) assertEquals(parse(text), value, JSON.stringify(text));
  assertInstanceOf((parse("a: 2001-12-14") as { a: unknown }).a, Date);
});

Deno.test("parse() refuses broken text, keys given twice, several documents and tags beyond plain data", () => {
  for (
    const text of ["a: [", "a: b: c", "a: 1\na: 2", "--- 1\n--- 2", "a: *no", "a: @x", "a: !own 1", "a: !!set {x}", "? [a]\n: b"]
  ) {
    assertThrows(() => parse(text), SyntaxError, undefined, text);
  }
  assertEquals(parse("a: 1\na: 2", { allowDuplicateKeys: true }), { a: 2 });
});

Deno.test("stringify() writes what parse() reads back, also for readers of YAML 1.2 (property)", () => {
  const awkward = fc.constantFrom(
    "yes",
    "n",
    "1",
    "0o17",
    "<<",
    "017",
    "1_0",
    "null",
    "~",
    "a: b",
    "x #y",
    "2001-01-01",
    "- a",
    "",
    " b",
    "c\n",
    ".5",
  );
  const data = fc.dictionary(fc.oneof(fc.string(), awkward), fc.oneof(fc.jsonValue(), awkward));
  fc.assert(fc.property(data, (value) => {
    const text = stringify(value);
    assertEquals(parse(text), value);
    assertEquals(parse12(text), value);
  }));
});

Deno.test("stringify() lays blocks out as the package does and refuses what YAML cannot hold", () => {
  assertEquals(
    stringify({ lr: 5e-4, betas: [0.9, 0.95], none: {}, name: "it's", truth: "yes" }),
    `\
lr: 0.0005
betas:
  - 0.9
  - 0.95
none: {}
name: it's
truth: 'yes'
`,
  );
  assertThrows(() => stringify({ a: () => 1 }), TypeError, "Cannot stringify a function");
  assertThrows(() => stringify(undefined), TypeError, "Cannot stringify undefined");
});
