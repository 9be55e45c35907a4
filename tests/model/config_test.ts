import { assert, assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../../lib/errors.ts";
import { type LlamaConfig, loadModelConfig, parseModelConfig } from "../../lib/model/config.ts";

const minimal = {
  model_type: "llama",
  hidden_size: 64,
  intermediate_size: 172,
  num_hidden_layers: 5,
  num_attention_heads: 8,
  vocab_size: 512,
};

Deno.test("parseModelConfig() gives missing values the defaults of transformers", () => {
  assertEquals(parseModelConfig("config.json", minimal), {
    family: "llama",
    modelType: "llama",
    d: 64,
    f: 172,
    L: 5,
    H: 8,
    K: 8,
    D: 8,
    V: 512,
    eps: 1e-6,
    ropeTheta: 10_000,
    ropeScaling: { type: "default" },
    maxPositions: 2048,
    tied: false,
    qkvBias: false,
    outputBias: false,
    mlpBias: false,
    bosId: null,
    eosIds: [],
    padId: null,
    dtype: null,
  });
});

Deno.test("parseModelConfig() reads every value that is given", () => {
  const config = parseModelConfig("config.json", {
    ...minimal,
    architectures: ["LlamaForCausalLM"],
    num_key_value_heads: 2,
    head_dim: 32,
    rms_norm_eps: 1e-5,
    max_position_embeddings: 4096,
    tie_word_embeddings: true,
    attention_bias: true,
    mlp_bias: true,
    bos_token_id: 1,
    eos_token_id: [2, 3],
    pad_token_id: 0,
    torch_dtype: "bfloat16",
    rope_theta: 500_000,
    rope_scaling: null,
    hidden_act: "silu",
  }) as LlamaConfig;
  assertEquals([config.K, config.D, config.eps, config.maxPositions], [2, 32, 1e-5, 4096]);
  assertEquals([config.tied, config.qkvBias, config.outputBias, config.mlpBias], [true, true, true, true]);
  assertEquals([config.bosId, config.eosIds, config.padId, config.dtype], [1, [2, 3], 0, "BF16"]);
  assertEquals(config.ropeTheta, 500_000);
  assertEquals(parseModelConfig("x", { ...minimal, dtype: "float16", eos_token_id: 5, pad_token_id: -1 }).eosIds, [5]);
});

Deno.test("parseModelConfig() takes rotary settings where transformers 4 and 5 write them", () => {
  const scaling = (extra: object) => {
    const config = parseModelConfig("x", { ...minimal, max_position_embeddings: 128, ...extra });
    const { ropeTheta, ropeScaling } = config as LlamaConfig;
    return { ropeTheta, ...ropeScaling };
  };
  assertEquals(scaling({ rope_parameters: { rope_type: "default", rope_theta: 7 } }), { ropeTheta: 7, type: "default" });
  assertEquals(scaling({ rope_scaling: { type: "linear", factor: 2 }, rope_theta: 9 }), {
    ropeTheta: 9,
    type: "linear",
    factor: 2,
  });
  // As in transformers: rope_scaling wins, and theta comes from it or from beside it.
  const both = { rope_scaling: { type: "dynamic", factor: 2 }, rope_parameters: { rope_theta: 7 } };
  assertEquals(scaling(both), { ropeTheta: 10_000, type: "dynamic", factor: 2 });
  const yarn = scaling({ rope_scaling: { rope_type: "yarn", factor: null, original_max_position_embeddings: 32 } });
  assertEquals(yarn, {
    ropeTheta: 10_000,
    type: "yarn",
    factor: 4,
    attentionFactor: 0.1 * Math.log(4) + 1,
    betaFast: 32,
    betaSlow: 1,
    truncate: true,
    originalMaxPositions: 32,
  });
  const llama3 = {
    rope_type: "llama3",
    factor: 8,
    low_freq_factor: 1,
    high_freq_factor: 4,
    original_max_position_embeddings: 64,
  };
  assertEquals(scaling({ rope_scaling: llama3, original_max_position_embeddings: 32 }), {
    ropeTheta: 10_000,
    type: "llama3",
    factor: 8,
    lowFreqFactor: 1,
    highFreqFactor: 4,
    originalMaxPositions: 32,
  });
});

Deno.test("parseModelConfig() refuses each missing or wrong value with one line", () => {
  const rope = (extra: object) => ({
    rope_scaling: { rope_type: "llama3", factor: 8, low_freq_factor: 1, high_freq_factor: 4, ...extra },
  });
  const cases: [object, string][] = [
    [{ model_type: "gpt2" }, 'model_type is "gpt2". Supported: model_type "llama"'],
    [{ model_type: "qwen2", architectures: ["Qwen2ForCausalLM"], use_sliding_window: true }, "use_sliding_window is true"],
    [{ model_type: undefined }, "model_type is missing"],
    [{ architectures: ["LlamaForSequenceClassification"] }, 'architectures is ["LlamaForSequenceClassification"]. Supported'],
    [{ quantization_config: { bits: 4 } }, "quantization_config is set"],
    [{ hidden_act: "gelu" }, 'hidden_act is "gelu". Only "silu"'],
    [{ attention_dropout: 0.1 }, "attention_dropout is 0.1"],
    [{ hidden_size: undefined }, "hidden_size is missing. Give an integer above 0"],
    [{ hidden_size: "64" }, 'hidden_size is "64". Give an integer above 0'],
    [{ hidden_size: 64.5 }, "hidden_size is 64.5"],
    [{ num_hidden_layers: 0 }, "num_hidden_layers is 0"],
    [{ num_key_value_heads: 3 }, "num_key_value_heads is 3, which does not divide num_attention_heads = 8"],
    [{ num_attention_heads: 7, num_key_value_heads: 7 }, "hidden_size is 64, which num_attention_heads = 7 does not divide"],
    [{ head_dim: 7 }, "head_dim is 7, but rotary positions need an even one"],
    [{ rms_norm_eps: 0 }, "rms_norm_eps is 0"],
    [{ rms_norm_eps: "1e-5" }, 'rms_norm_eps is "1e-5". Give a finite number'],
    [{ tie_word_embeddings: 1 }, "tie_word_embeddings is 1. Give true or false"],
    [{ eos_token_id: 512 }, "eos_token_id has 512, which is no id below vocab_size = 512"],
    [{ eos_token_id: [2, "x"] }, 'eos_token_id has "x"'],
    [{ pad_token_id: "x" }, 'pad_token_id is "x"'],
    [{ rope_theta: 1 }, "rope_theta is 1"],
    [{ rope_scaling: "linear" }, 'rope_scaling is "linear" instead of an object'],
    [
      { rope_scaling: { rope_type: "longrope" } },
      'rope_scaling.rope_type is "longrope". Supported: default, linear, dynamic, llama3, yarn',
    ],
    [{ rope_scaling: { type: "linear" } }, "rope_scaling.factor is missing"],
    [{ rope_scaling: { type: "linear", factor: 0.5 } }, "rope_scaling.factor is 0.5. Give a number of at least 1"],
    [{ rope_parameters: { rope_type: "dynamic", factor: 2 }, head_dim: 2 }, 'head_dim is 2. The rope_type "dynamic"'],
    [{ partial_rotary_factor: 0.5 }, "partial_rotary_factor is 0.5"],
    [rope({ low_freq_factor: undefined }), "rope_scaling.low_freq_factor is missing"],
    [rope({ high_freq_factor: 1 }), "high_freq_factor is 1, not above low_freq_factor = 1"],
    [rope({ original_max_position_embeddings: -3 }), "original_max_position_embeddings is -3"],
    [rope({ rope_type: "yarn", beta_fast: 1, beta_slow: 2 }), "beta_fast is 1 and beta_slow is 2"],
    [rope({ rope_type: "yarn", attention_factor: 0 }), "attention_factor is 0. Give a number above 0"],
  ];
  for (const [change, message] of cases) {
    const error = assertThrows(
      () => parseModelConfig("m/config.json", { ...minimal, ...change }),
      UserError,
      message,
    ) as UserError;
    assert(error.message.startsWith("Cannot ") && error.message.includes("m/config.json") && !error.message.includes("\n"));
    assertEquals(error.exitCode, 2);
  }
});

/** facebook/opt-125m as it is on the hub. */
const opt125m = {
  activation_dropout: 0.0,
  activation_function: "relu",
  architectures: ["OPTForCausalLM"],
  attention_dropout: 0.0,
  bos_token_id: 2,
  do_layer_norm_before: true,
  dropout: 0.1,
  eos_token_id: 2,
  ffn_dim: 3072,
  hidden_size: 768,
  init_std: 0.02,
  layerdrop: 0.0,
  max_position_embeddings: 2048,
  model_type: "opt",
  num_attention_heads: 12,
  num_hidden_layers: 12,
  pad_token_id: 1,
  prefix: "</s>",
  torch_dtype: "float16",
  use_cache: true,
  vocab_size: 50272,
  word_embed_proj_dim: 768,
};

Deno.test("parseModelConfig() reads OPT", () => {
  assertEquals(parseModelConfig("config.json", opt125m), {
    family: "opt",
    modelType: "opt",
    d: 768,
    f: 3072,
    L: 12,
    H: 12,
    K: 12,
    D: 64,
    V: 50272,
    eps: 1e-5,
    maxPositions: 2048,
    tied: true,
    qkvBias: true,
    outputBias: true,
    mlpBias: true,
    bosId: 2,
    eosIds: [2],
    padId: 1,
    dtype: "F16",
  });
  assertEquals(parseModelConfig("config.json", { ...opt125m, tie_word_embeddings: false }).tied, false);
});

Deno.test("parseModelConfig() refuses what would be another OPT with one line", () => {
  const cases: [object, string][] = [
    [{ do_layer_norm_before: false }, "do_layer_norm_before is false. Only true is supported for OPT (opt-350m is not)"],
    [{ word_embed_proj_dim: 512 }, "word_embed_proj_dim is 512, not hidden_size = 768"],
    [{ _remove_final_layer_norm: true }, "_remove_final_layer_norm is true. Only false"],
    [{ enable_bias: false }, "enable_bias is false. Only true"],
    [{ layer_norm_elementwise_affine: false }, "layer_norm_elementwise_affine is false. Only true"],
    [{ activation_function: "gelu" }, 'activation_function is "gelu". Only "relu" is supported for OPT'],
    [{ attention_dropout: 0.1 }, "attention_dropout is 0.1"],
    [{ num_attention_heads: 11 }, "hidden_size is 768, which num_attention_heads = 11 does not divide"],
    [{ num_attention_heads: 256 }, "hidden_size is 768 and num_attention_heads 256, which makes heads of an odd size"],
    [{ ffn_dim: undefined }, "ffn_dim is missing. Give an integer above 0"],
    [{ architectures: ["OPTForSequenceClassification"] }, 'architectures is ["OPTForSequenceClassification"]. Supported'],
  ];
  for (const [change, message] of cases) {
    const config = { ...opt125m, ...change };
    const error = assertThrows(() => parseModelConfig("m/config.json", config), UserError, message) as UserError;
    assert(error.message.startsWith("Cannot use m/config.json: ") && !error.message.includes("\n"));
    assertEquals(error.exitCode, 2);
  }
});

Deno.test("loadModelConfig() explains a missing and a damaged config.json", () => {
  const dir = Deno.makeTempDirSync();
  try {
    assertThrows(() => loadModelConfig(dir), UserError, "there is no such file. Name the folder of a Hugging Face model");
    Deno.writeTextFileSync(`${dir}/config.json`, '{"model_type": "llama",');
    assertThrows(() => loadModelConfig(dir), UserError, "Correct the file or download it again");
    Deno.writeTextFileSync(`${dir}/config.json`, "3");
    assertThrows(() => loadModelConfig(dir), UserError, "it is 3 instead of an object");
    Deno.writeTextFileSync(`${dir}/config.json`, JSON.stringify(minimal));
    assertEquals(loadModelConfig(dir).V, 512);
  } finally {
    Deno.removeSync(dir, { recursive: true });
  }
});
