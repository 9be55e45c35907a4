/**
 * `config.json` of a Hugging Face model, read into the numbers that the model is built from.
 *
 * @module
 */

import { UserError } from "../errors.ts";
import { readRegularFile, refuseLfsPointer, unreadable, within } from "../files.ts";
import { Fields } from "./fields.ts";
import { readRopeScaling, type RopeScaling } from "./rope_config.ts";

export type { RopeScaling } from "./rope_config.ts";

/** What every family's architecture has. */
interface DecoderConfig {
  /** `model_type` as it stands in config.json. */
  readonly modelType: string;
  /** Model width. */
  readonly d: number;
  /** MLP width. */
  readonly f: number;
  /** Layers. */
  readonly L: number;
  /** Query heads. */
  readonly H: number;
  /** Key/value heads; H / K query heads share one. */
  readonly K: number;
  /** Head dimension, even. */
  readonly D: number;
  /** Vocabulary. */
  readonly V: number;
  /** Added to the mean square in RMSNorm, to the variance in LayerNorm. */
  readonly eps: number;
  /** Positions that the model was made for, or that its attention window spans if that is less. */
  readonly maxPositions: number;
  /** The output head is the embedding table. */
  readonly tied: boolean;
  /** q, k and v have biases. */
  readonly qkvBias: boolean;
  /** o has a bias. */
  readonly outputBias: boolean;
  /** The matrices of the MLP have biases. */
  readonly mlpBias: boolean;
  readonly bosId: number | null;
  /** Every id that ends a text; empty when config.json names none. */
  readonly eosIds: readonly number[];
  readonly padId: number | null;
  /** Element type that the weights are said to be stored in. */
  readonly dtype: "F32" | "BF16" | "F16" | null;
}

/** Architecture of a Llama-family model: RMSNorm, rotary positions, a gated MLP. */
export interface LlamaConfig extends DecoderConfig {
  readonly family: "llama";
  /** Base of the rotary frequencies. */
  readonly ropeTheta: number;
  readonly ropeScaling: RopeScaling;
}

/** Architecture of an OPT model: LayerNorm before each half of a block, learned positions, an MLP with ReLU. */
export interface OptConfig extends DecoderConfig {
  readonly family: "opt";
}

/** Architecture of a model. */
export type ModelConfig = LlamaConfig | OptConfig;

/** The architecture of each `model_type`. Mistral and Qwen2 compute what Llama does, but for biases, defaults and a window. */
const ARCHITECTURES: Readonly<Record<string, string>> = {
  llama: "LlamaForCausalLM",
  mistral: "MistralForCausalLM",
  qwen2: "Qwen2ForCausalLM",
  opt: "OPTForCausalLM",
};
const SUPPORTED = `Supported: ${
  Object.entries(ARCHITECTURES).map(([type, name]) => `model_type "${type}" (${name})`).join(", ")
}`;
const DTYPES: Record<string, "F32" | "BF16" | "F16"> = { float32: "F32", bfloat16: "BF16", float16: "F16" };

/**
 * Reads and checks `config.json`. Missing optional values get the defaults of transformers' configurations, except token
 * ids, which stay absent: the tokenizer knows them better.
 *
 * @param dir Folder of the model.
 * @throws {UserError} When the file is missing, the family is not supported, or a value is missing or wrong.
 */
export function loadModelConfig(dir: string): ModelConfig {
  const path = within(dir, "config.json");
  return parseModelConfig(path, readJson(path));
}

/** {@linkcode loadModelConfig} for a parsed config.json; `path` is for messages. */
export function parseModelConfig(path: string, json: unknown): ModelConfig {
  const fields = Fields.of(path, json);
  const modelType = fields.string("model_type");
  const architecture = ARCHITECTURES[modelType] ?? "";
  if (architecture === "") fields.refuse(`model_type is ${JSON.stringify(modelType)}`, SUPPORTED);
  const architectures = fields.strings("architectures", [architecture]);
  if (!architectures.includes(architecture)) {
    fields.refuse(`architectures is ${JSON.stringify(architectures)}`, SUPPORTED);
  }
  if (fields.has("quantization_config")) {
    fields.refuse("quantization_config is set", "Quantised weights cannot be trained here; use the original checkpoint");
  }
  if (fields.number("attention_dropout", 0) !== 0) {
    fields.refuse(
      `attention_dropout is ${fields.number("attention_dropout", 0)}`,
      "Dropout inside attention is not supported; set it to 0",
    );
  }
  return modelType === "opt" ? parseOpt(fields) : parseLlama(fields, modelType);
}

function parseLlama(fields: Fields, modelType: string): LlamaConfig {
  const activation = fields.string("hidden_act", "silu");
  if (activation !== "silu") fields.refuse(`hidden_act is ${JSON.stringify(activation)}`, 'Only "silu" is supported');
  const d = fields.positive("hidden_size");
  const H = fields.positive("num_attention_heads");
  const K = fields.positive("num_key_value_heads", modelType === "mistral" ? 8 : H);
  if (H % K !== 0) {
    fields.refuse(`num_key_value_heads is ${K}, which does not divide num_attention_heads = ${H}`, "Correct config.json");
  }
  if (!fields.has("head_dim") && d % H !== 0) {
    fields.refuse(
      `hidden_size is ${d}, which num_attention_heads = ${H} does not divide`,
      "Correct config.json or give head_dim",
    );
  }
  const D = fields.positive("head_dim", d / H);
  if (D % 2 !== 0) fields.refuse(`head_dim is ${D}, but rotary positions need an even one`, "Correct config.json");
  const maxPositions = Math.min(
    fields.positive("max_position_embeddings", { llama: 2048, mistral: 4096 * 32, qwen2: 32768 }[modelType]!),
    attentionWindow(fields, modelType),
  );
  const eps = fields.number("rms_norm_eps", 1e-6);
  if (!(eps > 0 && eps < 1)) fields.refuse(`rms_norm_eps is ${eps}, which does not lie between 0 and 1`, "Correct config.json");
  const V = fields.positive("vocab_size");
  const { theta, scaling } = readRopeScaling(fields, { maxPositions, D });

  return {
    family: "llama",
    modelType,
    d,
    f: fields.positive("intermediate_size"),
    L: fields.positive("num_hidden_layers"),
    H,
    K,
    D,
    V,
    eps,
    ropeTheta: theta,
    ropeScaling: scaling,
    maxPositions,
    tied: fields.boolean("tie_word_embeddings", { default: false }),
    qkvBias: modelType === "qwen2" || (modelType === "llama" && fields.boolean("attention_bias", { default: false })),
    outputBias: modelType === "llama" && fields.boolean("attention_bias", { default: false }),
    mlpBias: modelType === "llama" && fields.boolean("mlp_bias", { default: false }),
    ...tokens(fields, V),
    dtype: readDtype(fields),
  };
}

/** Settings of OPT that would make it another model, with the only value that is computed here. opt-350m has three of them. */
const OPT_ONLY = {
  do_layer_norm_before: true,
  _remove_final_layer_norm: false,
  enable_bias: true,
  layer_norm_elementwise_affine: true,
};

/** LayerNorm's eps in OPT, which config.json does not tell: that of torch.nn.LayerNorm. */
const OPT_EPS = 1e-5;

function parseOpt(fields: Fields): OptConfig {
  for (const [key, only] of Object.entries(OPT_ONLY)) {
    const found = fields.boolean(key, { default: only });
    if (found !== only) fields.refuse(`${key} is ${found}`, `Only ${only} is supported for OPT (opt-350m is not)`);
  }
  const activation = fields.string("activation_function", "relu");
  if (activation !== "relu") {
    fields.refuse(`activation_function is ${JSON.stringify(activation)}`, 'Only "relu" is supported for OPT');
  }
  const d = fields.positive("hidden_size"), H = fields.positive("num_attention_heads"), V = fields.positive("vocab_size");
  const projected = fields.positive("word_embed_proj_dim", d);
  if (projected !== d) {
    fields.refuse(
      `word_embed_proj_dim is ${projected}, not hidden_size = ${d}`,
      "Embeddings of another width are not supported for OPT (opt-350m is not)",
    );
  }
  if (d % H !== 0) {
    fields.refuse(`hidden_size is ${d}, which num_attention_heads = ${H} does not divide`, "Correct config.json");
  }
  if (d / H % 2 !== 0) {
    fields.refuse(`hidden_size is ${d} and num_attention_heads ${H}, which makes heads of an odd size`, "Correct config.json");
  }
  return {
    family: "opt",
    modelType: "opt",
    d,
    f: fields.positive("ffn_dim"),
    L: fields.positive("num_hidden_layers"),
    H,
    K: H,
    D: d / H,
    V,
    eps: OPT_EPS,
    maxPositions: fields.positive("max_position_embeddings", 2048),
    tied: fields.boolean("tie_word_embeddings", { default: true }),
    qkvBias: true,
    outputBias: true,
    mlpBias: true,
    ...tokens(fields, V),
    dtype: readDtype(fields),
  };
}

function tokens(fields: Fields, V: number): Pick<DecoderConfig, "bosId" | "eosIds" | "padId"> {
  return {
    bosId: tokenIds(fields, "bos_token_id", V)[0] ?? null,
    eosIds: tokenIds(fields, "eos_token_id", V),
    padId: padId(fields, V),
  };
}

/** Tokens that a query sees at most: Mistral's sliding window. Within it, attention is the ordinary causal one. */
function attentionWindow(fields: Fields, modelType: string): number {
  if (modelType === "mistral" && fields.has("sliding_window")) return fields.positive("sliding_window");
  if (modelType === "qwen2" && fields.boolean("use_sliding_window", { default: false })) {
    fields.refuse("use_sliding_window is true", "Windows in some of the layers are not supported");
  }
  return Infinity;
}

/** An id, a list of ids, null or nothing. */
function tokenIds(fields: Fields, key: string, V: number): number[] {
  const value = fields.raw(key) ?? [];
  const ids: unknown[] = Array.isArray(value) ? value : [value];
  for (const id of ids) {
    if (typeof id !== "number" || !Number.isInteger(id) || id < 0 || id >= V) {
      fields.refuse(`${key} has ${JSON.stringify(id)}, which is no id below vocab_size = ${V}`, "Correct config.json");
    }
  }
  return ids as number[];
}

/** Llama's first checkpoints say -1 for "none", and others the size of the vocabulary: padding is never computed here. */
function padId(fields: Fields, V: number): number | null {
  const id = fields.raw("pad_token_id") ?? null;
  if (id !== null && (typeof id !== "number" || !Number.isInteger(id))) {
    fields.refuse(`pad_token_id is ${JSON.stringify(id)} instead of an integer`, "Correct config.json");
  }
  return id !== null && id >= 0 && id < V ? id : null;
}

/** transformers 5 writes `dtype`, earlier versions `torch_dtype`. */
function readDtype(fields: Fields): ModelConfig["dtype"] {
  const name = fields.has("dtype") ? fields.string("dtype") : fields.string("torch_dtype", "");
  return DTYPES[name.replace(/^torch\./, "")] ?? null;
}

function readJson(path: string): unknown {
  let text: string;
  try {
    text = readRegularFile(path);
  } catch (error) {
    throw new UserError(`Cannot read ${path}: ${unreadable(error, "Name the folder of a Hugging Face model")}`, 2);
  }
  refuseLfsPointer(path, text);
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new UserError(
      `Cannot read ${path}: ${error instanceof Error ? error.message : error}. Correct the file or download it again`,
      2,
    );
  }
}
