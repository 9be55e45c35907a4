import { assert, assertEquals, assertThrows } from "@std/assert";
import { Device } from "../../ffi/device.ts";
import { KEEP_ALL, type Recompute, RUNGS } from "../../lib/model/activations.ts";
import { type ModelConfig, parseModelConfig } from "../../lib/model/config.ts";
import { randomWeights } from "../../lib/model/load.ts";
import type { Tokens } from "../../lib/train/batch.ts";
import { Engine, type EngineOptions } from "../../lib/train/engine.ts";
import "./harness.ts";
import { normals } from "../native/harness.ts";

const SIZE = { vocab_size: 64, hidden_size: 32, num_hidden_layers: 3, num_attention_heads: 4 };
const MODELS = {
  llama: parseModelConfig("tiny", { model_type: "llama", ...SIZE, intermediate_size: 80, num_key_value_heads: 2 }),
  opt: parseModelConfig("tiny", { model_type: "opt", ...SIZE, ffn_dim: 96, max_position_embeddings: 32 }),
};

const samples: Tokens[] = [9, 17, 5].map((length, i) => {
  const ids = Int32Array.from({ length }, (_, t) => (7 * t + 11 * i + 3) % 64);
  return { ids, labels: ids };
});

/** Summed gradient, then per-sample gradients and a mixture of them, of a fresh engine with B ≠ 0. */
function gradients(
  config: ModelConfig,
  options: Partial<EngineOptions>,
): { sum: Float32Array; staged: Float32Array; mixed: Float32Array; bytes: number } {
  using dev = Device.open({ threads: 2 });
  using engine = new Engine(dev, config, {
    adapterOf: () => ({ rank: 4, scale: 0.5 }),
    weightDtype: "f32",
    limits: { tokens: 31, rows: 28, segments: 3, positions: 17 },
    purpose: "train",
    staged: 3,
    ...options,
  });
  const { bytes } = engine.arena;
  engine.allocate();
  randomWeights(dev, engine.model);
  engine.setAdapters(normals(engine.parameters, 5).map((x) => 0.1 * x));
  engine.sumGradients(samples, { per: "sample", samples: 3 });
  const sum = engine.grad!.read();
  if (!engine.staging) return { sum, staged: new Float32Array(), mixed: new Float32Array(), bytes };
  engine.stageGradients(samples, { first: 0, observe: () => null });
  const staged = engine.staging.read(3);
  engine.combineStaged(Float64Array.of(0.5, 0.125, 0.375));
  return { sum, staged, mixed: engine.grad!.read(), bytes };
}

for (const [family, config] of Object.entries(MODELS)) {
  Deno.test(`every rung of recomputation gives the same bits, and each takes less memory than the one before: ${family}`, () => {
    const kept = gradients(config, { recompute: KEEP_ALL });
    assert(kept.sum.some((x) => x !== 0));
    let { bytes } = kept;
    const ladder: Recompute[] = RUNGS.slice(1).flatMap((rung) => [1, 2, 3].map((layers) => ({ rung, layers })));
    for (const recompute of ladder) {
      const { sum, staged, bytes: less } = gradients(config, { recompute });
      assertEquals(sum, kept.sum, JSON.stringify(recompute));
      assertEquals(staged, kept.staged, JSON.stringify(recompute));
      if (recompute.layers === 3) {
        assert(less < bytes, `${JSON.stringify(recompute)}: ${less} bytes, the rung before takes ${bytes}`);
        bytes = less;
      }
    }
  });

  Deno.test(`gradients in the place of activations have the same bits and take less memory: ${family}`, () => {
    const whole = gradients(config, { gradients: "whole" });
    for (const rung of RUNGS) {
      const recompute = { rung, layers: 3 };
      for (const sumsPasses of [false, true]) {
        const reuse = gradients(config, { gradients: "reuse", sumsPasses, recompute });
        for (const each of ["sum", "staged", "mixed"] as const) {
          assertEquals(reuse[each], whole[each], `${each}, ${rung}, ${sumsPasses}`);
        }
      }
      const bytes = (options: Partial<EngineOptions>) => gradients(config, { recompute, ...options }).bytes;
      if (rung === "block") continue; // too small
      assert(bytes({ gradients: "reuse" }) < bytes({ gradients: "whole" }), rung);
    }
    const plain = gradients(config, { staged: 0, gradients: "reuse" });
    assertEquals(plain.sum, whole.sum);
    assert(plain.bytes < gradients(config, { staged: 0, gradients: "whole" }).bytes, "one gradient");
  });

  Deno.test(`a sum over several passes needs a place of its own: ${family}`, () => {
    using dev = Device.open({ threads: 2 });
    const sum = (options: Partial<EngineOptions>) => {
      const limits = { tokens: 17, rows: 16, segments: 1, positions: 17 };
      const common = { adapterOf: () => ({ rank: 4, scale: 0.5 }), weightDtype: "f32", purpose: "train", staged: 1 } as const;
      using engine = new Engine(dev, config, { ...common, limits, ...options });
      engine.allocate();
      randomWeights(dev, engine.model);
      engine.setAdapters(normals(engine.parameters, 5).map((x) => 0.1 * x));
      engine.sumGradients(samples, { per: "sample", samples: 3 });
      return engine.grad!.read();
    };
    assertEquals(sum({ gradients: "reuse", sumsPasses: true }), sum({ gradients: "whole" }));
    assertThrows(() => sum({ gradients: "reuse" }), Error, "Cannot add");
  });

  Deno.test(`adapters of other ranks in every layer train on every rung, and evaluate to the losses that they train with: ${family}`, () => {
    // Layer 0 has the smallest rank, so that nothing may be laid out by it alone.
    const adapterOf = (name: string) => ({ rank: 4 * Number(/layers\.(\d)/.exec(name)![1]), scale: 0.5 });
    const options = { adapterOf, staged: 0 };
    const losses = (purpose: "train" | "evaluate", more: Partial<EngineOptions> = {}) => {
      using dev = Device.open({ threads: 2 });
      const limits = { tokens: 31, rows: 28, segments: 3, positions: 17 };
      using engine = new Engine(dev, config, { ...options, weightDtype: "f32", limits, purpose, ...more });
      engine.allocate();
      randomWeights(dev, engine.model);
      engine.setAdapters(normals(engine.parameters, 5).map((x) => 0.1 * x));
      if (purpose === "evaluate") return engine.evaluate(samples).sums;
      return engine.sumGradients(samples, { per: "sample", samples: 3 }).sums;
    };
    const evaluated = losses("evaluate");
    for (const rung of RUNGS) assertEquals(losses("train", { recompute: { rung, layers: 3 } }), evaluated, rung);
  });
}
