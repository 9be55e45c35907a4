/** Similarities of all training samples to the whole validation set, at one adapter. */
import type { Device } from "../../ffi/device.ts";
import type { Config } from "../config/schema.ts";
import { readPeftAdapter } from "../export/peft.ts";
import { loadWeights } from "../model/load.ts";
import { ExactSimilarity } from "../reweight/similarity.ts";
import { openCheckpoint } from "../tensor/checkpoint.ts";
import { adapterOf, adapterOfPeft, fromPeft, initialAdapters } from "./adapters.ts";
import { weightDtype } from "./build.ts";
import { Engine, limitsFor } from "./engine.ts";
import { requireFinite } from "./evaluation.ts";
import { requireRoom } from "./fit.ts";
import type { RunInputs } from "./inputs.ts";
import { evaluationBytes } from "./memory.ts";
import { requireModules } from "./run.ts";

/**
 * u_i = ⟨∇ℓ_i, mean_j ∇ℓ_j⟩ for every training sample i, over the adapter parameters of `reweight.modules`; ℓ is the mean loss
 * of a sample's labelled tokens (paper, equation 12; algorithms §5.1).
 * @returns [train.samples.length]
 * @throws {UserError} when model or adapter cannot be used
 */
export function scoreSamples(
  dev: Device,
  config: Config,
  { dir, model, data }: RunInputs,
  { adapter, progress = () => {} }: { adapter: string | null; progress?: (done: number) => void },
): Float64Array<ArrayBuffer> {
  const train = data.train.samples, validation = data.validation!.samples;
  const saved = adapter === null ? null : readPeftAdapter(adapter);
  const batch = config.train.batch_size;
  using checkpoint = openCheckpoint(dir);
  using engine = new Engine(dev, model, {
    adapterOf: saved ? adapterOfPeft(saved) : adapterOf(config.adapter, model),
    weightDtype: weightDtype(dev, config.train.precision),
    limits: limitsFor(train, validation, { batchSize: batch, padded: false }),
    purpose: "train",
    staged: batch,
  });
  requireModules({ ...config, reweight: { ...config.reweight, method: "meta-lora" } }, engine);
  const { adapters, parameters: P } = engine;
  const theta = saved
    ? fromPeft(saved, adapters, { P, config: model, dir: adapter! })
    : initialAdapters(adapters, P, { init: config.adapter.init, seed: config.seed });
  const similarity = new ExactSimilarity(dev, engine.arena, engine.model, {
    staging: engine.staging!,
    ema: 0,
    modules: config.reweight.modules,
    normalize: "none",
    adam: null,
  });
  requireRoom("score", evaluationBytes(dev, engine), [], { dev });
  engine.allocate();
  loadWeights(dev, engine.model, checkpoint);
  engine.setAdapters(theta);
  const losses = engine.sumGradients(validation, { per: "sample", samples: validation.length });
  requireFinite(losses, validation, "score");
  similarity.refresh(engine.grad!.rows);
  const scores = new Float64Array(train.length);
  for (let first = 0; first < train.length; first += batch) {
    const part = train.slice(first, first + batch);
    requireFinite(engine.stageGradients(part, { first: 0, observe: () => null }), part, "score");
    scores.set(similarity.similarities(part.length), first);
    progress(first + part.length);
  }
  return scores;
}
