/**
 * Whole models on the GPU against transformers + PEFT in f32 (the fixtures of tests/train): ten steps of LoRA, and gradients of OPT
 * sample by sample. The GPU's weights and activations are bf16.
 */
import { assert } from "@std/assert";
import { Device } from "../../ffi/device.ts";
import { loadModelConfig } from "../../lib/model/config.ts";
import { loadWeights } from "../../lib/model/load.ts";
import { Adam } from "../../lib/optim/adam.ts";
import { learningRate } from "../../lib/optim/schedule.ts";
import { openCheckpoint } from "../../lib/tensor/checkpoint.ts";
import { labelledTokens, type Tokens } from "../../lib/train/batch.ts";
import { Engine, limitsFor } from "../../lib/train/engine.ts";
import {
  assertClose,
  factors,
  fixtureJson,
  FixtureTensors,
  hasModel,
  loadStories,
  modelConfig,
  tokensOf,
  uniformAdapters,
} from "../train/harness.ts";
import { available, BACKEND, distance } from "./subject.ts";

const trajectories = fixtureJson("peft_trajectory");

for (const name of ["plain", "decay", "mlp"]) {
  Deno.test({
    name: `ten LoRA steps follow transformers + PEFT: ${name}`,
    ignore: !available || !hasModel,
    fn() {
      const { rank, alpha, targets, initial, steps, weightDecay, clip, schedule, warmup, evaluation } =
        trajectories.trajectories[name];
      const samples: Tokens[] = trajectories.samples.map(tokensOf);
      using dev = Device.open({ backend: BACKEND });
      const limits = limitsFor(samples, samples, { batchSize: trajectories.batchSize, padded: false });
      const adapterOf = uniformAdapters(targets, rank, alpha);
      using engine = new Engine(dev, modelConfig(), { adapterOf, weightDtype: "bf16", limits, purpose: "train", staged: 0 });
      const { betas, eps, lr } = trajectories.optimizer;
      const adam = new Adam(dev, engine.arena, engine.parameters, { betas, eps, weightDecay, clip, placement: "device" });
      loadStories(dev, engine);
      using tensors = new FixtureTensors("peft_trajectory");
      engine.setAdapters(tensors.theta(initial, engine.adapters, engine.parameters));
      for (const step of steps) {
        const batch: Tokens[] = step.batch.map((i: number) => samples[i]!);
        const tokens = batch.reduce((sum, sample) => sum + labelledTokens(sample), 0);
        const { sums } = engine.sumGradients(batch, { per: "token", tokens });
        const norm = adam.update(
          engine.theta,
          engine.grad!.rows,
          learningRate(step.step, { lr, schedule, warmup, total: steps.length }),
        );
        engine.refresh();
        assertClose(`step ${step.step}: loss`, [sums.reduce((a, b) => a + b, 0) / tokens], [step.loss], 0.02);
        assertClose(`step ${step.step}: gradient norm`, [norm], [step.gradNorm], 0.05);
      }
      const { sums, tokens } = engine.evaluate(samples);
      const loss = sums.reduce((a, b) => a + b, 0) / tokens.reduce((a, b) => a + b, 0);
      assertClose("loss over all samples at the end", [loss], [evaluation.finalLoss], 0.02);
    },
  });
}

Deno.test({
  name: "the gradient of every sample's loss is that of transformers + PEFT: OPT",
  ignore: !available,
  fn() {
    const fixture = fixtureJson("opt"), folder = new URL("../fixtures/families/opt", import.meta.url).pathname;
    const samples: Tokens[] = fixture.samples.map(tokensOf);
    using dev = Device.open({ backend: BACKEND });
    const limits = limitsFor(samples, samples, { batchSize: samples.length, padded: false });
    const adapterOf = uniformAdapters(fixture.targets, fixture.rank, fixture.alpha);
    const options = { adapterOf, weightDtype: "bf16", limits, purpose: "train", staged: samples.length } as const;
    using engine = new Engine(dev, loadModelConfig(folder), options);
    using checkpoint = openCheckpoint(folder);
    engine.allocate();
    loadWeights(dev, engine.model, checkpoint);
    using tensors = new FixtureTensors("opt");
    const P = engine.parameters;
    engine.setAdapters(tensors.theta("initial", engine.adapters, P));
    const { sums, tokens } = engine.stageGradients(samples, { first: 0, observe: () => null });
    assertClose("losses", Array.from(sums, (sum, i) => sum / tokens[i]!), fixture.losses, 5e-3);
    const staged = engine.staging!.read(samples.length);
    let worst = 0;
    for (let i = 0; i < samples.length; i++) {
      const expected = tensors.theta(`gradient/${i}`, engine.adapters, P);
      for (const { name, offset, length } of factors(engine.adapters)) {
        const far = distance(
          staged.subarray(i * P + offset, i * P + offset + length),
          expected.subarray(offset, offset + length),
        );
        worst = Math.max(worst, far);
        // Weights in bf16 alone put the CPU 0.09 away; activations do as much (model_test.ts).
        assert(far < 0.2, `gradient of ${name}, sample ${i}: ${far} away`);
      }
    }
    console.log(`  largest distance of a matrix's gradient: ${worst.toFixed(4)}`);
  },
});
