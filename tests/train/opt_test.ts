/** OPT against transformers + PEFT (tests/oracle/opt.py): gradients sample by sample, ten steps, names, tokenizer. */
import { assertEquals, assertThrows } from "@std/assert";
import { join } from "node:path";
import { Device } from "../../ffi/device.ts";
import { encodeSample } from "../../lib/data/encode.ts";
import { UserError } from "../../lib/errors.ts";
import { readPeftAdapter, writePeftAdapter } from "../../lib/export/peft.ts";
import { loadModelConfig } from "../../lib/model/config.ts";
import { loadWeights } from "../../lib/model/load.ts";
import { Adam } from "../../lib/optim/adam.ts";
import { learningRate } from "../../lib/optim/schedule.ts";
import { openCheckpoint } from "../../lib/tensor/checkpoint.ts";
import { openSafetensors, type TensorData, writeSafetensors } from "../../lib/tensor/safetensors.ts";
import { loadTokenizer } from "../../lib/tokenizer/tokenizer.ts";
import { adapterOf, fromPeft, toPeft } from "../../lib/train/adapters.ts";
import { labelledTokens, type Tokens } from "../../lib/train/batch.ts";
import { Engine, limitsFor } from "../../lib/train/engine.ts";
import { parseConfig } from "../../lib/config/load.ts";
import { assertClose, factors, fixtureJson, FixtureTensors, tokensOf, uniformAdapters } from "./harness.ts";

const DIR = new URL("../fixtures/families/opt", import.meta.url).pathname;
const fixture = fixtureJson("opt");
const samples: Tokens[] = fixture.samples.map(tokensOf);
const config = loadModelConfig(DIR);

function layOut(dev: Device): Engine {
  const adapters = uniformAdapters(fixture.targets, fixture.rank, fixture.alpha);
  const limits = limitsFor(samples, samples, { batchSize: samples.length, padded: false });
  return new Engine(dev, config, { adapterOf: adapters, weightDtype: "f32", limits, purpose: "train", staged: samples.length });
}

function load(dev: Device, engine: Engine, dir: string = DIR): void {
  using checkpoint = openCheckpoint(dir);
  engine.allocate();
  loadWeights(dev, engine.model, checkpoint);
}

Deno.test("the gradient of every sample's loss is that of transformers + PEFT", () => {
  using dev = Device.open({ threads: 2 });
  using engine = layOut(dev);
  load(dev, engine);
  using tensors = new FixtureTensors("opt");
  const P = engine.parameters;
  engine.setAdapters(tensors.theta("initial", engine.adapters, P));
  const { sums, tokens } = engine.stageGradients(samples, { first: 0, observe: () => null });
  assertClose("losses", Array.from(sums, (sum, i) => sum / tokens[i]!), fixture.losses, 1e-6);
  const staged = engine.staging!.read(samples.length);
  for (let i = 0; i < samples.length; i++) {
    const expected = tensors.theta(`gradient/${i}`, engine.adapters, P);
    for (const { name, offset, length } of factors(engine.adapters)) {
      const part = (all: Float32Array, row = 0) => all.subarray(row * P + offset, row * P + offset + length);
      assertClose(`sample ${i}: ${name}`, part(staged, i), part(expected), 2e-5);
    }
  }
});

Deno.test("a segment beyond the learned positions is refused before memory is taken", () => {
  using dev = Device.open({ threads: 1 });
  const make = (positions: number) =>
    new Engine(dev, config, {
      adapterOf: uniformAdapters(fixture.targets, fixture.rank, fixture.alpha),
      weightDtype: "f32",
      limits: { tokens: 80, rows: 80, segments: 1, positions },
      purpose: "evaluate",
      staged: 0,
    });
  make(64)[Symbol.dispose]();
  assertThrows(() => make(65), RangeError, "Cannot hold 65 positions: the model has learned 64");
});

Deno.test("ten LoRA steps follow transformers + PEFT", () => {
  using dev = Device.open({ threads: 2 });
  using engine = layOut(dev);
  const P = engine.parameters;
  const { lr: peak, betas, eps, weightDecay, clip, schedule, warmup } = fixture.optimizer;
  const adam = new Adam(dev, engine.arena, P, { betas, eps, weightDecay, clip, placement: "device" });
  load(dev, engine);
  using tensors = new FixtureTensors("opt");
  const initial = tensors.theta("initial", engine.adapters, P);
  engine.setAdapters(initial);
  const tokens = samples.reduce((sum, sample) => sum + labelledTokens(sample), 0);
  for (const step of fixture.steps) {
    const { sums } = engine.sumGradients(samples, { per: "token", tokens });
    const lr = learningRate(step.step, { lr: peak, schedule, warmup, total: fixture.steps.length });
    const gradNorm = adam.update(engine.theta, engine.grad!.rows, lr);
    engine.refresh();
    assertClose(`step ${step.step}: loss`, [sums.reduce((a, b) => a + b, 0) / tokens], [step.loss], 1e-5);
    assertClose(`step ${step.step}: gradient norm`, [gradNorm], [step.gradNorm], 1e-4);
  }
  const theta = engine.getAdapters(), final = tensors.theta("final", engine.adapters, P);
  assertClose("adapters", theta, final, 1e-4);
  const moved = (theta: Float32Array) => theta.map((value, j) => value - initial[j]!);
  assertClose("movement of the adapters", moved(theta), moved(final), 2e-3);
});

Deno.test("'all-linear' names every matrix that PEFT adapts, and adapters go to PEFT's keys and back", () => {
  using dev = Device.open({ threads: 1 });
  const { config: settings } = parseConfig(
    "model: m\noutput: o\ndata: { train: { path: t } }\nadapter: { rank: 4, alpha: 8 }\n",
    "test",
    [],
  );
  const limits = { tokens: 8, rows: 8, segments: 1, positions: 8 };
  const all = adapterOf(settings.adapter, config);
  using engine = new Engine(dev, config, { adapterOf: all, weightDtype: "f32", limits, purpose: "train", staged: 0 });
  using tensors = new FixtureTensors("opt");
  const P = engine.parameters, theta = tensors.theta("final", engine.adapters, P);
  const dir = Deno.makeTempDirSync();
  try {
    const out = join(dir, "adapter");
    writePeftAdapter(out, toPeft(theta, engine.adapters, { model: DIR, adapter: settings.adapter }));
    using file = openSafetensors(join(out, "adapter_model.safetensors"));
    const keys = tensors.names.filter((name) => name.startsWith("final/")).map((name) => name.slice("final/".length));
    assertEquals([...file.tensors.keys()].sort(), keys.sort());
    assertEquals(JSON.parse(Deno.readTextFileSync(join(out, "adapter_config.json"))).target_modules, fixture.targets);
    assertEquals(fromPeft(readPeftAdapter(out), engine.adapters, { P, config, dir: out }), theta);
  } finally {
    Deno.removeSync(dir, { recursive: true });
  }
  const wrong = { ...settings.adapter, targets: ["o_proj"] };
  assertThrows(
    () => adapterOf(wrong, config),
    UserError,
    "Cannot use adapter.targets: the model has no matrix 'o_proj'. Did you mean 'q_proj'? Names: q_proj, k_proj, v_proj, out_proj, fc1, fc2",
  );
});

Deno.test('a checkpoint whose names lack "model." is the same model', () => {
  const dir = Deno.makeTempDirSync();
  try {
    {
      using file = openSafetensors(join(DIR, "model.safetensors"));
      const bare = [...file.tensors].map(([name, { dtype, shape, bytes }]): TensorData => {
        const data = new Uint8Array(bytes);
        file.read(name, data);
        return { name: name.replace("model.", ""), dtype, shape, data };
      });
      writeSafetensors(join(dir, "model.safetensors"), bare, { format: "pt" });
    }
    const losses = (from: string) => {
      using dev = Device.open({ threads: 1 });
      using engine = layOut(dev);
      load(dev, engine, from);
      engine.setAdapters(new Float32Array(engine.parameters));
      return engine.evaluate(samples).sums;
    };
    assertEquals(losses(dir), losses(DIR));
  } finally {
    Deno.removeSync(dir, { recursive: true });
  }
});

Deno.test("rows are tokenised as transformers does: </s> first, and last as well", () => {
  const tokenizer = loadTokenizer(DIR);
  assertEquals([tokenizer.bosId, tokenizer.eosId, tokenizer.padId, tokenizer.addsBos], [2, 2, 1, true]);
  const { tokenizer: texts } = JSON.parse(Deno.readTextFileSync(join(DIR, "expected.json")));
  for (const { text, ids, plain } of texts) {
    assertEquals([...tokenizer.encode(text)], plain, text);
    const row = encodeSample({ prompt: text, response: "in" }, tokenizer, { maxLength: 64, appendEos: true, mode: "standard" });
    assertEquals("ids" in row && [...row.ids], [...ids, ...tokenizer.encode("in"), 2], text);
  }
});
