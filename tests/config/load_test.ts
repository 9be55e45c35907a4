import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { UserError } from "../../lib/errors.ts";
import { allPaths } from "../../lib/config/problems.ts";
import { SYNONYMS } from "../../lib/config/synonyms.ts";
import { ConfigError, loadConfig, parseConfig } from "../../lib/config/load.ts";

const minimal = "model: m\noutput: o\ndata:\n  train: { path: t.jsonl }\n";

/** Problems of a configuration, as its reader sees them. */
function problems(text: string, sets: string[] = []): readonly string[] {
  return assertThrows(() => parseConfig(text, "run.yaml", sets), ConfigError).problems;
}

/** The single line of an error that is no list of problems. */
function failure(text: string, sets: string[] = []): string {
  const error = assertThrows(() => parseConfig(text, "run.yaml", sets), UserError);
  assertEquals(error.exitCode, 2);
  assert(!error.message.includes("\n"), error.message);
  return error.message;
}

Deno.test("parseConfig() fills every default of a minimal configuration", () => {
  const { config } = parseConfig(minimal, "run.yaml");
  assertEquals(config.data.train, {
    path: "t.jsonl",
    format: "alpaca",
    fields: { instruction: "instruction", input: "input", output: "output" },
    limit: null,
  });
  assertEquals(config.optimizer, {
    lr: 5e-4,
    betas: [0.9, 0.95],
    eps: 1e-8,
    weight_decay: 0,
    clip: 1,
    schedule: "cosine",
    warmup: 0,
    placement: "device",
  });
  assertEquals([config.train.steps, config.train.epochs, config.train.loss], [null, 1, "token-mean"]);
  assertEquals([config.adapter.rank, config.adapter.alpha, config.adapter.targets], [32, 32, "all-linear"]);
  assertEquals([config.data.template, config.data.validation, config.reweight.method], ["alpaca", null, "none"]);
});

Deno.test("defaults follow the keys that they depend on", () => {
  const validation = "  validation: { path: v.jsonl }\n";
  assertEquals(parseConfig(`${minimal}${validation}reweight: { method: meta-lora }`, "c").config.train.loss, "sample-mean");
  assertEquals(parseConfig(`${minimal}${validation}reweight: { method: mix }`, "c").config.train.loss, "token-mean");
  assertEquals(parseConfig(`${minimal}adapter: { rank: 8 }`, "c").config.adapter.alpha, 8);
  assertEquals(parseConfig(`${minimal}train: { steps: 5 }`, "c").config.train.epochs, null);
  const completion = parseConfig("model: m\noutput: o\ndata: { train: { path: t, format: prompt-completion } }", "c").config;
  assertEquals(completion.data.template, "none");
  assertEquals(completion.data.train.fields, { prompt: "prompt", completion: "completion" });
});

Deno.test("an unknown key is named with its line and column and the nearest known one", () => {
  assertEquals(problems(`${minimal}optimizer:\n  lr: 1e-3\n  shedule: linear\n`), [
    "run.yaml:7:3: Cannot use optimizer.shedule: unknown key. Did you mean 'schedule'?",
  ]);
  assertEquals(problems(`lr: 1e-3\n${minimal}`), ["run.yaml:1:1: Cannot use lr: unknown key. Did you mean 'optimizer.lr'?"]);
  const [line] = problems(`${minimal}checkpoints: { zzz: 1 }`);
  assertEquals(line, "run.yaml:5:16: Cannot use checkpoints.zzz: unknown key. Known keys here: every, keep");
});

Deno.test("wrong types and values out of range are named with what was expected and found", () => {
  const cases: [string, string][] = [
    ["seed: x", "run.yaml:5:7: Cannot use seed: expected a whole number, found 'x'"],
    ["seed: 1.5", "run.yaml:5:7: Cannot use seed: expected a whole number, found 1.5"],
    ["seed: -1", "run.yaml:5:7: Cannot use seed: expected a number of at least 0, found -1"],
    ["adapter: { rank: 0 }", "run.yaml:5:18: Cannot use adapter.rank: expected a number of at least 1, found 0"],
    ["adapter: { dropout: 0.1 }", "run.yaml:5:21: Cannot use adapter.dropout: expected 0: dropout is not supported, found 0.1"],
    ["adapter: { rslora: 1 }", "run.yaml:5:20: Cannot use adapter.rslora: expected true or false, found 1"],
    [
      "adapter: { targets: q_proj }",
      "run.yaml:5:21: Cannot use adapter.targets: expected 'all-linear' or a list of module names such as [q_proj, v_proj], found 'q_proj'",
    ],
    ["optimizer: { lr: 0 }", "run.yaml:5:18: Cannot use optimizer.lr: expected a number above 0, found 0"],
    ["optimizer: { lr: .nan }", "run.yaml:5:18: Cannot use optimizer.lr: expected a number, found NaN"],
    ["optimizer: { betas: [0.9, 1] }", "run.yaml:5:27: Cannot use optimizer.betas[1]: expected a number below 1, found 1"],
    ["optimizer: { betas: [0.9] }", "run.yaml:5:21: Cannot use optimizer.betas: expected a list of 2, found a list of 1"],
    [
      "reweight: { method: metalora }",
      "run.yaml:5:21: Cannot use reweight.method: expected one of none, mix, meta-lora, found 'metalora'. Did you mean 'meta-lora'?",
    ],
    [
      "status: [1]",
      "run.yaml:5:9: Cannot use status: expected keys and values, found a list of 1. Its keys: listen, token_file, samples, hosts",
    ],
    ["checkpoints: 3", "run.yaml:5:14: Cannot use checkpoints: expected keys and values, found 3. Its keys: every, keep"],
  ];
  for (const [text, expected] of cases) assertEquals(problems(minimal + text), [expected]);
});

Deno.test("a value that breaks two rules is one problem, and one of an earlier version is told what to write now", () => {
  assertEquals(problems(minimal, ["train.batch_size=1e30"]), [
    "--set train.batch_size=1e30: Cannot use train.batch_size: expected a number of at most 65536, found 1e+30",
  ]);
  assertEquals(problems(minimal, ["train.recompute=norms"]), [
    "--set train.recompute=norms: Cannot use train.recompute: expected one of auto, none, mlp, qkv, block, found 'norms'. " +
    "'norms' is of an earlier version: what it saved is never kept now, mlp is the next that saves memory",
  ]);
});

Deno.test("names that other trainers have for keys lead to ours, and a file alone to its path", () => {
  assertEquals(problems(`${minimal}train: { learning_rate: 1 }`), [
    "run.yaml:5:10: Cannot use train.learning_rate: unknown key. Did you mean 'optimizer.lr'?",
  ]);
  assertEquals(problems(minimal, ["data.test=test.jsonl"]), [
    "--set data.test=test.jsonl: Cannot use data.test: expected keys and values, found 'test.jsonl'. Write { path: test.jsonl }",
  ]);
  const paths = allPaths().map((path) => path.join("."));
  assertEquals(Object.values(SYNONYMS).filter((key) => !paths.includes(key)), []);
  assertEquals(Object.keys(SYNONYMS).filter((key) => paths.includes(key)), []);
});

Deno.test("a missing key is named with what it means", () => {
  assertEquals(problems("output: o\ndata: { train: { path: t } }"), [
    "run.yaml:1:1: Cannot use the configuration: model is missing. Add it (directory of a Hugging Face checkpoint)",
  ]);
  const [line] = problems("model: m\noutput: o\ndata:\n  train: { format: alpaca }\n");
  assertStringIncludes(line!, "run.yaml:4:3: Cannot use data.train: data.train.path is missing. Add it (file with the samples");
});

Deno.test("text that is no configuration is refused with its place", () => {
  assertEquals(
    failure(""),
    "run.yaml:1:1: Cannot read the configuration: the file is empty. At least model, output and data are needed",
  );
  assertEquals(failure("# only a comment\n"), failure(""));
  assertStringIncludes(failure("just text"), "run.yaml:1:1: Cannot read the configuration: expected keys and values");
  assertStringIncludes(failure("- a\n- b"), "run.yaml:1:1: Cannot read the configuration: expected keys and values");
  assertStringIncludes(failure("model: m\n  output: o\n"), "run.yaml:1:8: Cannot read the configuration: Nested mappings");
  assertStringIncludes(failure("model: [m\n"), "Cannot read the configuration: ");
  assertStringIncludes(failure("model: *nowhere\n"), "run.yaml:1:8: Cannot read the configuration: *nowhere refers to an anchor");
  assertStringIncludes(failure("model: m\n---\nmodel: n\n"), "a second document starts here");
});

Deno.test("a key that stands twice is told first, and hides nothing else that is wrong", () => {
  const twice = (place: string, key: string) =>
    `run.yaml:${place}: Cannot read the configuration: the key '${key}' stands here a second time. Keep one of the two`;
  assertEquals(problems(`${minimal}seed: 1\noptimizer: { lr: 1, lr: 2 }\ntrain: { steps: -1 }\nseed: 1\n`), [
    twice("6:21", "lr"),
    twice("8:1", "seed"),
    "run.yaml:7:17: Cannot use train.steps: expected a number of at least 1, found -1",
  ]);
  assertEquals(problems(`${minimal}seed: 1\nseed: 1\n`), [twice("6:1", "seed")]);
  // Of a value that is wrong the place is that of the key that counts, the last.
  assertEquals(problems(`${minimal}train: { steps: 5 }\ntrain: { steps: -1 }\n`), [
    twice("6:1", "train"),
    "run.yaml:6:17: Cannot use train.steps: expected a number of at least 1, found -1",
  ]);
});

Deno.test("several problems come in the order of the file, and the message counts them", () => {
  const text = `${minimal}seed: x\nadapter: { rank: 0 }\nbogus: 1\n`;
  assertEquals(problems(text).map((line) => line.split(": ")[0]), ["run.yaml:5:7", "run.yaml:6:18", "run.yaml:7:1"]);
  assert(failure(text).endsWith("found 'x' (and 2 more problems)"));
});

Deno.test("--set changes a key, makes groups on the way and reads its value as YAML", () => {
  const sets = [
    "train.steps=7",
    "optimizer.betas=[0.8, 0.9]",
    "data.validation.path=v.jsonl",
    "reweight.method=mix",
    "seed=3",
    "output=a=b",
  ];
  const { config } = parseConfig(minimal, "run.yaml", sets);
  assertEquals([config.train.steps, config.train.epochs, config.optimizer.betas], [7, null, [0.8, 0.9]]);
  assertEquals([config.data.validation?.path, config.reweight.method, config.seed, config.output], ["v.jsonl", "mix", 3, "a=b"]);
});

Deno.test("--set takes text as it stands, but for quotes around all of it; null is null only where a key may be null", () => {
  const cases: [given: string, taken: string][] = [
    ["a #b", "a #b"],
    ["2024", "2024"],
    ["1e3", "1e3"],
    ["true", "true"],
    ["null", "null"],
    ["~", "~"],
    ["a: b", "a: b"],
    ["[a", "[a"],
    ["'a b'", "a b"],
    ['"a\\tb"', "a\tb"],
    ['"a" b', '"a" b'],
    ['"a" # b', '"a" # b'],
    ["it's", "it's"],
    ["a=b", "a=b"],
  ];
  for (const [given, taken] of cases) {
    const { config } = parseConfig(minimal, "run.yaml", [`output=${given}`, `data.train.fields.output=${given}`]);
    assertEquals([config.output, config.data.train.fields], [taken, {
      instruction: "instruction",
      input: "input",
      output: taken,
    }]);
  }
  for (const empty of ["output=", "train.steps= ", "status.listen="]) {
    assertThrows(
      () => parseConfig(minimal, "run.yaml", [empty]),
      UserError,
      `--set ${empty}: Cannot set a key: the value is missing`,
    );
  }
  for (const nothing of ["null", "~"]) {
    const { config } = parseConfig(minimal, "run.yaml", [`status.listen=${nothing}`, `data.train.fields.input=${nothing}`]);
    assertEquals([config.status.listen, (config.data.train.fields as { input: unknown }).input], [null, null]);
  }
  const { config } = parseConfig(minimal, "run.yaml", [
    "status.listen=8080",
    "adapter.targets=[q_proj]",
    "train.memory=1 MiB # x",
  ]);
  assertEquals([config.status.listen, config.adapter.targets, config.train.memory], ["8080", ["q_proj"], 2 ** 20]);
});

Deno.test("loadConfig() takes ~/ for the home folder, in the file and behind --set", () => {
  const folder = Deno.makeTempDirSync();
  const home = Deno.env.get("HOME");
  try {
    Deno.env.set("HOME", folder);
    const file = `${folder}/run.yaml`;
    Deno.writeTextFileSync(file, "model: ~/m\noutput: o\ndata:\n  train: { path: ~/t.jsonl }\n");
    const { config } = loadConfig(file, ["output=~/o", "data.test={ path: ~x.jsonl }", "status.token_file=~/token"]);
    assertEquals(
      [config.model, config.output, config.data.train.path, config.data.test!.path, config.status.token_file],
      [`${folder}/m`, `${folder}/o`, `${folder}/t.jsonl`, "~x.jsonl", `${folder}/token`],
    );
  } finally {
    if (home === undefined) Deno.env.delete("HOME");
    else Deno.env.set("HOME", home);
    Deno.removeSync(folder, { recursive: true });
  }
});

Deno.test("--set train.steps replaces the epochs of the file, and the other way round", () => {
  assertEquals(parseConfig(`${minimal}train: { epochs: 2 }`, "c", ["train.steps=7"]).config.train.epochs, null);
  assertEquals(parseConfig(`${minimal}train: { steps: 2 }`, "c", ["train.epochs=1.5"]).config.train.steps, null);
});

Deno.test("errors in a --set name it instead of a line", () => {
  assertEquals(problems(minimal, ["train.stepz=3"]), [
    "--set train.stepz=3: Cannot use train.stepz: unknown key. Did you mean 'steps'?",
  ]);
  assertEquals(problems(minimal, ["adapter.rank=two"]), [
    "--set adapter.rank=two: Cannot use adapter.rank: expected a whole number, found 'two'",
  ]);
  assertStringIncludes(failure(minimal, ["train"]), "--set train: Cannot set a key: expected key.path=value");
  assertStringIncludes(failure(minimal, ["=3"]), "expected key.path=value");
  assertStringIncludes(failure(minimal, ["__proto__.polluted=1"]), "expected key.path=value");
  assertStringIncludes(failure(minimal, ["seed=[1"]), "--set seed=[1: Cannot set a key: the value is no YAML");
  assertStringIncludes(
    failure(minimal, ["model.x=1"]),
    "--set model.x=1: Cannot set model.x: a key on the way is no group of keys",
  );
  assertEquals(({} as Record<string, unknown>).polluted, undefined);
});

Deno.test("keys that contradict each other are refused", () => {
  const cases: [string, string][] = [
    ["train: { steps: 3, epochs: 1 }", "run.yaml:5:20: Cannot use train.epochs: train.steps is 3 already. Give one of the two"],
    ["reweight: { method: meta-lora }", "run.yaml:5:21: Cannot use reweight.method: 'meta-lora' needs validation samples."],
    [
      "train: { steps: 3 }\noptimizer: { warmup: 3 }",
      "run.yaml:6:22: Cannot use optimizer.warmup: a warm-up of 3 steps does not fit into a run of 3",
    ],
    [
      "optimizer: { warmup: 2.5 }",
      "Cannot use optimizer.warmup: expected a whole number of steps, or a share below 1, found 2.5",
    ],
  ];
  for (const [text, expected] of cases) assertStringIncludes(problems(minimal + text)[0]!, expected);
  const data = "model: m\noutput: o\ndata:\n  train: { path: t }\n";
  assertStringIncludes(
    problems(`${data}  validation: { path: v }\n  validation_split: 0.1\n`)[0]!,
    "run.yaml:6:3: Cannot use data.validation_split",
  );
  assertStringIncludes(
    problems(`${data}  validation_split: 1.5\n`)[0]!,
    "expected a whole number of rows, or a share below 1, found 1.5",
  );
  assertStringIncludes(
    problems("model: m\noutput: o\ndata: { train: { path: t, fields: { prompt: q } } }")[0]!,
    "run.yaml:3:37: Cannot use data.train.fields.prompt: the format 'alpaca' has no such field. Its fields: instruction, input, output",
  );
});

Deno.test("locate() tells where a value was set", () => {
  const { locate } = parseConfig(minimal, "run.yaml", ["seed=3"]);
  assertEquals(locate(["data", "train", "path"]), "run.yaml:4:18");
  assertEquals(locate(["seed"]), "--set seed=3");
  assertEquals(locate(["optimizer", "lr"]), "run.yaml:1:1");
});

Deno.test("loadConfig() finds files from the current directory first, then beside the configuration", () => {
  const folder = Deno.makeTempDirSync({ prefix: "config_" });
  try {
    Deno.mkdirSync(`${folder}/tiny`);
    Deno.writeTextFileSync(`${folder}/rows.jsonl`, "");
    Deno.writeTextFileSync(
      `${folder}/run.yaml`,
      "model: tiny\noutput: out\ndata: { train: { path: rows.jsonl }, test: { path: deno.json } }\n",
    );
    const { config } = loadConfig(`${folder}/run.yaml`);
    assertEquals([config.model, config.data.train.path], [`${folder}/tiny`, `${folder}/rows.jsonl`]);
    assertEquals([config.output, config.data.test?.path], ["out", "deno.json"]);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});

Deno.test("parseConfig() refuses what is nested too deeply", () => {
  const deep = "[".repeat(20_000);
  const reason = "it is nested too deeply. No key of a configuration is more than 5 levels deep";
  const { message } = assertThrows(() => parseConfig(deep, "run.yaml"), UserError);
  assertEquals(message.replace(/:1:\d+:/, ":1:1:"), `run.yaml:1:1: Cannot read the configuration: ${reason}`);
  assertThrows(() => parseConfig("model: m", "run.yaml", [`data=${deep}`]), UserError, `the value is no YAML: ${reason}`);
});

Deno.test("loadConfig() says why a file cannot be read", () => {
  const message = (path: string) => assertThrows(() => loadConfig(path), UserError).message;
  assertEquals(message("nowhere.yaml"), "Cannot read the configuration nowhere.yaml: there is no such file. Check the path");
  assertEquals(message("lib"), "Cannot read the configuration lib: it is a directory. Name the YAML file");
  const file = Deno.makeTempFileSync();
  try {
    Deno.writeFileSync(file, new Uint8Array([0x6d, 0xff, 0xfe]));
    assertEquals(message(file), `Cannot read the configuration ${file}: it is not UTF-8 text. Save it as UTF-8`);
  } finally {
    Deno.removeSync(file);
  }
});
