/** Runs the real program in a process of its own, in a temporary folder, on a tiny Llama with random weights. */
import { assert, assertEquals } from "@std/assert";
import { join } from "node:path";
import { openSafetensors, type TensorData, writeSafetensors } from "../../lib/tensor/safetensors.ts";
import { toFloat32 } from "../../lib/tensor/dtypes.ts";

/** The project's root. */
export const ROOT = new URL("../../", import.meta.url).pathname;
const STORIES = join(ROOT, "../shared/models/stories260K");

/** A real model beside the project; tests that need it are skipped with a message otherwise. */
export const storiesModel: string | null = (() => {
  try {
    if (Deno.statSync(STORIES).isDirectory) return STORIES;
  } catch { // said below
  }
  console.log("skipped: ../shared/models/stories260K is not here");
  return null;
})();

/** What a process of the program did. */
export interface Result {
  code: number;
  out: string;
  err: string;
}

/** As in deno.json. */
const HEAP = "--v8-flags=--max-semi-space-size=1";
const PERMISSIONS = ["read", "write", "env", "sys", "ffi", "net", "run"].map((name) => `--allow-${name}`);

/** How the program is started: its output is kept, without colours. */
export const STREAMS = { env: { NO_COLOR: "1" }, stdin: "null", stdout: "piped", stderr: "piped" } as const;

/** Commands that take a device; the tests compare bits of the CPU, on machines with a GPU, too. */
const COMPUTING = ["train", "eval", "score", "bench"];

/** Arguments of Deno that run the program. */
export function programArguments(args: readonly string[], device: string | null = "cpu"): string[] {
  const computing = COMPUTING.includes(args[0]!) && !args.some((arg) => arg.startsWith("--device"));
  const chosen = computing && device !== null ? [`--device=${device}`] : [];
  return [
    "run",
    HEAP,
    "--quiet",
    "--no-check",
    `--config=${ROOT}deno.json`,
    ...PERMISSIONS,
    `${ROOT}main.ts`,
    ...args,
    ...chosen,
  ];
}

/**
 * The program with arguments, not started.
 * @param device What computes where the arguments do not say; null: the program chooses.
 */
export function command(
  args: readonly string[],
  cwd: string,
  env: Record<string, string> = {},
  device: string | null = "cpu",
): Deno.Command {
  const all = programArguments(args, device);
  return new Deno.Command(Deno.execPath(), { args: all, cwd, ...STREAMS, env: { ...STREAMS.env, ...env } });
}

/** What a process has left, as text. */
export function text({ code, stdout, stderr }: Deno.CommandOutput): Result {
  const decode = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code, out: decode(stdout), err: decode(stderr) };
}

/** A temporary folder with a tiny model and data in it; runs the program there. */
export class Workspace implements Disposable {
  readonly path = Deno.makeTempDirSync({ prefix: "metalora-e2e-" });

  file(...parts: string[]): string {
    return join(this.path, ...parts);
  }

  /** Writes a file; objects as JSON, lists of objects as JSONL. */
  write(name: string, content: string | Uint8Array | object): string {
    const path = this.file(name);
    if (content instanceof Uint8Array) Deno.writeFileSync(path, content);
    else if (typeof content === "string") Deno.writeTextFileSync(path, content);
    else if (Array.isArray(content)) Deno.writeTextFileSync(path, content.map((row) => JSON.stringify(row) + "\n").join(""));
    else Deno.writeTextFileSync(path, JSON.stringify(content));
    return path;
  }

  read(...parts: string[]): string {
    return Deno.readTextFileSync(this.file(...parts));
  }

  // deno-lint-ignore no-explicit-any
  json(...parts: string[]): any {
    return JSON.parse(this.read(...parts));
  }

  // deno-lint-ignore no-explicit-any
  jsonl(...parts: string[]): any[] {
    return this.read(...parts).trimEnd().split("\n").map((line) => JSON.parse(line));
  }

  exists(...parts: string[]): boolean {
    try {
      Deno.statSync(this.file(...parts));
      return true;
    } catch {
      return false;
    }
  }

  /** Every path below a folder, sorted; folders end in "/". */
  tree(folder: string): string[] {
    const walk = (dir: string): string[] =>
      [...Deno.readDirSync(this.file(dir))].flatMap(({ name, isDirectory }) =>
        isDirectory ? [`${name}/`, ...walk(join(dir, name)).map((below) => `${name}/${below}`)] : [name]
      );
    return this.exists(folder) ? walk(folder).sort() : [];
  }

  async run(...args: string[]): Promise<Result> {
    return text(await command(args, this.path).output());
  }

  /** Runs with files limited to `blocks` × 512 bytes; the write that goes beyond fails. */
  async runLimited(blocks: number, ...args: string[]): Promise<Result> {
    // Without the trap the system would end the process by a signal.
    const limited = ["-c", `trap "" XFSZ; ulimit -f ${blocks}; exec "$@"`, "sh", Deno.execPath(), ...programArguments(args)];
    return text(await new Deno.Command("sh", { args: limited, cwd: this.path, ...STREAMS }).output());
  }

  /** Runs and requires success. */
  async ok(...args: string[]): Promise<Result> {
    const result = await this.run(...args);
    assertEquals(result.code, 0, `${args.join(" ")}: ${result.err}`);
    return result;
  }

  /** Trains `run.yaml` (or the configuration given) with `key=value` settings; returns the final object of --json. */
  // deno-lint-ignore no-explicit-any
  async train(output: string, sets: readonly string[] = [], options: readonly string[] = ["--threads=1"]): Promise<any> {
    const settings = [`output=${output}`, ...sets].flatMap((set) => ["--set", set]);
    const { out } = await this.ok("train", "run.yaml", ...settings, ...options, "--json");
    return JSON.parse(out);
  }

  /** Names of a run's checkpoints. */
  checkpoints(output: string): string[] {
    if (!this.exists(output, "checkpoints")) return [];
    return Array.from(Deno.readDirSync(this.file(output, "checkpoints")), ({ name }) => name).filter((name) =>
      !name.startsWith(".")
    );
  }

  /** SHA-256 of a run's adapter weights. */
  adapterHash(output: string): Promise<string> {
    return sha256(Deno.readFileSync(this.file(output, "adapter", "adapter_model.safetensors")));
  }

  [Symbol.dispose](): void {
    Deno.removeSync(this.path, { recursive: true });
  }
}

export async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
}

/** Tensors of a file, widened to f32, by name. */
export function readTensors(path: string): Map<string, Float32Array<ArrayBuffer>> {
  using file = openSafetensors(path);
  return new Map([...file.tensors].map(([name, { dtype, bytes }]) => {
    const data = new Uint8Array(bytes);
    file.read(name, data);
    return [name, toFloat32(dtype, data)];
  }));
}

/** A workspace with `model/`, `train.jsonl` (20 rows), `validation.jsonl` (6), `test.jsonl` (5) and `run.yaml` (4 steps). */
export function workspace(): Workspace {
  const space = new Workspace();
  writeTinyModel(space.file("model"));
  space.write("train.jsonl", rows(0, 20));
  space.write("validation.jsonl", rows(100, 6));
  space.write("test.jsonl", rows(200, 5));
  space.write("run.yaml", RUN);
  return space;
}

/** A configuration with everything that most tests share. */
export const RUN = `model: model
output: out
data:
  train: { path: train.jsonl, format: prompt-completion }
  validation: { path: validation.jsonl, format: prompt-completion }
  test: { path: test.jsonl, format: prompt-completion }
  max_length: 64
adapter: { rank: 4 }
optimizer: { lr: 1e-2 }
train: { steps: 4, batch_size: 4, log_every: 1 }
reweight: { method: none, validation: { batch_size: 4, every: 2 } }
checkpoints: { every: 0 }
`;

const WORDS = ["red", "blue", "green", "white", "black", "grey", "pink"];

/** Rows of prompt and completion, different for different numbers. */
export function rows(first: number, count: number): { id: string; prompt: string; completion: string; source: string }[] {
  return Array.from({ length: count }, (_, i) => {
    const n = first + i, word = WORDS[n % WORDS.length]!;
    return { id: `row-${n}`, prompt: `${n}: say ${word}`, completion: ` ${word} ${n % 5}`, source: n % 2 ? "odd" : "even" };
  });
}

/** How a tiny model differs from the usual one. */
export interface TinyOptions {
  /** Type of the stored weights; the values are the same in all three. */
  dtype?: "F32" | "BF16" | "F16";
  /** Files that the weights are spread over, 1 without an index. */
  shards?: number;
  /** An output head of its own; it holds the same numbers as the embedding. */
  untied?: boolean;
  /** Biases of q, k, v and o: all of this value; null: there are none. */
  attentionBias?: number | null;
  maxPositions?: number;
  /** Changes the tensors before they are written. */
  change?: (tensors: Map<string, Tensor>) => void;
}

/** A tensor as values. */
export interface Tensor {
  shape: number[];
  values: Float32Array;
}

const D = 8, H = 4, K = 2, WIDTH = 32, MLP = 48, LAYERS = 2;
/** 256 bytes and four special tokens. */
const VOCABULARY = 260;

/**
 * Writes a Llama of 25,000 parameters with a tokenizer of single bytes. Its weights are multiples of 1/128 below 1, so that f32,
 * bf16 and f16 hold the very same numbers.
 */
export function writeTinyModel(
  dir: string,
  { dtype = "F32", shards = 1, untied = false, attentionBias = null, maxPositions = 128, change = () => {} }: TinyOptions = {},
): void {
  Deno.mkdirSync(dir, { recursive: true });
  const json = (name: string, value: unknown) => Deno.writeTextFileSync(join(dir, name), JSON.stringify(value));
  json("config.json", {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    hidden_size: WIDTH,
    intermediate_size: MLP,
    num_hidden_layers: LAYERS,
    num_attention_heads: H,
    num_key_value_heads: K,
    vocab_size: VOCABULARY,
    max_position_embeddings: maxPositions,
    rms_norm_eps: 1e-5,
    tie_word_embeddings: !untied,
    attention_bias: attentionBias !== null,
    bos_token_id: 257,
    eos_token_id: 258,
  });
  json("tokenizer.json", byteTokenizer());
  json("tokenizer_config.json", { bos_token: "<s>", eos_token: "</s>", pad_token: "<pad>" });
  const tensors = tinyTensors({ untied, attentionBias });
  change(tensors);
  const data = [...tensors].map(([name, { shape, values }]): TensorData => ({ name, dtype, shape, data: narrow(values, dtype) }));
  if (shards === 1) return writeSafetensors(join(dir, "model.safetensors"), data, { format: "pt" });
  const weight_map: Record<string, string> = {};
  for (let s = 0; s < shards; s++) {
    const file = `model-0000${s + 1}-of-0000${shards}.safetensors`;
    const part = data.filter((_, i) => i % shards === s);
    writeSafetensors(join(dir, file), part, { format: "pt" });
    for (const { name } of part) weight_map[name] = file;
  }
  const total_size = data.reduce((sum, tensor) => sum + tensor.data.length, 0);
  json("model.safetensors.index.json", { metadata: { total_size }, weight_map });
}

function tinyTensors({ untied, attentionBias }: { untied: boolean; attentionBias: number | null }): Map<string, Tensor> {
  let state = 12345;
  const random = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
  const tensors = new Map<string, Tensor>();
  const add = (name: string, shape: number[], value: () => number) => {
    const values = new Float32Array(shape.reduce((a, b) => a * b, 1)).map(value);
    tensors.set(name, { shape, values });
    return values;
  };
  const weight = () => Math.round(random() * 64 - 32) / 128;
  const norm = () => 1 - Math.round(random() * 16) / 128;
  const embedding = add("model.embed_tokens.weight", [VOCABULARY, WIDTH], weight);
  add("model.norm.weight", [WIDTH], norm);
  if (untied) tensors.set("lm_head.weight", { shape: [VOCABULARY, WIDTH], values: embedding });
  for (let l = 0; l < LAYERS; l++) {
    const at = `model.layers.${l}.`;
    add(`${at}input_layernorm.weight`, [WIDTH], norm);
    add(`${at}post_attention_layernorm.weight`, [WIDTH], norm);
    const attention = { q_proj: [H * D, WIDTH], k_proj: [K * D, WIDTH], v_proj: [K * D, WIDTH], o_proj: [WIDTH, H * D] };
    for (const [matrix, shape] of Object.entries(attention)) {
      add(`${at}self_attn.${matrix}.weight`, shape, weight);
      if (attentionBias !== null) {
        const values = new Float32Array(shape[0]!).fill(attentionBias);
        tensors.set(`${at}self_attn.${matrix}.bias`, { shape: [shape[0]!], values });
      }
    }
    const mlp = { gate_proj: [MLP, WIDTH], up_proj: [MLP, WIDTH], down_proj: [WIDTH, MLP] };
    for (const [matrix, shape] of Object.entries(mlp)) add(`${at}mlp.${matrix}.weight`, shape, weight);
  }
  return tensors;
}

/** Bytes of values that the type holds exactly. */
function narrow(values: Float32Array, dtype: "F32" | "BF16" | "F16"): Uint8Array {
  const bits = new Uint32Array(Float32Array.from(values).buffer);
  if (dtype === "F32") return new Uint8Array(bits.buffer);
  const half = dtype === "BF16" ? (u: number) => u >>> 16 : (u: number) => {
    const exponent = (u >>> 23 & 255) - 112; // biases: 127 of f32, 15 of f16
    return (u >>> 16 & 0x8000) | (exponent <= 0 ? 0 : exponent << 10 | u >>> 13 & 0x3ff);
  };
  const halves = Uint16Array.from(bits, half);
  const exact = toFloat32(dtype, new Uint8Array(halves.buffer));
  assert(values.every((value, i) => value === exact[i] || Number.isNaN(value)), `not every weight is a ${dtype} number`);
  return new Uint8Array(halves.buffer);
}

/** Every byte is a token, as GPT-2's byte-level BPE without merges; then <pad> 256, <s> 257, </s> 258, <unk> 259. */
// deno-lint-ignore no-explicit-any
export function byteTokenizer(): any {
  const special = ["<pad>", "<s>", "</s>", "<unk>"];
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
  const template = [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }];
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: special.map((content, i) => ({ id: 256 + i, content, ...flags })),
    normalizer: null,
    pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
    post_processor: {
      type: "TemplateProcessing",
      single: template,
      pair: [...template, { Sequence: { id: "B", type_id: 1 } }],
      special_tokens: { "<s>": { id: "<s>", ids: [257], tokens: ["<s>"] } },
    },
    decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: { type: "BPE", dropout: null, unk_token: null, vocab: byteVocabulary(), merges: [] },
  };
}

/** GPT-2's printable stand-ins of the 256 bytes: printable Latin-1 stands for itself, the others follow from U+0100 on. */
function byteVocabulary(): Record<string, number> {
  const vocabulary: Record<string, number> = {};
  let next = 256;
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    vocabulary[String.fromCodePoint(printable ? byte : next++)] = byte;
  }
  return vocabulary;
}

/** Runs tasks, a few at a time: a process has its own threads. */
export async function inTurns<T>(tasks: readonly (() => Promise<T>)[], width = 2): Promise<T[]> {
  const results: T[] = [];
  let next = 0;
  const worker = async () => {
    while (next < tasks.length) {
      const i = next++;
      results[i] = await tasks[i]!();
    }
  };
  await Promise.all(Array.from({ length: width }, worker));
  return results;
}

/** Makes sure that a checkpoint is as its manifest says. */
export async function requireWhole(space: Workspace, name: string, output = "out"): Promise<void> {
  const manifest: Record<string, { bytes: number; sha256: string }> = space.json(output, "checkpoints", name, "manifest.json");
  for (const [file, { sha256: hash }] of Object.entries(manifest)) {
    assertEquals(await sha256(Deno.readFileSync(space.file(output, "checkpoints", name, file))), hash);
  }
}
