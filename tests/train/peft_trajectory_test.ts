import { assert, assertEquals } from "@std/assert";
import { Device } from "../../ffi/device.ts";
import { Adam } from "../../lib/optim/adam.ts";
import { learningRate } from "../../lib/optim/schedule.ts";
import { labelledTokens } from "../../lib/train/batch.ts";
import type { Tokens } from "../../lib/train/batch.ts";
import {
  assertClose,
  fixtureJson,
  FixtureTensors,
  hasModel,
  loadStories,
  tokensOf,
  trainingEngine,
  uniformAdapters,
} from "./harness.ts";

const fixture = fixtureJson("peft_trajectory");
const samples: Tokens[] = fixture.samples.map(tokensOf);

const tokensIn = (batch: readonly Tokens[]) => batch.reduce((sum, sample) => sum + labelledTokens(sample), 0);

for (const placement of ["device", "host"] as const) {
  for (const [name, trajectory] of Object.entries<ReturnType<typeof fixtureJson>>(fixture.trajectories)) {
    Deno.test({
      name: `ten LoRA steps (${name}, Adam on the ${placement}) follow transformers + PEFT`,
      ignore: !hasModel,
      fn() {
        using dev = Device.open();
        const adapterOf = uniformAdapters(trajectory.targets, trajectory.rank, trajectory.alpha);
        using engine = trainingEngine(dev, samples, { adapterOf, batchSize: fixture.batchSize });
        const { betas, eps } = fixture.optimizer;
        const P = engine.parameters;
        const { weightDecay, clip, schedule, warmup } = trajectory;
        const adam = new Adam(dev, engine.arena, P, { betas, eps, weightDecay, clip, placement });
        loadStories(dev, engine);
        using tensors = new FixtureTensors("peft_trajectory");
        const initial = tensors.theta(trajectory.initial, engine.adapters, P);
        engine.setAdapters(initial);
        const total = trajectory.steps.length;
        for (const step of trajectory.steps) {
          const batch = step.batch.map((i: number) => samples[i]!);
          const tokens = tokensIn(batch);
          const { sums } = engine.sumGradients(batch, { per: "token", tokens });
          const lr = learningRate(step.step, { lr: fixture.optimizer.lr, schedule, warmup, total });
          assertClose(`step ${step.step}: learning rate`, [lr], [step.lr], 1e-9);
          const gradNorm = adam.update(engine.theta, engine.grad!.rows, lr);
          engine.refresh();
          assertClose(`step ${step.step}: loss`, [sums.reduce((a, b) => a + b, 0) / tokens], [step.loss], 1e-5);
          assertClose(`step ${step.step}: gradient norm`, [gradNorm], [step.gradNorm], 1e-4);
        }
        // Of the second trajectory the fixture keeps two layers: the others stay as they are here.
        const theta = engine.getAdapters();
        const final = tensors.theta(trajectory.final, engine.adapters, P, { missing: theta });
        assertClose("adapters", theta, final, 1e-4);
        const moved = (theta: Float32Array) => theta.map((value, j) => value - initial[j]!);
        assertClose("movement of the adapters", moved(theta), moved(final), 2e-3);
        const { sums, tokens } = engine.evaluate(samples);
        const loss = sums.reduce((a, b) => a + b, 0) / tokens.reduce((a, b) => a + b, 0);
        assertClose("loss over all samples at the end", [loss], [trajectory.evaluation.finalLoss], 1e-5);
      },
    });
  }
}

Deno.test({
  name: "per-sample losses at the start equal transformers'",
  ignore: !hasModel,
  fn() {
    using dev = Device.open();
    const { rank, alpha, targets, initial } = fixture.trajectories.plain;
    using engine = trainingEngine(dev, samples, { adapterOf: uniformAdapters(targets, rank, alpha), batchSize: 4 });
    loadStories(dev, engine);
    using tensors = new FixtureTensors("peft_trajectory");
    engine.setAdapters(tensors.theta(initial, engine.adapters, engine.parameters));
    const { sums, tokens } = engine.evaluate(fixture.batches[0].map((i: number) => samples[i]!));
    assertEquals(tokens, fixture.step0.tokens);
    assertClose("losses", Array.from(sums, (sum, i) => sum / tokens[i]!), fixture.step0.losses, 1e-5);
  },
});

Deno.test({
  name: "two micro-batches normalised once over all tokens give the gradient of the whole batch",
  ignore: !hasModel,
  fn() {
    using dev = Device.open();
    const { rank, alpha, targets } = fixture.trajectories.plain;
    using engine = trainingEngine(dev, samples, { adapterOf: uniformAdapters(targets, rank, alpha), batchSize: 4 });
    loadStories(dev, engine);
    using tensors = new FixtureTensors("peft_trajectory");
    const P = engine.parameters;
    const { adapter, gradient, batch, microBatches } = fixture.accumulation;
    engine.setAdapters(tensors.theta(adapter, engine.adapters, P));
    const all = batch.map((i: number) => samples[i]!);
    const normalisation = { per: "token", tokens: tokensIn(all) } as const;
    engine.sumGradients(all, normalisation);
    const whole = engine.grad!.read();
    microBatches.forEach((part: number[], micro: number) => {
      engine.sumGradients(part.map((i) => samples[i]!), normalisation, { accumulate: micro > 0 });
    });
    const accumulated = engine.grad!.read();
    assertClose("accumulated gradient", accumulated, whole, 1e-6);
    assertClose("gradient against PyTorch", whole, tensors.theta(gradient, engine.adapters, P), 2e-5);
    const norm = Math.sqrt(whole.reduce((sum, g) => sum + g * g, 0));
    assertClose("gradient norm", [norm], [fixture.accumulation.gradNorm], 1e-5);
  },
});

Deno.test({
  name: "Adam on the host and on the device move the adapters by the same bits, also where one goes on from the other's state",
  ignore: !hasModel,
  fn() {
    using dev = Device.open();
    const { rank, alpha, targets, initial } = fixture.trajectories.decay;
    const places = [["device", "device"], ["host", "host"], ["device", "host"], ["host", "device"]] as const;
    const results = places.map((places) => {
      using engine = trainingEngine(dev, samples, { adapterOf: uniformAdapters(targets, rank, alpha), batchSize: 4 });
      const options = { betas: [0.9, 0.95], eps: 1e-8, weightDecay: 0.1, clip: 1 } as const;
      const [first, second] = places.map((placement) =>
        new Adam(dev, engine.arena, engine.parameters, { ...options, placement })
      );
      loadStories(dev, engine);
      using tensors = new FixtureTensors("peft_trajectory");
      engine.setAdapters(tensors.theta(initial, engine.adapters, engine.parameters));
      for (const [i, batch] of fixture.batches.slice(0, 4).entries()) {
        const part: Tokens[] = batch.map((i: number) => samples[i]!);
        engine.sumGradients(part, { per: "token", tokens: tokensIn(part) });
        if (i === 2) second!.restore({ step: first!.step, ...first!.state() });
        (i < 2 ? first : second)!.update(engine.theta, engine.grad!.rows, 1e-3);
        engine.refresh();
      }
      return engine.getAdapters();
    });
    for (const result of results.slice(1)) assertEquals(result, results[0]);
    assert(results[0]!.some((value) => value !== 0));
  },
});
