import { assertEquals } from "@std/assert";
import { Device } from "../../ffi/device.ts";
import { BatchCursor } from "../../lib/data/order.ts";
import type { Sample } from "../../lib/data/encode.ts";
import { Adam } from "../../lib/optim/adam.ts";
import { PooledSimilarity } from "../../lib/reweight/pooled.ts";
import { passesAt } from "../../lib/train/plan.ts";
import { Trainer, type TrainerOptions } from "../../lib/train/trainer.ts";
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

const fixture = fixtureJson("metalora_reference");

function samplesOf(rows: { id: string; ids: number[]; labels: number[] }[]): Sample[] {
  return rows.map((row) => ({ ...tokensOf(row), id: row.id, prompt: "", response: "", source: null }) as Sample);
}

const validation = samplesOf(fixture.validation);

/** What the fixture's `reference` and `paper` runs have in common. */
function options(preset: "reference" | "paper", run: { maxSteps: number; every: number; lr: number }): TrainerOptions {
  const reference = preset === "reference";
  return {
    method: "meta-lora",
    every: run.every,
    plainStart: reference ? "epoch" : "first",
    steps: run.maxSteps,
    accumulate: 1,
    loss: reference ? "token-mean" : "sample-mean",
    validationLoss: reference ? "token-mean" : "sample-mean",
    trainOn: reference,
    finishBatch: reference,
    weights: { weights: reference ? "shift" : "clip", lambda: 0.5, temperature: 1 },
    schedule: { lr: run.lr, schedule: "cosine", warmup: 0 },
  };
}

for (const [name, run] of Object.entries<ReturnType<typeof fixtureJson>>(fixture.runs)) {
  const preset = name.startsWith("reference") ? "reference" : "paper";
  Deno.test({
    name: `preset ${preset} does what the independent PyTorch implementation does, step for step (${name})`,
    ignore: !hasModel,
    fn() {
      using dev = Device.open();
      // A run of several epochs goes over the first rows only: as many as it ever names.
      const named = run.steps.filter(({ kind }: { kind: string }) => kind !== "validation").flatMap((
        { indices }: { indices: number[] },
      ) => indices);
      const train = samplesOf(fixture.train).slice(0, run.epochs ? Math.max(...named) + 1 : fixture.train.length);
      const padding = preset === "reference" ? { id: fixture.padId } : null;
      const adapterOf = uniformAdapters(fixture.targets, fixture.rank, fixture.alpha);
      using engine = trainingEngine(dev, [...train, ...validation], { adapterOf, batchSize: 4, staged: 4, padding });
      const { betas, eps, clip } = fixture.optimizer;
      const adam = new Adam(dev, engine.arena, engine.parameters, { betas, eps, weightDecay: 0, clip, placement: "device" });
      const similarity = new PooledSimilarity(dev, engine.arena, engine.model, 4, {
        ema: 0,
        modules: "all",
        reduction: preset === "reference" ? "product-of-means" : "mean-of-products",
        loss: preset === "reference" ? "token-mean" : "sample-mean",
      });
      loadStories(dev, engine);
      using tensors = new FixtureTensors("metalora_reference");
      engine.setAdapters(tensors.theta(run.initial, engine.adapters, engine.parameters));
      const cursor = (samples: number, stream: string) =>
        new BatchCursor({ samples, batchSize: 4, order: "sequential", seed: 0, stream });
      const data = {
        train,
        validation,
        trainOrder: cursor(train.length, "train"),
        validationOrder: cursor(validation.length, "validation"),
      };
      const trainer = new Trainer(engine, adam, similarity, data, options(preset, run));
      const reports = [...trainer.run()].filter(({ kind }) => preset === "reference" || kind === "train");
      assertEquals(reports.length, run.steps.length, "number of passes");
      run.steps.forEach((step: ReturnType<typeof fixtureJson>, i: number) => {
        const report = reports[i]!;
        const at = `pass ${i} (${step.kind})`;
        assertEquals(report.kind, step.kind === "validation" ? "validation" : "train", at);
        assertEquals(Array.from(report.samples), step.indices, at);
        assertClose(`${at}: losses`, report.losses, step.losses, 2e-5);
        assertEquals(report.skipped, step.skipped ?? false, at);
        if (step.u) {
          assertClose(`${at}: similarities`, report.similarities!, step.u, 5e-4);
          assertClose(`${at}: weights`, report.weights!, step.w, 2e-4);
        } else assertEquals(report.similarities, null, at);
        if (step.gradNorm !== undefined && step.gradNorm !== null) {
          assertClose(`${at}: gradient norm`, [report.gradNorm!], [step.gradNorm], 2e-4);
          assertClose(`${at}: learning rate`, [report.lr + 1], [step.lr + 1], 1e-9);
        }
      });
      if (!tensors.names.some((tensor) => tensor.startsWith(`final_${name}/`))) return; // the fixture keeps some runs' adapters
      assertClose(
        "final adapters",
        engine.getAdapters(),
        tensors.theta(`final_${name}`, engine.adapters, engine.parameters),
        1e-3,
      );
    },
  });
}

Deno.test("step accounting of the authors' loop: 500 updates at 10:1 are 1 plain, 453 weighted and 46 validation steps", () => {
  for (const { maxSteps, every, plain, train, validation, trainBatches } of fixture.accounting) {
    const counts = { plain: 0, weighted: 0, refresh: 0 };
    let updates = 0, consumed = 0;
    while (updates < maxSteps) {
      for (const pass of passesAt({ consumed, inEpoch: consumed }, { method: "meta-lora", every, plainStart: "epoch" })) {
        counts[pass]++;
        updates++;
      }
      consumed++;
    }
    assertEquals(counts, { plain, weighted: train, refresh: validation });
    assertEquals(consumed, trainBatches);
  }
  assertEquals(fixture.accounting[0].trainBatches, 454);
});
