/** Bad input of every kind and the line that it gets; bad_input_test.ts gives each to the real program. */
import { byteTokenizer, rows, RUN, type Tensor, type TinyOptions, type Workspace, writeTinyModel } from "./harness.ts";

export interface Case {
  /** What is wrong; part of the test's name. */
  name: string;
  /** Makes it wrong. */
  prepare?: (space: Workspace) => void;
  /** Arguments; `train run.yaml --threads=1 --set output=out/deep` and `sets` when left out. */
  args?: string[];
  sets?: string[];
  /** Largest file that can be written, in units of 512 bytes: stands in for a disk that is full. */
  fileLimit?: number;
  code: 1 | 2;
  /** What the line must say. */
  says: RegExp;
}

/** Replaces the model by a tiny one that differs. */
const model = (options: TinyOptions) => (space: Workspace) => writeTinyModel(space.file("model"), options);
const changed = (change: (tensors: Map<string, Tensor>) => void) => model({ change });
const edited = (path: string, change: (bytes: Uint8Array) => Uint8Array) => (space: Workspace) =>
  void space.write(path, change(Deno.readFileSync(space.file(path))));
const editedJson = (path: string, values: Record<string, unknown>) => (space: Workspace) =>
  void space.write(path, { ...space.json(path), ...values });
const removed = (path: string) => (space: Workspace) => Deno.removeSync(space.file(path));
const written = (path: string, content: string | object) => (space: Workspace) => void space.write(path, content);
const pipe = (path: string) => (space: Workspace) => void new Deno.Command("mkfifo", { args: [space.file(path)] }).outputSync();
const Q = "model.layers.1.self_attn.q_proj.weight";
const nan = (tensors: Map<string, Tensor>) => tensors.get(Q)!.values[3] = NaN;

export const configuration: Case[] = [
  {
    name: "a missing configuration",
    args: ["train", "nowhere.yaml"],
    code: 2,
    says: /^Cannot read the configuration nowhere\.yaml: there is no such file/,
  },
  {
    name: "an unknown key",
    prepare: written("run.yaml", RUN.replace("rank: 4", "rnak: 4")),
    code: 2,
    says: /^run\.yaml:8:12: Cannot use adapter\.rnak: unknown key\. Did you mean 'rank'\?/,
  },
  {
    name: "a wrong type",
    prepare: written("run.yaml", RUN.replace("steps: 4", "steps: many")),
    code: 2,
    says: /^run\.yaml:10:17: Cannot use train\.steps: expected a whole number, found 'many'/,
  },
  {
    name: "a wrong type in --set",
    sets: ["optimizer.lr=fast"],
    code: 2,
    says: /^--set optimizer\.lr=fast: Cannot use optimizer\.lr: expected a number, found 'fast'/,
  },
  {
    name: "an alias in --set whose anchor is nowhere",
    sets: ["seed=*a"],
    code: 2,
    says: /^--set seed=\*a: Cannot set a key: Unresolved alias .*: a\. Write the value itself/,
  },
  {
    name: "an alias in the file whose anchor is nowhere",
    prepare: written("run.yaml", RUN + "seed: *a\n"),
    code: 2,
    says: /^run\.yaml:13:7: Cannot read the configuration: \*a refers to an anchor \(&a\) that is not in the file above it/,
  },
  { name: "broken YAML", prepare: written("run.yaml", "model: [a\ndata: 3\n"), code: 2, says: /^run\.yaml:\d+:\d+: Cannot read/ },
  {
    name: "a key that contradicts a preset",
    sets: ["reweight={ preset: reference, weights: clip }"],
    code: 2,
    says: /Cannot use reweight\.weights: the preset 'reference' means shift, found clip\. Leave the key out/,
  },
  {
    name: "META-LORA without validation data",
    sets: ["reweight.method=meta-lora", "data.validation=null"],
    code: 2,
    says: /Cannot use reweight\.method: 'meta-lora' needs validation samples\. Add data\.validation/,
  },
  {
    name: "an adapter target that the model lacks",
    sets: ["adapter.targets=[q_prj]"],
    code: 2,
    says: /^Cannot use adapter\.targets: the model has no matrix 'q_prj'\. Did you mean 'q_proj'\?/,
  },
  {
    name: "a similarity over modules without adapters",
    sets: ["reweight={ method: meta-lora, modules: mlp }", "adapter.targets=[q_proj]"],
    code: 2,
    says: /^Cannot compare gradients: reweight\.modules is mlp, but adapter\.targets \["q_proj"\] has no matrix there\. Set/,
  },
  {
    name: "a warm-up longer than the epochs",
    sets: ["train={ epochs: 1 }", "optimizer.warmup=50"],
    code: 2,
    says: /^Cannot train: a warm-up of 50 steps does not fit into a run of 5\. Lower optimizer\.warmup/,
  },
  {
    name: "a device that there is not",
    args: ["train", "run.yaml", "--device=tpu"],
    code: 2,
    says: /^Cannot use --device tpu: expected cpu, cuda or cuda:N \(metalora doctor tells which there are\)$/,
  },
];

export const models: Case[] = [
  {
    name: "a missing model folder",
    sets: ["model=nowhere"],
    code: 2,
    says: /^Cannot load the model nowhere: there is no such folder\. Name the folder/,
  },
  {
    name: "a model that is the current folder",
    sets: ["model=."],
    code: 2,
    says: /^Cannot read \.\/config\.json: there is no such file\. Name the folder of a Hugging Face model$/,
  },
  {
    name: "a model folder without config.json",
    prepare: removed("model/config.json"),
    code: 2,
    says: /^Cannot read model\/config\.json: there is no such file/,
  },
  {
    name: "a model of another family",
    prepare: editedJson("model/config.json", { model_type: "gpt2" }),
    code: 2,
    says: /^Cannot use model\/config\.json: model_type is "gpt2"\. Supported: model_type "llama"/,
  },
  {
    name: "a model folder without weights",
    prepare: removed("model/model.safetensors"),
    code: 2,
    says: /^Cannot open the weights in model: it has neither model\.safetensors nor/,
  },
  {
    name: "weights that are a named pipe",
    prepare: (space) => {
      removed("model/model.safetensors")(space);
      pipe("model/model.safetensors")(space);
    },
    code: 2,
    says: /^Cannot read the model model: model\.safetensors is not a regular file\. Check the folder/,
  },
  ...["config.json", "tokenizer.json"].map((name): Case => ({
    name: `${name} that is a named pipe`,
    prepare: (space: Workspace) => {
      removed(`model/${name}`)(space);
      pipe(`model/${name}`)(space);
    },
    code: 2,
    says: new RegExp(`^Cannot read model/${name.replace(".", "\\.")}: it is not a regular file\\.`),
  })),
  ...["model/config.json", "model/tokenizer.json", "model/model.safetensors", "train.jsonl"].map((path): Case => ({
    name: `${path} that is a Git LFS pointer`,
    prepare: written(path, `version https://git-lfs.github.com/spec/v1\noid sha256:${"0".repeat(64)}\nsize 538090408\n`),
    code: 2,
    says: new RegExp(
      `^Cannot read ${path.replace(".", "\\.")}: it is a Git LFS pointer, .*\\. Run 'git lfs pull' in its folder$`,
    ),
  })),
  {
    name: "a truncated safetensors file",
    prepare: edited("model/model.safetensors", (bytes) => bytes.slice(0, -100)),
    code: 2,
    says:
      /^Cannot read model\/model\.safetensors: its tensors end at byte \d+, but the file ends at \d+ \(truncated\)\. .*download/,
  },
  {
    name: "a corrupted safetensors header",
    prepare: edited("model/model.safetensors", (bytes) => (bytes[8] = 0x5b, bytes)),
    code: 2,
    says: /^Cannot read model\/model\.safetensors: /,
  },
  {
    name: "a missing shard",
    prepare: (space) => {
      removed("model/model.safetensors")(space);
      model({ shards: 3 })(space);
      removed("model/model-00002-of-00003.safetensors")(space);
    },
    code: 2,
    says: /the shard model-00002-of-00003\.safetensors, which model\.safetensors\.index\.json names, is missing/,
  },
  {
    name: "a tensor of the wrong shape",
    prepare: changed((tensors) => tensors.get(Q)!.shape = [16, 64]),
    code: 2,
    says:
      /^Cannot load the tensor "model\.layers\.1\.self_attn\.q_proj\.weight": its shape in .*model\.safetensors is \[16,64\], but config\.json asks for \[32,32\]/,
  },
  {
    name: "a missing tensor",
    prepare: changed((tensors) => tensors.delete(Q)),
    code: 2,
    says: /^Cannot load the tensor "model\.layers\.1\.self_attn\.q_proj\.weight": none of the 19 tensors in model has that name/,
  },
  {
    name: "a folder without a tokenizer",
    prepare: removed("model/tokenizer.json"),
    code: 2,
    says: /^Cannot load the tokenizer in model: there is no tokenizer\.json/,
  },
  {
    name: "a tokenizer that does not fit the model",
    prepare: (space) => {
      const tokenizer = byteTokenizer();
      tokenizer.added_tokens.push({ ...tokenizer.added_tokens[3], id: 300, content: "<far>" });
      space.write("model/tokenizer.json", tokenizer);
    },
    code: 2,
    says:
      /^Cannot use the tokenizer in model: its largest id is 300 \("<far>"\), but the model has vocab_size 260\. Use the tokenizer that belongs/,
  },
  {
    name: "samples longer than the model's positions",
    prepare: model({ maxPositions: 16 }),
    code: 2,
    says:
      /^Cannot use train\.jsonl with model: its longest sample has \d+ tokens, the model was made for 16\. Set data\.max_length to at most that/,
  },
  {
    name: "samples longer than the model's positions, with the reference preset",
    sets: ["reweight={ preset: reference }"],
    code: 2,
    says:
      /^Cannot use train\.jsonl with model: its longest sample has \d+ tokens, the model was made for 128\. Leave out the preset/,
  },
  {
    name: "a model that no machine can hold",
    prepare: editedJson("model/config.json", { intermediate_size: 2 ** 29 }),
    code: 1,
    says: /^Cannot train: it takes \d+\.\d+ GiB of memory, and [\d.]+ [GM]iB is free\. Nothing near it fits/,
  },
  {
    name: "sizes that are no sizes",
    prepare: editedJson("model/config.json", { vocab_size: 2 ** 40 }),
    code: 2,
    says:
      /^Cannot use model\/config\.json: vocab_size is 1099511627776, the most that works is 2147483647\. Correct config\.json/,
  },
  {
    name: "more layers than anybody has made",
    prepare: editedJson("model/config.json", { num_hidden_layers: 100_000 }),
    code: 2,
    says: /^Cannot use model\/config\.json: num_hidden_layers is 100000, the most that works is 256/,
  },
  {
    name: "weights that are no numbers",
    prepare: changed(nan),
    code: 1,
    says: /^Cannot continue at step 1: the loss of the training sample row-\d+ is NaN\. .*check .*the model's weights/,
  },
  {
    name: "weights that are no numbers, with META-LORA",
    prepare: changed(nan),
    sets: ["reweight.method=meta-lora"],
    code: 1,
    says: /^Cannot continue at step 1: the loss of the validation sample row-\d+ is NaN/,
  },
  {
    name: "a learning rate that makes the loss NaN",
    sets: ["optimizer.lr=1e30", "train.steps=20"],
    code: 1,
    says:
      /^Cannot continue at step \d+: the loss of the training sample row-\d+ is (NaN|-?Infinity)\. Lower optimizer\.lr \(now 1e\+30\)/,
  },
];

export const data: Case[] = [
  {
    name: "a missing data file",
    sets: ["data.train.path=no.jsonl"],
    code: 2,
    says: /^Cannot read the data no\.jsonl: there is no such file\. Check the path/,
  },
  {
    name: "data below a file",
    sets: ["data.train.path=test.jsonl/no.jsonl"],
    code: 2,
    says: /^Cannot read the data test\.jsonl\/no\.jsonl: Not a directory \(os error 20\)\. Check the path$/,
  },
  {
    name: "data that come out of a named pipe",
    prepare: pipe("pipe.jsonl"),
    sets: ["data.train.path=pipe.jsonl"],
    code: 2,
    says: /^Cannot read the data pipe\.jsonl: it is not a regular file\. Write the data into one/,
  },
  {
    name: "an empty data file",
    prepare: written("train.jsonl", ""),
    code: 2,
    says: /^Cannot use the data train\.jsonl: it has no rows\. Give a file with at least one sample/,
  },
  {
    name: "an empty list of samples",
    prepare: written("train.jsonl", "[]"),
    code: 2,
    says: /^Cannot use the data train\.jsonl: it has no rows/,
  },
  {
    name: "an empty validation file",
    prepare: written("validation.jsonl", "\n\n"),
    code: 2,
    says: /^Cannot use the data validation\.jsonl: it has no rows/,
  },
  {
    name: "rows without the named fields",
    prepare: written("train.jsonl", [{ question: "a", answer: "b" }]),
    code: 2,
    says:
      /^train\.jsonl:1: Cannot use the row as prompt-completion: it has no field "prompt" \(it has: question, answer\)\. Set fields\.prompt/,
  },
  {
    name: "a field that is no text",
    prepare: written("train.jsonl", [...rows(0, 2), { prompt: "a", completion: 7 }]),
    code: 2,
    says: /^train\.jsonl:3: Cannot use the row as prompt-completion: its field "completion" is a number instead of text/,
  },
  {
    name: "a row that is no JSON",
    prepare: written("train.jsonl", `{"prompt": "a", "completion": "b"}\n{"prompt": "a" "completion"}\n`),
    code: 2,
    says: /^train\.jsonl:2:16: Cannot read the data: /,
  },
  {
    name: "data that is not UTF-8",
    prepare: (space) => void space.write("train.jsonl", new Uint8Array([0x7b, 0xff, 0xfe, 0x7d])),
    code: 2,
    says: /^train\.jsonl:1: Cannot read the data: it is not valid UTF-8/,
  },
  {
    name: "responses that are cut away entirely",
    sets: ["data.max_length=8"],
    code: 2,
    says:
      /^Cannot use the data train\.jsonl: none of its 20 rows is left \(20 response longer than max_length\)\. Raise data\.max_length \(now 8\)/,
  },
  {
    name: "training and validation data that overlap",
    prepare: written("validation.jsonl", [...rows(100, 2), ...rows(3, 1)]),
    code: 2,
    says:
      /^Cannot use train\.jsonl as training data: 1 of its 20 samples are in the validation data validation\.jsonl, too \(row-3\)\. Remove them, or set data\.on_overlap/,
  },
  {
    name: "training and test data that overlap",
    prepare: written("test.jsonl", rows(0, 5)),
    code: 2,
    says:
      /^Cannot use train\.jsonl as training data: 5 of its 20 samples are in the test data test\.jsonl, too \(row-0, row-1, row-2, …\)/,
  },
  {
    name: "an overlap that leaves nothing",
    prepare: written("validation.jsonl", rows(0, 20)),
    sets: ["data.on_overlap=drop"],
    code: 2,
    says: /20 of its 20 samples are in the validation data.*Nothing would be left: give other data/,
  },
  {
    name: "a validation split that takes everything",
    sets: ["data.validation=null", "data.validation_split=20"],
    code: 2,
    says:
      /^Cannot hold out 20 of train\.jsonl for validation: it has 20 samples, 20 of them different\. Set data\.validation_split/,
  },
  {
    name: "a validation split larger than the data",
    sets: ["data.validation=null", "data.validation_split=50"],
    code: 2,
    says: /^Cannot hold out 50 of train\.jsonl for validation: it has 20 samples/,
  },
];

export const outputs: Case[] = [
  {
    name: "an output below a file",
    sets: ["output=train.jsonl/out"],
    code: 2,
    says: /^Cannot use the output train\.jsonl\/out: it, or what it lies in, is no folder\. Choose another output$/,
  },
  {
    name: "an output that is a file",
    sets: ["output=train.jsonl"],
    code: 2,
    says: /^Cannot use the output train\.jsonl: it, or what it lies in, is no folder\. Choose another output$/,
  },
  {
    name: "an output whose configuration is a named pipe",
    prepare: (space) => {
      Deno.mkdirSync(space.file("own"));
      pipe("own/config.yaml")(space);
    },
    sets: ["output=own"],
    code: 2,
    says:
      /^Cannot use the output own: it holds 'config\.yaml', but no configuration that a run of metalora wrote\. Choose another/,
  },
  {
    name: "a disk that fills up while metrics are written",
    sets: ["train.steps=40"],
    fileLimit: 4,
    code: 1,
    says: /^Cannot write the output out\/deep: File too large.*\. Choose another output, or check .* the free space/,
  },
  {
    name: "a disk that fills up while the adapter is written",
    fileLimit: 16,
    code: 1,
    says: /^Cannot write the output out\/deep: File too large.*\. Choose another output, or check .* the free space/,
  },
];

export const other: Case[] = [
  {
    name: "eval: neither configuration nor model",
    args: ["eval", "--data", "test.jsonl"],
    code: 2,
    says: /^Cannot evaluate: give either a configuration or --model DIR/,
  },
  {
    name: "eval: a model without data",
    args: ["eval", "--model", "model"],
    code: 2,
    says: /^Cannot evaluate: --model needs --data FILE/,
  },
  {
    name: "eval: data whose format cannot be told",
    prepare: written("odd.jsonl", [{ question: "a", answer: "b" }]),
    args: ["eval", "--model", "model", "--data", "odd.jsonl"],
    code: 2,
    says:
      /^Cannot use the data odd\.jsonl: its first row has the fields question, answer\. Needed: instruction and output, or prompt and completion/,
  },
  {
    name: "eval: no adapter at that place",
    args: ["eval", "--model", "model", "--data", "test.jsonl", "--adapter", "nowhere"],
    code: 2,
    says:
      /^Cannot read the adapter nowhere\/adapter_config\.json: there is no such file\. Name a folder that holds a PEFT adapter/,
  },
  {
    name: "eval: an adapter whose configuration is a named pipe",
    prepare: (space) => {
      Deno.mkdirSync(space.file("adapter"));
      pipe("adapter/adapter_config.json")(space);
    },
    args: ["eval", "--model", "model", "--data", "test.jsonl", "--adapter", "adapter"],
    code: 2,
    says:
      /^Cannot read the adapter adapter\/adapter_config\.json: it is not a regular file\. Name a folder that holds a PEFT adapter/,
  },
  {
    name: "report: neither a folder nor a configuration",
    args: ["report", "nope"],
    code: 2,
    says:
      /^Cannot make a report of nope: there is no such folder or file\. Name the output folder of a run, or its configuration$/,
  },
  ...["config.yaml", "metrics.jsonl"].map((name): Case => ({
    name: `report: a folder whose ${name} is a named pipe`,
    prepare: (space) => {
      Deno.mkdirSync(space.file("own"));
      for (const each of ["config.yaml", "metrics.jsonl"]) {
        if (each === name) pipe(`own/${each}`)(space);
        else written(`own/${each}`, "")(space);
      }
    },
    args: ["report", "own"],
    code: 2,
    says: new RegExp(
      `^Cannot make a report of own: its ${name} is no regular file that can be read\\. Name the output folder of a run`,
    ),
  })),
  {
    name: "eval: an adapter whose weights are cut off",
    prepare: (space) => {
      copyAdapter(space);
      edited("adapter/adapter_model.safetensors", (bytes) => bytes.slice(0, 1000))(space);
    },
    args: ["eval", "--model", "model", "--data", "test.jsonl", "--adapter", "adapter"],
    code: 2,
    says: /^Cannot read adapter\/adapter_model\.safetensors: /,
  },
  {
    name: "eval: an adapter of another kind",
    prepare: (space) => {
      copyAdapter(space);
      editedJson("adapter/adapter_config.json", { use_dora: true })(space);
    },
    args: ["eval", "--model", "model", "--data", "test.jsonl", "--adapter", "adapter"],
    code: 2,
    says: /^Cannot use adapter\/adapter_config\.json: use_dora is true\. It is not supported/,
  },
  {
    name: "eval: an adapter of another model",
    prepare: (space) => {
      copyAdapter(space);
      editedJson("model/config.json", { num_hidden_layers: 1 })(space);
    },
    args: ["eval", "--model", "model", "--data", "test.jsonl", "--adapter", "adapter"],
    code: 2,
    says: /^Cannot use the adapter in adapter: the model has no matrix 'model\.layers\.1\..*Use the model it was trained on/,
  },
  {
    name: "eval: a longer sample than the model has positions",
    args: ["eval", "--model", "model", "--data", "test.jsonl", "--max-length", "1000"],
    code: 2,
    says: /--max-length.*128.*1000/,
  },
  {
    name: "eval: a file with longer samples than the model has positions",
    prepare: (space) => {
      model({ maxPositions: 64 })(space);
      written("long.jsonl", [{ prompt: "a".repeat(100), completion: " b" }])(space);
    },
    args: ["eval", "run.yaml", "--data", "long.jsonl", "--set", "data.max_length=512"],
    code: 2,
    says:
      /^Cannot use long\.jsonl with model: its longest sample has 104 tokens, the model was made for 64\. Set data\.max_length to at most that/,
  },
  {
    name: "eval: test data with longer samples than the model has positions",
    prepare: model({ maxPositions: 16 }),
    args: ["eval", "run.yaml"],
    code: 2,
    says:
      /^Cannot use test\.jsonl with model: its longest sample has \d+ tokens, the model was made for 16\. Set data\.max_length/,
  },
  {
    name: "eval: a length beside a configuration",
    args: ["eval", "run.yaml", "--max-length", "12"],
    code: 2,
    says: /^Cannot evaluate: --max-length goes with --model\. Give --set data\.max_length=N/,
  },
  {
    name: "eval: --set without a configuration",
    args: ["eval", "--model", "model", "--data", "test.jsonl", "--set", "seed=1"],
    code: 2,
    says: /^Cannot evaluate: --set goes with a configuration/,
  },
  {
    name: "score: no validation data",
    args: ["score", "run.yaml", "--set", "data.validation=null"],
    code: 2,
    says: /^Cannot score: the configuration has no validation data\. Set data\.validation/,
  },
  {
    name: "bench: an unknown shape",
    args: ["bench", "--model-shape", "smollm-135m"],
    code: 2,
    says: /^Cannot use the shape 'smollm-135m': .*Did you mean 'smollm2-135m'\?/,
  },
  {
    name: "bench: an unknown method",
    args: ["bench", "--method", "magic"],
    code: 2,
    says: /^Cannot use --method: expected none, mix or meta-lora, found 'magic'/,
  },
];

/** An adapter that fits the tiny model, made once by the test. */
let adapter: Workspace | undefined;

/** Sets or forgets the workspace whose `out/adapter` the cases use. */
export function useAdapterOf(space: Workspace | undefined): void {
  adapter = space;
}

function copyAdapter(space: Workspace): void {
  Deno.mkdirSync(space.file("adapter"));
  for (const name of ["adapter_config.json", "adapter_model.safetensors"]) {
    Deno.copyFileSync(adapter!.file("out/adapter", name), space.file("adapter", name));
  }
}
