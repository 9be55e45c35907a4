import { assert, assertEquals, assertMatch, assertStringIncludes, assertThrows } from "@std/assert";
import fc from "fast-check";
import { sortPaths } from "../../lib/cli/config_init.ts";
import { parseConfig } from "../../lib/config/load.ts";
import { startingConfig, type StartingData } from "../../lib/config/start.ts";
import { UserError } from "../../lib/errors.ts";
import { workspace } from "../e2e/harness.ts";

Deno.test("config init writes a commented configuration that config check accepts and that trains", async () => {
  using space = workspace();
  const { out } = await space.ok("config", "init", "model", "train.jsonl", "validation.jsonl", "test.jsonl");
  assertEquals(out, "wrote metalora.yaml\nnext: metalora config check metalora.yaml\n");
  const text = space.read("metalora.yaml");
  for (const line of text.split("\n")) assert(/^$|^\w+:$|#/.test(line), `no comment: ${line}`);
  assert(!text.includes("FILL IN"));

  const { out: checked } = await space.ok("config", "check", "metalora.yaml", "--json");
  const { config } = JSON.parse(checked);
  assertEquals([config.model, config.output, config.reweight.method], ["model", "runs/metalora", "meta-lora"]);
  assertEquals(config.data.train.format, "prompt-completion");
  assertEquals([config.data.validation.path, config.data.test.path], ["validation.jsonl", "test.jsonl"]);
  assertEquals(config.data.max_length, 128); // what the model was made for
  await space.ok("train", "metalora.yaml", "--threads=1", "--set", "adapter.rank=2");
  assert(space.exists("runs/metalora/adapter/adapter_config.json"));
});

Deno.test("config init quotes the file of the next command for the shell, which then runs", async () => {
  using space = workspace();
  for (const [name, written] of [["plain.yaml", "plain.yaml"], ["it's my #1 run.yaml", `'it'\\''s my #1 run.yaml'`]] as const) {
    const { out } = await space.ok("config", "init", "model", "train.jsonl", "--output", name);
    assertEquals(out, `wrote ${name}\nnext: metalora config check ${written}\n`);
    const { stdout } = await new Deno.Command("sh", { args: ["-c", `printf %s ${written}`] }).output();
    assertEquals(new TextDecoder().decode(stdout), name);
  }
});

Deno.test("config init without paths marks what is to be filled in, and check points there", async () => {
  using space = workspace();
  const { out } = await space.ok("config", "init", "--output", "new.yaml");
  assertStringIncludes(out, "wrote new.yaml; its lines with FILL IN need your values");
  const { code, err } = await space.run("config", "check", "new.yaml");
  assertEquals(code, 2);
  const marked = space.read("new.yaml").split("\n").findIndex((line) => line.includes("FILL IN")) + 1;
  assertStringIncludes(err, `new.yaml:${marked}:8: Cannot use model: there is no folder path/to/model.`);
});

Deno.test("config init overwrites nothing, and says what is wrong with a path", async () => {
  using space = workspace();
  space.write("kept.yaml", "mine\n");
  const cases: [string[], RegExp][] = [
    [["--output", "kept.yaml"], /^metalora: Cannot write kept\.yaml: it is there already\. Choose another file/],
    [["--output", "no/such/folder.yaml"], /^metalora: Cannot write no\/such\/folder\.yaml: there is no folder no\/such\./],
    [["nothing.jsonl"], /^metalora: Cannot write a configuration: there is no nothing\.jsonl\./],
    [
      ["--output", "/proc/x.yaml"],
      /^metalora: Cannot write \/proc\/x\.yaml: programs may not write there\. Choose another file with --output/,
    ],
    [["kept.yaml"], /^metalora: .*kept\.yaml/],
  ];
  for (const [args, message] of cases) {
    const { code, out, err } = await space.run("config", "init", ...args);
    assertEquals([code, out], [args[1] === "/proc/x.yaml" ? 1 : 2, ""], args.join(" "));
    assertMatch(err, message);
    assertEquals(err.trimEnd().split("\n").length, 1, err);
  }
  assertEquals(space.read("kept.yaml"), "mine\n");
  assert(!space.exists("metalora.yaml"));
});

Deno.test("config init writes paths as seen from the file's own folder, quoted where YAML needs it", async () => {
  using space = workspace();
  Deno.mkdirSync(space.file("configs"));
  Deno.renameSync(space.file("train.jsonl"), space.file("train: #1.jsonl"));
  await space.ok("config", "init", "model", "train: #1.jsonl", "--output", "configs/one.yaml");
  const { out } = await space.ok("config", "check", "configs/one.yaml", "--json");
  const { config } = JSON.parse(out);
  assertEquals(
    [config.model, config.data.train.path],
    ["configs/../model", "configs/../train: #1.jsonl"].map((path) => path.replace("configs/../", "")),
  );
  assertEquals(config.reweight.method, "none");
});

Deno.test("config init writes a file that can be read, whatever the names are", async () => {
  const source = (path: string, prompt: string): StartingData => ({
    path,
    source: { path, limit: null, format: "prompt-completion", fields: { prompt, completion: "completion" } },
  });
  const piece = fc.constantFrom(
    "a",
    " ",
    "\n",
    "\r\n",
    "\t",
    ", ",
    "]",
    "}",
    "{",
    " #",
    ": ",
    "'",
    '"',
    "\\",
    "- ",
    "*",
    "&",
    "\u2028",
    "\x85",
  );
  const name = fc.oneof(
    fc.string({ minLength: 1, unit: "binary" }),
    fc.array(piece, { minLength: 1, maxLength: 60 }).map((pieces) => pieces.join("")),
    fc.constantFrom(
      "a\nb.jsonl",
      "yes",
      "0o17",
      "null",
      "1e3",
      "a:",
      "~",
      "\u3000",
      "\ufeffa\u00a0",
      "word ".repeat(60),
      `${"long/".repeat(40)}\n, b`,
    ),
  );
  fc.assert(fc.property(name, name, name, (model, path, field) => {
    const text = startingConfig({
      model,
      maxPositions: 64,
      train: source(path, field),
      validation: null,
      test: source(`${path}.test`, field),
      output: `runs/${path}`,
    });
    const { config } = parseConfig(text, "metalora.yaml");
    assertEquals(
      [config.model, config.output, config.data.train.path, config.data.test!.path, config.data.train.fields],
      [model, `runs/${path}`, path, `${path}.test`, { prompt: field, completion: "completion" }],
    );
  }));
  using space = workspace();
  Deno.renameSync(space.file("train.jsonl"), space.file("train\n[1], x.jsonl"));
  await space.ok("config", "init", "model", "train\n[1], x.jsonl");
  await space.ok("train", "metalora.yaml", "--threads=1", "--dry-run");
});

Deno.test("sortPaths() goes by names, then by order", () => {
  const folder = Deno.makeTempDirSync();
  try {
    const files = ["a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl", "my_train.jsonl", "dev.jsonl", "TEST.jsonl"].map((name) =>
      `${folder}/${name}`
    );
    for (const file of files) Deno.writeTextFileSync(file, "");
    const [a, b, c, d, train, dev, test] = files as [string, string, string, string, string, string, string];
    const none = { model: null, train: null, validation: null, test: null };
    assertEquals(sortPaths([]), none);
    assertEquals(sortPaths([a, folder, b, c]), { model: folder, train: a, validation: b, test: c });
    assertEquals(sortPaths([test, dev, train]), { ...none, train, validation: dev, test });
    assertEquals(sortPaths([dev, a]), { ...none, train: a, validation: dev });
    assertThrows(() => sortPaths([a, b, c, d]), UserError, `more than three data files, the last is ${d}`);
    assertThrows(() => sortPaths([folder, folder]), UserError, "are both folders");
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});
