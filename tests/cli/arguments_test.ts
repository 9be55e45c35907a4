import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../../lib/errors.ts";
import { Arguments, type Option } from "../../lib/cli/command.ts";
import { commandHelp, wrap } from "../../lib/cli/help.ts";
import fc from "fast-check";

const options: Option[] = [
  { name: "resume", description: "Go on" },
  { name: "set", value: "KEY=VALUE", repeat: true, description: "A key" },
  { name: "steps", value: "N", description: "Steps" },
];
const command = { name: "try", usage: "FILE [--steps N]", options, positional: [1, 2] as const };

Deno.test("Arguments gives flags, values, repeated values and positional arguments", () => {
  const args = new Arguments(command, ["a.yaml", "--set", "x=1", "--resume", "--set=y=-2", "12"]);
  assertEquals(args.positional, ["a.yaml", "12"]);
  assertEquals([args.flag("resume"), args.flag("debug"), args.value("steps")], [true, false, undefined]);
  assertEquals(args.values("set"), ["x=1", "y=-2"]);
  assertEquals(new Arguments(command, ["--", "--steps"]).positional, ["--steps"]);
});

Deno.test("Arguments refuses what the command does not know", () => {
  const refused = (args: string[], message: string) => {
    assertEquals(assertThrows(() => new Arguments(command, args), UserError, message).exitCode, 2);
  };
  refused(["a", "--step", "3"], "there is no option '--step'. Did you mean '--steps'?");
  refused(["a", "--wild=3"], "there is no option '--wild'. See 'metalora try --help'");
  refused(["a", "--steps"], "--steps needs a value. Write --steps=N");
  refused(["a", "--steps", "1", "--steps", "2"], "--steps is given 2 times");
  refused(["a", "--resume=yes"], "--resume takes no value, found '--resume=yes'");
  refused([], "an argument is missing. Usage: metalora try FILE [--steps N]");
  refused(["a", "b", "c"], "unexpected argument 'c'");
  assertEquals(new Arguments(command, ["-h"]).flag("help"), true);
  assertThrows(() => new Arguments(command, ["a"]).flag("resum"), TypeError, "does not declare it");
});

Deno.test("Arguments.number() checks range and form", () => {
  const number = (text: string, range = {}) => new Arguments(command, ["a", `--steps=${text}`]).number("steps", range);
  assertEquals([number("3"), number("1e-3"), number("-2")], [3, 1e-3, -2]);
  assertEquals(new Arguments(command, ["a", "--steps", "-1", "b"]).number("steps"), -1);
  assertEquals(new Arguments(command, ["--", "--steps", "-1"]).positional, ["--steps", "-1"]);
  assertEquals(new Arguments(command, ["a"]).number("steps"), undefined);
  const refused: [string, object, string][] = [
    ["x", {}, "Cannot use --steps: expected a number, found 'x'"],
    [" ", {}, "expected a number, found ' '"],
    ["1.5", { whole: true }, "expected a whole number, found '1.5'"],
    ["0", { min: 1, whole: true }, "expected a whole number of at least 1, found '0'"],
    ["9", { min: 1, max: 4 }, "expected a number of at least 1 and at most 4, found '9'"],
    ["Infinity", {}, "expected a number"],
  ];
  for (const [text, range, message] of refused) assertThrows(() => number(text, range), UserError, message);
});

Deno.test("wrap() keeps every word and the width (property)", () => {
  const words = fc.array(fc.stringMatching(/^\S{1,12}$/), { minLength: 1 });
  fc.assert(fc.property(words, fc.integer({ min: 12, max: 60 }), (list, width) => {
    const lines = wrap(list.join(" "), width);
    assertEquals(lines.join(" ").split(" "), list);
    assertEquals(lines.filter((line) => line.length > width), []);
  }));
});

Deno.test("commandHelp() aligns descriptions and wraps them within 80 columns", () => {
  const long = "word ".repeat(40).trim();
  const help = commandHelp({
    ...command,
    summary: "Tries",
    options: [{ name: "very-long-option", value: "SOME-VALUE", description: long }],
    run: () => 0,
  });
  const lines = help.split("\n");
  assertEquals(lines.slice(0, 3), ["NAME", "    metalora try - Tries", ""]);
  assertEquals(lines.filter((line) => line.length > 80), []);
  const columns = lines.filter((line) => line.includes("word")).map((line) => line.indexOf("word"));
  assertEquals(new Set(columns).size, 1);
});
