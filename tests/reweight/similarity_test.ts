import { assert, assertEquals } from "@std/assert";
import { Device } from "../../ffi/device.ts";
import { download } from "../../ffi/operators.ts";
import { Adam } from "../../lib/optim/adam.ts";
import { PooledSimilarity } from "../../lib/reweight/pooled.ts";
import { CoreSimilarity, ExactSimilarity, type Modules, type Similarity } from "../../lib/reweight/similarity.ts";
import { clip, effectiveSampleSize, mix, sampleWeights, shift, softmax, uniform } from "../../lib/reweight/weights.ts";
import type { Tokens } from "../../lib/train/batch.ts";
import type { Engine } from "../../lib/train/engine.ts";
import {
  assertClose,
  fixtureJson,
  FixtureTensors,
  hasModel,
  loadStories,
  tokensOf,
  trainingEngine,
  uniformAdapters,
} from "../train/harness.ts";

const fixture = fixtureJson("similarity");
const train: Tokens[] = fixture.train.map(tokensOf);
const validation: Tokens[] = fixture.validation.map(tokensOf);
const MODULES: readonly Modules[] = ["all", "attention", "mlp"];

/** An engine at a point of the fixture with the similarities that `make` lays out beside it. */
function withEngine<T>(
  point: string,
  make: (engine: Engine, dev: Device) => T,
  body: (engine: Engine, made: T, dev: Device) => void,
): void {
  using dev = Device.open();
  const adapterOf = uniformAdapters(fixture.targets, fixture.rank, fixture.alpha);
  using engine = trainingEngine(dev, [...train, ...validation], { adapterOf, batchSize: 4, staged: 4 });
  const made = make(engine, dev);
  loadStories(dev, engine);
  using tensors = new FixtureTensors("similarity");
  engine.setAdapters(tensors.theta(point, engine.adapters, engine.parameters));
  body(engine, made, dev);
}

/** Runs a validation batch and a training batch past a similarity. */
function similaritiesOf(engine: Engine, similarity: Similarity): Float64Array {
  engine.sumGradients(validation, { per: "sample", samples: validation.length }, {
    observe: (observed) => similarity.observeValidation(observed),
  });
  similarity.refresh(engine.grad!.rows, validation.length);
  const { tokens } = engine.stageGradients(train, { first: 0, observe: (observed) => similarity.observeTraining(observed) });
  return similarity.similarities(train.length, tokens);
}

for (const point of ["trained", "fresh"]) {
  const expected = fixture.points[point];
  for (const modules of MODULES) {
    Deno.test({
      name: `exact, cosine, core and pooled similarities over ${modules} modules equal autograd's at the ${point} adapter`,
      ignore: !hasModel,
      fn() {
        withEngine(point, (engine, dev) => {
          const { arena, model } = engine;
          const exact = (normalize: "none" | "cosine") =>
            new ExactSimilarity(dev, arena, model, { staging: engine.staging!, ema: 0, modules, normalize, adam: null });
          const pooled = (reduction: "product-of-means" | "mean-of-products") =>
            new PooledSimilarity(dev, arena, model, 4, { ema: 0, modules, reduction, loss: "sample-mean" });
          return {
            exact: exact("none"),
            cosine: exact("cosine"),
            core: new CoreSimilarity(dev, arena, model, { samples: 4, ema: 0, modules, normalize: "none" }),
            pooled: pooled("product-of-means"),
            paper: pooled("mean-of-products"),
          };
        }, (engine, similarities) => {
          for (const [name, similarity] of Object.entries(similarities)) {
            const u = similaritiesOf(engine, similarity);
            const reference: number[] = expected.similarity[name][modules];
            if (reference.every((value) => value === 0)) assertEquals(Array.from(u), reference, `${name}: exactly 0 while B = 0`);
            else assertClose(name, u, reference, 2e-4);
            assertEquals(similarity.needsPlainStart, name === "core" || name === "pooled" || name === "paper");
          }
        });
      },
    });
  }

  Deno.test({
    name: `exact-adam divides by the root of the second moment, at the ${point} adapter`,
    ignore: !hasModel,
    fn() {
      for (const placement of ["device", "host"] as const) {
        withEngine(point, (engine, dev) => {
          const options = {
            betas: [0.9, fixture.adam.beta2],
            eps: fixture.adam.eps,
            weightDecay: 0,
            clip: 0,
            placement,
          } as const;
          const adam = new Adam(dev, engine.arena, engine.parameters, options);
          const make = (modules: Modules) =>
            new ExactSimilarity(dev, engine.arena, engine.model, {
              staging: engine.staging!,
              ema: 0,
              modules,
              normalize: "none",
              adam,
            });
          return { adam, similarities: MODULES.map((modules) => [modules, make(modules)] as const) };
        }, (engine, { adam, similarities }) => {
          using tensors = new FixtureTensors("similarity");
          const v = tensors.theta("adam_v", engine.adapters, engine.parameters);
          adam.restore({ step: fixture.adam.step, m: new Float32Array(v.length), v });
          for (const [modules, similarity] of similarities) {
            assertClose(modules, similaritiesOf(engine, similarity), expected.similarity.exactAdam[modules], 2e-4);
          }
        });
      }
    },
  });

  Deno.test({
    name: `gradient norms, the mean gradient and combined gradients equal autograd's at the ${point} adapter`,
    ignore: !hasModel,
    fn() {
      withEngine(point, () => null, (engine) => {
        using tensors = new FixtureTensors("similarity");
        const P = engine.parameters;
        engine.stageGradients(train, { first: 0, observe: () => null });
        const staged = engine.staging!.read(4);
        const norms = train.map((_, i) => Math.hypot(...blocks(staged.subarray(i * P, (i + 1) * P))));
        assertClose("gradient norms", norms, expected.gradientNorms.all.train, 1e-4);
        const combine = (weights: Float64Array<ArrayBuffer>) => {
          engine.stageGradients(train, { first: 0, observe: () => null });
          engine.combineStaged(weights);
          return engine.grad!.read();
        };
        // w = 1/n is the gradient of the mean of per-sample means (acceptance 3).
        const combined = combine(uniform(4));
        engine.sumGradients(train, { per: "sample", samples: 4 });
        assertClose("staged combine with equal weights", combined, engine.grad!.read(), 1e-5);
        assertClose("its norm", [Math.hypot(...blocks(combined))], [expected.combinedNorms.uniform], 1e-4);
        for (const map of ["shift", "clip", "mix", "softmax"] as const) {
          const weighted = combine(Float64Array.from(expected.weights.exact[map]));
          const norm = Math.hypot(...blocks(weighted));
          assertClose(`norm of the gradient weighted by ${map}`, [norm], [expected.combinedNorms[map]], 1e-4);
        }
        const name = point === "trained" ? "trained/combined" : "fresh/combined";
        if (tensors.has(`${name}/base_model.model.${engine.adapters[0]!.name}.lora_A.weight`)) {
          const weighted = combine(Float64Array.from(expected.weights.exact[fixture.combinedMap ?? "mix"]));
          assertClose("weighted gradient", weighted, tensors.theta(name, engine.adapters, P), 1e-4);
        }
      });
    },
  });

  Deno.test({
    name: `the exact similarity is the change of each loss along V, at the ${point} adapter`,
    ignore: !hasModel,
    fn() {
      withEngine(
        point,
        (engine, dev) =>
          new ExactSimilarity(dev, engine.arena, engine.model, {
            staging: engine.staging!,
            ema: 0,
            modules: "all",
            normalize: "none",
            adam: null,
          }),
        (engine, similarity, dev) => {
          const u = similaritiesOf(engine, similarity);
          // Against float64 finite differences of PyTorch (acceptance 1), and ours in float32.
          assertClose("float64 finite differences", u, expected.finiteDifference.u, 1e-4);
          const P = engine.parameters;
          const V = new Float32Array(P);
          download(dev, V, similarity.validationGradient);
          const theta = engine.getAdapters();
          const step = 0.004 / Math.hypot(...blocks(V));
          const losses = (sign: number) => {
            engine.setAdapters(theta.map((value, j) => value + sign * step * V[j]!));
            const { sums, tokens } = engine.evaluate(train);
            return Array.from(sums, (sum, i) => sum / tokens[i]!);
          };
          const plus = losses(1), minus = losses(-1);
          assertClose("finite differences here", plus.map((value, i) => (value - minus[i]!) / (2 * step)), u, 2e-3);
          // Σ u_i / n = ⟨mean gradient, V⟩ (acceptance 2).
          assertClose("mean", [u.reduce((a, b) => a + b, 0) / 4], [expected.meanTrainGradientDotV], 1e-4);
        },
      );
    },
  });
}

Deno.test({
  name: "extra right padding leaves the exact similarity alone and moves the reference's pooled one",
  ignore: !hasModel,
  fn() {
    const id = fixture.padId;
    const extend = ({ ids, labels }: Tokens, T: number): Tokens => ({
      ids: Int32Array.from({ length: T }, (_, t) => ids[t] ?? id),
      labels: Int32Array.from({ length: T }, (_, t) => labels[t] ?? -100),
    });
    for (const { T, validationT, ...expected } of fixture.padding.cases) {
      const padded = train.map((sample) => extend(sample, T)), trusted = validation.map((sample) => extend(sample, validationT));
      using dev = Device.open();
      const adapterOf = uniformAdapters(fixture.targets, fixture.rank, fixture.alpha);
      using engine = trainingEngine(dev, [...padded, ...trusted], { adapterOf, batchSize: 4, staged: 4, padding: { id } });
      const { arena, model, staging } = engine;
      const common = { ema: 0, modules: "all" } as const;
      const exact = new ExactSimilarity(dev, arena, model, { ...common, staging: staging!, normalize: "none", adam: null });
      const pooled = new PooledSimilarity(dev, arena, model, 4, { ...common, reduction: "product-of-means", loss: "token-mean" });
      loadStories(dev, engine);
      using tensors = new FixtureTensors("similarity");
      engine.setAdapters(tensors.theta(fixture.padding.adapter, engine.adapters, engine.parameters));
      const run = (similarity: Similarity, normalisation: Parameters<Engine["sumGradients"]>[1]) => {
        engine.sumGradients(trusted, normalisation, { observe: (o) => similarity.observeValidation(o) });
        similarity.refresh(engine.grad!.rows, 4);
        const { tokens } = engine.stageGradients(padded, { first: 0, observe: (o) => similarity.observeTraining(o) });
        return similarity.similarities(4, tokens);
      };
      const tokens = trusted.reduce((sum, { labels }) => sum + labels.filter((label, t) => t > 0 && label !== -100).length, 0);
      assertClose(`exact, T = ${T}`, run(exact, { per: "sample", samples: 4 }), expected.exact, 2e-4);
      assertClose(`reference, T = ${T}`, run(pooled, { per: "token", tokens }), expected.reference, 1e-3);
      if (expected.extra > 0) assert(expected.referenceMoved > 0.01);
    }
  },
});

Deno.test({
  name: "at B = 0 the A half of every staged gradient is exactly 0 and the B half is not",
  ignore: !hasModel,
  fn() {
    withEngine("fresh", () => null, (engine) => {
      engine.stageGradients(train, { first: 0, observe: () => null });
      const P = engine.parameters;
      const staged = engine.staging!.read(4);
      for (let i = 0; i < 4; i++) {
        for (const { rank, dIn, dOut, aOffset, bOffset } of engine.adapters) {
          const row = staged.subarray(i * P, (i + 1) * P);
          assert(row.subarray(aOffset, aOffset + rank * dIn).every((g) => g === 0));
          assert(row.subarray(bOffset, bOffset + rank * dOut).some((g) => g !== 0));
        }
      }
    });
  },
});

/** Root sums of squares over blocks: Math.hypot of a million arguments overflows the stack. */
function blocks(values: Float32Array): number[] {
  const sums: number[] = [];
  for (let i = 0; i < values.length; i += 1024) {
    sums.push(Math.sqrt(values.subarray(i, i + 1024).reduce((sum, v) => sum + v * v, 0)));
  }
  return sums;
}

Deno.test("weight maps equal the reference on given similarities", () => {
  for (const { u, ...maps } of fixture.weightMaps) {
    const close = (name: string, actual: ArrayLike<number>) => {
      for (let i = 0; i < u.length; i++) {
        assert(Math.abs(actual[i]! - maps[name][i]) < 1e-12, `${name} of ${u}: ${Array.from(actual)}`);
      }
    };
    close("shift", shift(u));
    close("clip", clip(u));
    close("mix", mix(u, 0.5));
    close("softmax", softmax(u, 1));
  }
  for (const { u, tau, lam, ...maps } of fixture.weightMapOptions) {
    if (maps.softmax) assertClose("softmax", softmax(u, tau), maps.softmax, 1e-12);
    if (maps.mix) assertClose("mix", mix(u, lam), maps.mix, 1e-12);
  }
});

Deno.test("the shift map is that of the authors' code", () => {
  assertClose("negative", shift([-1, -2, -3, -4]), [7 / 22, 6 / 22, 5 / 22, 4 / 22], 1e-15);
  assertClose("positive", shift([1, 2, 3, 4]), [0.1, 0.2, 0.3, 0.4], 1e-15);
  assertEquals(Array.from(shift([0, 0, 0])), [0, 0, 0]);
});

Deno.test("a batch without any positive similarity is skipped by clip and uniform under mix", () => {
  assertEquals(Array.from(clip([-1, 0, -2])), [0, 0, 0]);
  assertEquals(effectiveSampleSize(clip([-1, 0, -2])), 0);
  assertEquals(Array.from(sampleWeights([-1, 0, -2, -5], { weights: "mix", lambda: 0.5, temperature: 1 })), [
    0.25,
    0.25,
    0.25,
    0.25,
  ]);
});

Deno.test("every map takes a batch of hundreds of thousands of samples", () => {
  const u = Float64Array.from({ length: 300_000 }, (_, i) => (i % 5) - 2);
  for (const weights of ["shift", "clip", "mix", "softmax"] as const) {
    const sum = sampleWeights(u, { weights, lambda: 0.5, temperature: 1 }).reduce((a, b) => a + b, 0);
    assert(Math.abs(sum - 1) < 1e-9, `${weights}: the weights sum to ${sum}`);
  }
});
