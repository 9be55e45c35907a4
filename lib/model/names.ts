/** What the parts of a model are called in its checkpoint, by family. */
import type { ModelConfig } from "./config.ts";

/** Names of modules; those within a block follow `block(l)` and a dot. */
export interface ModelNames {
  readonly embedding: string;
  /** The table of learned positions; null where positions are rotary. */
  readonly positions: string | null;
  readonly finalNorm: string;
  readonly block: (l: number) => string;
  /** The norm before attention. */
  readonly norm1: string;
  /** The norm before the MLP. */
  readonly norm2: string;
  readonly qkv: readonly [q: string, k: string, v: string];
  readonly o: string;
  /** The first matrices of the MLP: gate and up, or the only one. */
  readonly up: readonly string[];
  readonly down: string;
}

const ATTENTION = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"] as const;

/** The output head, where it is not the embedding. */
export const HEAD = "lm_head";

/** Names by family. */
export const NAMES: Readonly<Record<ModelConfig["family"], ModelNames>> = {
  llama: {
    embedding: "model.embed_tokens",
    positions: null,
    finalNorm: "model.norm",
    block: (l) => `model.layers.${l}`,
    norm1: "input_layernorm",
    norm2: "post_attention_layernorm",
    qkv: ATTENTION,
    o: "self_attn.o_proj",
    up: ["mlp.gate_proj", "mlp.up_proj"],
    down: "mlp.down_proj",
  },
  opt: {
    embedding: "model.decoder.embed_tokens",
    positions: "model.decoder.embed_positions",
    finalNorm: "model.decoder.final_layer_norm",
    block: (l) => `model.decoder.layers.${l}`,
    norm1: "self_attn_layer_norm",
    norm2: "final_layer_norm",
    qkv: ATTENTION,
    o: "self_attn.out_proj",
    up: ["fc1"],
    down: "fc2",
  },
};

/** The last parts of the names of all linear layers of a block, in forward order: what `adapter.targets` may name. */
export function linearNames(family: ModelConfig["family"]): string[] {
  const { qkv, o, up, down } = NAMES[family];
  return [...qkv, o, ...up, down].map((name) => name.split(".").at(-1)!);
}
