import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { dirname } from "node:path";
import { commands } from "../../lib/cli/commands.ts";
import { VERSION } from "../../lib/version.ts";
import { workspace } from "../e2e/harness.ts";

interface Result {
  code: number;
  out: string;
  err: string;
}

/** Runs the program in a process of its own. */
async function metalora(...args: string[]): Promise<Result> {
  const permissions = ["read", "write", "env", "sys", "ffi"].map((name) => `--allow-${name}`);
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "--no-check", ...permissions, "main.ts", ...args],
    env: { NO_COLOR: "1" },
  }).output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code, out: text(stdout), err: text(stderr) };
}

Deno.test("--version prints one line", async () => {
  assertEquals(await metalora("--version"), { code: 0, out: `metalora ${VERSION}\n`, err: "" });
});

Deno.test("the task says nothing of its own for a user whose Deno has no cache yet", async () => {
  const cache = Deno.makeTempDirSync();
  try {
    const path = `${dirname(Deno.execPath())}:${Deno.env.get("PATH")}`;
    const env = {
      NO_COLOR: "1",
      PATH: path,
      DENO_DIR: cache,
      NPM_CONFIG_REGISTRY: "http://127.0.0.1:9",
      DENO_NO_UPDATE_CHECK: "1",
    };
    const { code, stderr } = await new Deno.Command(Deno.execPath(), { args: ["task", "--quiet", "metalora", "--version"], env })
      .output();
    assertEquals([code, new TextDecoder().decode(stderr)], [0, ""]);
  } finally {
    Deno.removeSync(cache, { recursive: true });
  }
});

Deno.test("--help lists every command with its summary within 80 columns", async () => {
  const { code, out, err } = await metalora("--help");
  assertEquals([code, err], [0, ""]);
  for (const { name, summary } of commands) assertMatch(out, new RegExp(`^    ${name} +${summary.slice(0, 20)}`, "m"));
  for (const line of out.split("\n")) assert(line.length <= 80, line);
});

const exitCodes = (help: string) =>
  Array.from(help.split("EXIT CODES")[1]!.matchAll(/^ {4}(\d+) /gm), ([, code]) => Number(code));

Deno.test("every command has a manual page within 80 columns", async () => {
  await Promise.all(commands.map(async ({ name, summary, load }) => {
    const { code, out, err } = await metalora(...name.split(" "), "--help");
    assertEquals([code, err], [0, ""]);
    const { command } = await load();
    assertEquals([command.name, command.summary], [name, summary]);
    const [heading, ...first] = out.split("\n\n")[0]!.split("\n");
    assertEquals([heading, first.map((line) => line.trim()).join(" ")], ["NAME", `metalora ${name} - ${summary}`]);
    assertMatch(out, new RegExp(`^SYNOPSIS\n    metalora ${name}`, "m"));
    const headings = out.match(/^[A-Z][A-Z ]+$/gm)!;
    assertEquals(headings.filter((each) => !["EXAMPLES", "FILES"].includes(each)), [
      "NAME",
      "SYNOPSIS",
      "DESCRIPTION",
      "OPTIONS",
      "EXIT CODES",
    ]);
    for (const line of out.split("\n")) {
      // A command line of an example is not broken, so that it can be copied.
      assert(line.length <= 80 || line.startsWith("    metalora "), line);
      assertEquals(line.trimEnd(), line);
    }
    for (const option of command.options) assertMatch(out, new RegExp(`^    --${option.name}`, "m"));
    assertEquals((await metalora("help", ...name.split(" "))).out, out);
    const codes = exitCodes(out);
    assertEquals(codes, [...new Set(codes)].sort((a, b) => a - b), out);
    const all = exitCodes((await metalora("--help")).out);
    assertEquals(codes.filter((code) => !all.includes(code)), [], "not in metalora --help");
  }));
});

Deno.test("a group of commands shows its commands", async () => {
  const { code, out } = await metalora("config", "--help");
  assertEquals(code, 0);
  assertMatch(out, /^NAME\n {4}metalora config - [^]*^COMMANDS\n {4}config init /m);
});

Deno.test("no command at all shows the help on stderr and is wrong usage", async () => {
  const { code, out, err } = await metalora();
  assertEquals([code, out], [2, ""]);
  assertStringIncludes(err, "SYNOPSIS\n    metalora COMMAND");
});

Deno.test("wrong usage is one line on stderr with the nearest name and exit code 2", async () => {
  const cases: [string[], string][] = [
    [["confg"], "Cannot run 'confg': there is no such command. Did you mean 'config'?"],
    [["previw", "x"], "Cannot run 'previw': there is no such command. Did you mean 'preview'?"],
    [["frobnicate"], "Cannot run 'frobnicate': there is no such command. See 'metalora --help'"],
    [["config"], "Cannot run 'config': a command is missing behind it. Commands: init, check, schema"],
    [["config", "chek"], "Cannot run 'config': there is no 'config chek'. Did you mean 'check'?"],
    [["--verbose"], "Cannot run metalora: there is no option '--verbose' in front of a command. See 'metalora --help'"],
    [
      ["config", "check"],
      "Cannot run 'config check': an argument is missing. Usage: metalora config check CONFIG [--set KEY=VALUE]… [--json]",
    ],
    [["config", "check", "a", "b"], "Cannot run 'config check': unexpected argument 'b'."],
    [["config", "check", "a", "--sett", "x=1"], "Cannot run 'config check': there is no option '--sett'. Did you mean '--set'?"],
    [["config", "check", "a", "-x"], "Cannot run 'config check': there is no option '-x'."],
    [["config", "check", "a", "--set"], "Cannot run 'config check': --set needs a value. Write --set=KEY=VALUE"],
    [["config", "check", "a", "--json=1"], "Cannot run 'config check': --json takes no value, found '--json=1'"],
    [["config", "check", "nowhere.yaml"], "Cannot read the configuration nowhere.yaml: there is no such file"],
  ];
  await Promise.all(cases.map(async ([args, message]) => {
    const { code, out, err } = await metalora(...args);
    assertEquals([code, out], [2, ""], args.join(" "));
    assert(err.startsWith(`metalora: ${message}`), `${args.join(" ")}: ${err}`);
    assertEquals(err.trimEnd().split("\n").length, 1, err);
  }));
});

Deno.test("--debug adds where an error arose", async () => {
  const { code, err } = await metalora("config", "check", "nowhere.yaml", "--debug");
  assertEquals(code, 2);
  assertStringIncludes(err, "metalora: Cannot read the configuration nowhere.yaml");
  assertMatch(err, /at .*load\.ts:\d+/);
});

Deno.test("config check prints the configuration that a run will use, and reads its own output", async () => {
  using space = workspace();
  const file = space.write("small.yaml", `model: ${space.file("model")}\noutput: o\ndata: { train: { path: train.jsonl } }\n`);
  const { code, out, err } = await metalora("config", "check", file, "--set", "train.steps=3", "--set", "seed=9");
  assertEquals([code, err], [0, ""]);
  assertMatch(out, /^seed: 9$/m);
  assertMatch(out, /^ {2}steps: 3$/m);
  space.write("small.yaml", out);
  assertEquals((await metalora("config", "check", file)).out, out);
  const json = JSON.parse((await metalora("config", "check", file, "--json")).out);
  assertEquals([json.ok, json.config.train.steps], [true, 3]);
});

Deno.test("config check names every file that is missing, with its place", async () => {
  using space = workspace();
  Deno.removeSync(space.file("model", "tokenizer.json"));
  Deno.removeSync(space.file("test.jsonl"));
  const file = space.file("run.yaml");
  const { code, out, err } = await metalora("config", "check", file, "--set", "data.validation.path=model");
  assertEquals(code, 2);
  assertMatch(out, /^model: /m);
  const model = space.file("model");
  assertEquals(err.trimEnd().split("\n"), [
    `metalora: ${file}:1:8: Cannot use model: ${model} has no tokenizer.json. Name the folder of a Hugging Face model`,
    `metalora: --set data.validation.path=model: Cannot use data.validation.path: ${model} is a folder. Name a file in it`,
    `metalora: ${file}:6:17: Cannot use data.test.path: there is no file test.jsonl. Correct the path`,
  ]);
  const json = JSON.parse((await metalora("config", "check", file, "--json")).out);
  assertEquals([json.ok, json.problems.length, json.config.output], [false, 2, "out"]);
});

Deno.test("config check prints every problem, a line each", async () => {
  const file = await Deno.makeTempFile({ suffix: ".yaml" });
  try {
    await Deno.writeTextFile(file, "model: m\noutput: o\nsed: 1\ndata: { train: { path: t } }\ntrain: { steps: 0 }\n");
    const { code, out, err } = await metalora("config", "check", file, "--json");
    assertEquals([code, err.trimEnd().split("\n").length], [2, 2]);
    assert(err.startsWith(`metalora: ${file}:3:1: Cannot use sed: unknown key. Did you mean 'seed'?\n`), err);
    assertEquals(JSON.parse(out).problems.length, 2);
  } finally {
    await Deno.remove(file);
  }
});

Deno.test("config schema prints JSON Schema", async () => {
  const { code, out } = await metalora("config", "schema");
  assertEquals(code, 0);
  assertEquals(JSON.parse(out).$schema, "https://json-schema.org/draft/2020-12/schema");
});

Deno.test("a reader that goes away ends the program quietly", async () => {
  const run = `"${Deno.execPath()}" run --quiet --no-check --allow-all main.ts config schema`;
  const { stdout, stderr } = await new Deno.Command("sh", { args: ["-c", `{ ${run}; echo "code $?" >&2; } | head -n 1`] })
    .output();
  assertEquals(new TextDecoder().decode(stdout), "{\n");
  assertEquals(new TextDecoder().decode(stderr), "code 0\n");
});
