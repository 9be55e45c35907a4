/** Architectures by name, for benchmarks with random weights; the numbers are those of each model's config.json. */
import { UserError } from "../errors.ts";
import { isFolder } from "../files.ts";
import { didYouMean } from "../nearest.ts";
import { loadModelConfig, type ModelConfig, parseModelConfig } from "./config.ts";

const SHAPES: Readonly<Record<string, Record<string, unknown>>> = {
  // karpathy/llama2.c stories260K
  "stories260k": shape(512, 64, 172, 5, 8, 4, { tied: true, positions: 512 }),
  // HuggingFaceTB/SmolLM2-135M, SmolLM2-1.7B
  "smollm2-135m": shape(49152, 576, 1536, 30, 9, 3, { tied: true, positions: 8192, theta: 100000 }),
  "smollm2-1.7b": shape(49152, 2048, 8192, 24, 32, 32, { tied: true, positions: 8192, theta: 130000 }),
  // TinyLlama/TinyLlama-1.1B
  "tinyllama-1.1b": shape(32000, 2048, 5632, 22, 32, 4, { positions: 2048 }),
  // meta-llama/Llama-2-7b-hf, Meta-Llama-3-8B
  "llama2-7b": shape(32000, 4096, 11008, 32, 32, 32, { positions: 4096 }),
  // baichuan-inc/Baichuan2-7B-Base
  "baichuan2-7b": shape(125696, 4096, 11008, 32, 32, 32, { positions: 4096 }),
  "llama3-8b": shape(128256, 4096, 14336, 32, 32, 8, { positions: 8192, theta: 500000 }),
  // mistralai/Mistral-7B-v0.3
  "mistral-7b": shape(32768, 4096, 14336, 32, 32, 8, { positions: 32768, theta: 1000000, type: "mistral" }),
  // Qwen/Qwen2-7B, Qwen2-0.5B
  "qwen2-7b": shape(152064, 3584, 18944, 28, 28, 4, { positions: 131072, theta: 1000000, type: "qwen2" }),
  "qwen2-0.5b": shape(151936, 896, 4864, 24, 14, 2, { tied: true, positions: 131072, theta: 1000000, type: "qwen2" }),
  // facebook/opt-125m, opt-1.3b, opt-2.7b, opt-6.7b
  "opt-125m": optShape(768, 12, 12),
  "opt-1.3b": optShape(2048, 24, 32),
  "opt-2.7b": optShape(2560, 32, 32),
  "opt-6.7b": optShape(4096, 32, 32),
};

function optShape(hidden_size: number, num_hidden_layers: number, num_attention_heads: number): Record<string, unknown> {
  return {
    model_type: "opt",
    vocab_size: 50272,
    hidden_size,
    ffn_dim: 4 * hidden_size,
    num_hidden_layers,
    num_attention_heads,
    max_position_embeddings: 2048,
  };
}

function shape(
  vocab_size: number,
  hidden_size: number,
  intermediate_size: number,
  num_hidden_layers: number,
  num_attention_heads: number,
  num_key_value_heads: number,
  { tied = false, positions, theta = 10000, type = "llama" }: {
    tied?: boolean;
    positions: number;
    theta?: number;
    type?: "llama" | "mistral" | "qwen2";
  },
): Record<string, unknown> {
  return {
    model_type: type,
    vocab_size,
    hidden_size,
    intermediate_size,
    num_hidden_layers,
    num_attention_heads,
    num_key_value_heads,
    tie_word_embeddings: tied,
    max_position_embeddings: positions,
    rope_theta: theta,
    rms_norm_eps: 1e-5,
  };
}

/**
 * The architecture of a name or of a model folder.
 * @throws {UserError} when it is neither
 */
export function modelShape(nameOrDir: string): ModelConfig {
  const known = SHAPES[nameOrDir.toLowerCase()];
  if (known) return parseModelConfig(nameOrDir, known);
  if (nameOrDir.includes("/") || isFolder(nameOrDir)) return loadModelConfig(nameOrDir);
  const names = Object.keys(SHAPES);
  throw new UserError(
    `Cannot use the shape '${nameOrDir}': it is no folder and no known name.${didYouMean(nameOrDir, names)} Names: ${
      names.join(", ")
    }`,
    2,
  );
}

/**
 * Floating-point operations of one LoRA training step over T tokens, R of them labelled: what the arithmetic needs, with
 * nothing recomputed. Frozen weights cost 2 (forward) + 2 (dX) per parameter and token; adapters 2 each for h, s·hBᵀ,
 * dL/dh, dL/dx, dA and dB; causal attention half of 4·T·length·H·D forward and 2.5 times that backward.
 */
export function stepFlops(
  { family, d, f, L, H, K, D, V }: ModelConfig,
  { T, R, length, adapterParameters }: { T: number; R: number; length: number; adapterParameters: number },
): number {
  const block = d * (H + 2 * K) * D + H * D * d + (family === "llama" ? 3 : 2) * d * f;
  const frozen = 4 * (L * block * T + V * d * R);
  const attention = 3.5 * L * 2 * T * length * H * D;
  return frozen + 6 * adapterParameters * T + attention;
}
