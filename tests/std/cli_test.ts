import { assertEquals, assertThrows } from "@std/assert";
import { parseArgs } from "@std/cli";
import fc from "fast-check";

Deno.test("parseArgs() without options: flags, values, numbers, letters and the rest", () => {
  const cases: [string[], Record<string, unknown>][] = [
    [["--foo", "--bar=baz", "./quux.txt"], { foo: true, bar: "baz", _: ["./quux.txt"] }],
    [["--no-moo"], { "no-moo": true, _: [] }],
    [["-v", "a", "b"], { v: "a", _: ["b"] }],
    [["-abc"], { a: true, b: true, c: true, _: [] }],
    [["-n123", "-m", "456"], { n: 123, m: 456, _: [] }],
    [["-n=1", "-x=", "--y="], { n: 1, x: "", y: "", _: [] }],
    [["-a-b"], { a: "-b", _: [] }],
    [["--x", "1e-3", "0x10", "5."], { x: 1e-3, _: [16, 5] }],
    [["--a.b", "1", "--a.c", "2"], { a: { b: 1, c: 2 }, _: [] }],
    [["--", "--x", "1"], { _: ["--x", "1"] }],
    [["-"], { _: ["-"] }],
    [["--flag", "false"], { flag: "false", _: [] }],
    [["--x", "-1"], { x: true, "1": true, _: [] }],
    [["--x=line\nbreak"], { x: "line\nbreak", _: [] }],
    [["--x", "1", "--x", "2"], { x: 2, _: [] }],
  ];
  for (const [args, expected] of cases) assertEquals(parseArgs(args) as Record<string, unknown>, expected, args.join(" "));
});

Deno.test("parseArgs() with options: boolean, string, collect, default, alias, negatable, stopEarly, --", () => {
  assertEquals(parseArgs(["--a", "x"], { boolean: ["a", "b"] }), { a: true, b: false, _: ["x"] });
  assertEquals(parseArgs(["--a", "false", "--b=no"], { boolean: ["a", "b"] }), { a: false, b: true, _: [] });
  assertEquals(parseArgs(["--moo", "cow"], { boolean: true }) as Record<string, unknown>, { moo: true, _: ["cow"] });
  assertEquals(parseArgs(["--s", "--n", "007", "1"], { string: ["s", "n", "_"] }), { s: "", n: "007", _: ["1"] });
  assertEquals(parseArgs(["--x", "1", "--x=2"], { collect: ["x", "y"], string: ["x", "y"] }), { x: ["1", "2"], y: [], _: [] });
  assertEquals(parseArgs(["--d.e=1"], { default: { "d.e": 5, f: "g" } }) as Record<string, unknown>, {
    d: { e: 1 },
    f: "g",
    _: [],
  });
  assertEquals(parseArgs(["-f", "1"], { alias: { file: ["f", "F"] } }) as Record<string, unknown>, {
    f: 1,
    file: 1,
    F: 1,
    _: [],
  });
  assertEquals(parseArgs(["--no-c"], { boolean: ["c"], negatable: ["c"] }), { c: false, _: [] });
  assertEquals(parseArgs(["--a", "run", "--b"], { boolean: ["a"], stopEarly: true }), { a: true, _: ["run", "--b"] });
  assertEquals(parseArgs(["x", "--", "-y"], { "--": true }) as Record<string, unknown>, { _: ["x"], "--": ["-y"] });
  assertThrows(() => parseArgs([], { alias: { a: undefined as unknown as string } }), TypeError, "Alias value must be defined");
});

Deno.test("parseArgs() asks unknown() about everything that is not declared and leaves out what it refuses", () => {
  const seen: unknown[][] = [];
  const result = parseArgs(["--known", "--other", "1", "-z", "file"], {
    boolean: ["known", "z"],
    unknown: (...args) => {
      seen.push(args);
      return false;
    },
  });
  assertEquals(result, { known: true, z: true, _: [] });
  assertEquals(seen, [["--other", "other", "1"], ["file"]]);
});

Deno.test("parseArgs() never reaches the prototypes of objects", () => {
  const result = parseArgs(["--__proto__.polluted=1", "--constructor.prototype.polluted=1", "--a.__proto__.polluted=1"]);
  assertEquals(({} as Record<string, unknown>).polluted, undefined);
  assertEquals((result as Record<string, unknown>).polluted, undefined);
});

Deno.test("parseArgs() gives back every declared value unchanged (property)", () => {
  const value = fc.string().filter((text) => text !== "");
  fc.assert(fc.property(value, fc.array(value), (single, many) => {
    const args = [`--one=${single}`, ...many.map((each) => `--many=${each}`)];
    const result = parseArgs(args, { string: ["one", "many"], collect: ["many"] });
    assertEquals([result.one, result.many], [single, many]);
  }));
});
