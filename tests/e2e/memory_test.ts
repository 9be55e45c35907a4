/** Memory is planned: what --dry-run announces is what the run takes. (Memory is no timing: it may be asserted.) */
import { assert } from "@std/assert";
import { openSafetensors, writeSafetensors } from "../../lib/tensor/safetensors.ts";
import { rows, type Workspace, workspace } from "./harness.ts";

/**
 * A Llama of 20M parameters, narrow and deep: its activations decide, and take little time. The larger the model, the better
 * the plan; this is about where it holds to 5 % whenever the runtime collects its garbage.
 */
const SHAPE = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  hidden_size: 256,
  intermediate_size: 704,
  num_hidden_layers: 16,
  num_attention_heads: 8,
  num_key_value_heads: 4,
  vocab_size: 32000,
  max_position_embeddings: 256,
  rms_norm_eps: 1e-5,
  tie_word_embeddings: true,
};

function within(percent: number, planned: number, peak: number, what: string): void {
  const mib = (bytes: number) => `${(bytes / 2 ** 20).toFixed(0)} MiB`;
  const error = 100 * (planned - peak) / peak;
  assert(Math.abs(error) <= percent, `${what}: planned ${mib(planned)}, peak ${mib(peak)}: ${error.toFixed(1)} % off`);
}

function middleSized(): Workspace {
  const space = workspace();
  space.write("model/config.json", SHAPE);
  // Long samples, all of one length, so that every batch is as large as the plan's largest.
  const long = (first: number, count: number) =>
    rows(first, count).map((row) => ({
      ...row,
      prompt: `${row.prompt} ${"and so on ".repeat(20)}`,
      completion: " an answer".repeat(5),
    }));
  space.write("train.jsonl", long(100, 12));
  space.write("validation.jsonl", long(200, 4));
  space.write("test.jsonl", long(300, 4));
  return space;
}

/** Weights of the middle-sized shape, bf16: one small value everywhere, ones in the norms. */
function writeWeights(space: Workspace): void {
  const { hidden_size: d, intermediate_size: f, num_hidden_layers: L, vocab_size: V } = SHAPE;
  const shapes: Record<string, number[]> = { "model.embed_tokens.weight": [V, d], "model.norm.weight": [d] };
  for (let l = 0; l < L; l++) {
    const layer: Record<string, number[]> = {
      "input_layernorm": [d],
      "post_attention_layernorm": [d],
      "self_attn.q_proj": [d, d],
      "self_attn.k_proj": [d / 2, d],
      "self_attn.v_proj": [d / 2, d],
      "self_attn.o_proj": [d, d],
      "mlp.gate_proj": [f, d],
      "mlp.up_proj": [f, d],
      "mlp.down_proj": [d, f],
    };
    for (const [name, shape] of Object.entries(layer)) shapes[`model.layers.${l}.${name}.weight`] = shape;
  }
  const tensors = Object.entries(shapes).map(([name, shape]) => {
    const values = new Uint16Array(shape.reduce((a, b) => a * b, 1)).fill(shape.length === 1 ? 0x3f80 : 0x3c00);
    return { name, dtype: "BF16" as const, shape, data: new Uint8Array(values.buffer) };
  });
  writeSafetensors(space.file("model/model.safetensors"), tensors, { format: "pt" });
  using file = openSafetensors(space.file("model/model.safetensors"));
  assert(file.tensors.size === tensors.length);
}

Deno.test("bench takes the memory that it plans, within 5 %", async () => {
  using space = middleSized();
  for (const method of ["none", "meta-lora"]) {
    const args = ["--model-shape=model", "--batch=8", "--length=128", "--steps=1", `--method=${method}`];
    const { planned_bytes, peak_memory_bytes } = JSON.parse((await space.ok("bench", ...args, "--json")).out);
    within(5, planned_bytes, peak_memory_bytes, `bench, ${method}`);
    const { total_bytes } = JSON.parse((await space.ok("bench", ...args, "--dry-run", "--json")).out);
    within(2, total_bytes, planned_bytes, `bench --dry-run, ${method}`);
  }
});

Deno.test("train takes the memory that --dry-run announces, within 5 %", async () => {
  using space = middleSized();
  writeWeights(space);
  const settings = ["adapter.rank=32", "train.steps=2", "train.batch_size=8", "data.max_length=256"];
  for (
    const sets of [["reweight.method=none"], ["reweight.method=meta-lora", "train.precision=bf16", "optimizer.placement=host"]]
  ) {
    const all = [...settings, ...sets];
    const plan = await space.ok("train", "run.yaml", "--dry-run", "--json", ...all.flatMap((set) => ["--set", set]));
    const { total_bytes } = JSON.parse(plan.out);
    const { peak_memory_bytes } = await space.train("out", all, []);
    within(5, total_bytes, peak_memory_bytes, `train, ${sets.join(", ")}`);
  }
});

Deno.test("a long run of a tiny model, its report included, stays within 20 % of the plan", async () => {
  using space = workspace();
  // 127 to 136 MiB of 119 planned: V8 collects when it finds time. Without the limit of its young generation it is 159 and more.
  for (const method of ["none", "meta-lora"]) {
    const sets = ["train.steps=20000", "train.log_every=10000", `reweight.method=${method}`];
    const plan = await space.ok(
      "train",
      "run.yaml",
      "--dry-run",
      "--json",
      "--threads=1",
      ...sets.flatMap((set) => ["--set", set]),
    );
    const { total_bytes } = JSON.parse(plan.out);
    const { peak_memory_bytes } = await space.train("out", sets);
    within(20, total_bytes, peak_memory_bytes, `train, ${method}`);
  }
});
