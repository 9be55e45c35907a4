import { assert, assertEquals, assertThrows } from "@std/assert";
import { Rng } from "../../lib/data/random.ts";
import { UserError } from "../../lib/errors.ts";
import { type PeftAdapter, readPeftAdapter, writePeftAdapter } from "../../lib/export/peft.ts";
import { openSafetensors, writeSafetensors } from "../../lib/tensor/safetensors.ts";

function inFolder(use: (dir: string) => void): void {
  const dir = Deno.makeTempDirSync();
  try {
    use(dir);
  } finally {
    Deno.removeSync(dir, { recursive: true });
  }
}

const rng = new Rng(5, "adapter");
const numbers = (n: number) => Float32Array.from({ length: n }, () => rng.normal());
const q = "model.layers.0.self_attn.q_proj";
const down = "model.layers.1.mlp.down_proj";

/** Two layers of different rank. */
const adapter: PeftAdapter = {
  model: "models/some-model",
  rank: 4,
  alpha: 8,
  rslora: false,
  targets: ["q_proj", "down_proj"],
  modules: [
    { name: q, A: numbers(4 * 6), B: numbers(5 * 4) },
    { name: down, rank: 2, alpha: 3, A: numbers(2 * 7), B: numbers(6 * 2) },
  ],
};

Deno.test("readPeftAdapter() reads back what writePeftAdapter() writes", () => {
  inFolder((dir) => {
    writePeftAdapter(`${dir}/a/b`, adapter);
    const read = readPeftAdapter(`${dir}/a/b`);
    assertEquals({ ...read, modules: [] }, { ...adapter, dropout: 0, modules: [], targets: read.targets });
    assertEquals([...read.targets].sort(), ["down_proj", "q_proj"]);
    const byName = new Map(read.modules.map((module) => [module.name, module]));
    const [first, second] = adapter.modules;
    assertEquals(byName.get(q), { ...first!, rank: 4, alpha: 8, inFeatures: 6, outFeatures: 5 });
    assertEquals(byName.get(down), { ...second!, rank: 2, alpha: 3, inFeatures: 7, outFeatures: 6 });
    assertEquals([...Deno.readDirSync(`${dir}/a`)].map(({ name }) => name), ["b"], "no temporary folder is left");
  });
});

Deno.test("writePeftAdapter() writes PEFT's keys, shapes and settings", () => {
  inFolder((dir) => {
    writePeftAdapter(`${dir}/a`, { ...adapter, rslora: true, dropout: 0.1 });
    const config = JSON.parse(Deno.readTextFileSync(`${dir}/a/adapter_config.json`));
    const { peft_type, task_type, r, lora_alpha, lora_dropout, bias, use_rslora, target_modules, base_model_name_or_path } =
      config;
    assertEquals([peft_type, task_type, bias, base_model_name_or_path], ["LORA", "CAUSAL_LM", "none", "models/some-model"]);
    assertEquals([r, lora_alpha, lora_dropout, use_rslora], [4, 8, 0.1, true]);
    assertEquals(target_modules, ["q_proj", "down_proj"]);
    assertEquals(config.rank_pattern, { "model\\.layers\\.1\\.mlp\\.down_proj": 2 });
    assertEquals(config.alpha_pattern, { "model\\.layers\\.1\\.mlp\\.down_proj": 3 });
    using file = openSafetensors(`${dir}/a/adapter_model.safetensors`);
    assertEquals(file.metadata, { format: "pt" });
    assertEquals(Object.fromEntries([...file.tensors.values()].map((t) => [t.name, t.shape])), {
      [`base_model.model.${q}.lora_A.weight`]: [4, 6],
      [`base_model.model.${q}.lora_B.weight`]: [5, 4],
      [`base_model.model.${down}.lora_A.weight`]: [2, 7],
      [`base_model.model.${down}.lora_B.weight`]: [6, 2],
    });
  });
});

Deno.test("writePeftAdapter() replaces an adapter whole, and keeps the old one when it fails", () => {
  inFolder((dir) => {
    writePeftAdapter(`${dir}/a`, adapter);
    Deno.writeTextFileSync(`${dir}/a/stale`, "");
    writePeftAdapter(`${dir}/a`, { ...adapter, alpha: 9 });
    assertEquals(readPeftAdapter(`${dir}/a`).alpha, 9);
    assertEquals([...Deno.readDirSync(`${dir}/a`)].length, 2);
    const broken = { ...adapter, modules: [{ name: q, A: numbers(7), B: numbers(8) }] };
    assertThrows(() => writePeftAdapter(`${dir}/a`, broken), RangeError, "A has 7 and B 8 numbers, rank is 4");
    const lost = { ...adapter, targets: ["k_proj"] };
    assertThrows(() => writePeftAdapter(`${dir}/a`, lost), RangeError, "ends in none of the targets k_proj");
    assertEquals(readPeftAdapter(`${dir}/a`).alpha, 9);
    Deno.writeTextFileSync(`${dir}/file`, "");
    assertThrows(() => writePeftAdapter(`${dir}/file/a`, adapter), UserError, "Cannot write the folder");
    assertEquals([...Deno.readDirSync(dir)].map(({ name }) => name).sort(), ["a", "file"]);
  });
});

Deno.test("readPeftAdapter() explains what it cannot use", () => {
  const key = `base_model.model.${q}.lora_A.weight`;
  const f32 = (name: string, shape: number[]) => ({
    name,
    dtype: "F32" as const,
    shape,
    data: new Uint8Array(4 * shape.reduce((a, b) => a * b)),
  });
  const other = f32(`base_model.model.${q}.lora_B.weight`, [5, 4]);
  const cases: [object | null, ReturnType<typeof f32>[] | null, string][] = [
    [{ peft_type: "ADALORA" }, null, 'peft_type is "ADALORA". Only "LORA"'],
    [{ peft_type: null }, null, "peft_type is missing"],
    [{ r: 0 }, null, "r is 0. Give an integer above 0"],
    [{ bias: "all" }, null, 'bias is "all"'],
    [{ use_dora: true }, null, "use_dora is true"],
    [{ modules_to_save: ["lm_head"] }, null, "modules_to_save is set"],
    [{ rank_pattern: { "(": 3 } }, null, 'rank_pattern has "(", which is no regular expression'],
    [{ rank_pattern: { q_proj: 3 } }, null, `${q} has A [4, 6] and B [5, 4], but adapter_config.json gives it the rank 3`],
    [null, [], "it has no LoRA matrices"],
    [null, [other], `${q} has no lora_A.weight`],
    [null, [other, f32(key, [4, 3, 2])], "has the shape [4,3,2]"],
    [null, [other, { ...f32(key, [4, 6]), dtype: "I32" as "F32" }], "is stored as I32"],
    [null, [f32("base_model.model.lm_head.weight", [2])], 'the tensor "base_model.model.lm_head.weight" is no LoRA matrix'],
  ];
  for (const [change, tensors, message] of cases) {
    inFolder((dir) => {
      writePeftAdapter(`${dir}/a`, { ...adapter, modules: adapter.modules.slice(0, 1) });
      const path = `${dir}/a/adapter_config.json`;
      if (change) Deno.writeTextFileSync(path, JSON.stringify({ ...JSON.parse(Deno.readTextFileSync(path)), ...change }));
      if (tensors) writeSafetensors(`${dir}/a/adapter_model.safetensors`, tensors);
      const error = assertThrows(() => readPeftAdapter(`${dir}/a`), UserError, message) as UserError;
      assert(!error.message.includes("\n"));
      assertEquals(error.exitCode, 2);
    });
  }
  assertThrows(
    () => readPeftAdapter("/nonexistent"),
    UserError,
    "there is no such file. Name a folder that holds a PEFT adapter",
  );
});
