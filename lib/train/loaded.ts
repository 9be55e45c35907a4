/** A model with a saved adapter (or none), loaded to evaluate. */
import type { Device } from "../../ffi/device.ts";
import type { Sample } from "../data/encode.ts";
import { type LoadedPeftAdapter, readPeftAdapter } from "../export/peft.ts";
import { loadWeights } from "../model/load.ts";
import { openCheckpoint } from "../tensor/checkpoint.ts";
import { adapterOfPeft, fromPeft, noAdapters } from "./adapters.ts";
import { Engine, limitsFor } from "./engine.ts";
import { requireRoom } from "./fit.ts";
import type { ModelInputs } from "./inputs.ts";
import { evaluationBytes } from "./memory.ts";

/** Samples that go through the model at once in evaluation: enough rows for the products to run at full speed. */
const EVALUATION_BATCH = 16;

/**
 * Loads a model to evaluate samples.
 * @param adapter folder of a PEFT adapter, null for the base model
 * @returns an engine that the caller owns
 * @throws {UserError} when model or adapter cannot be used
 */
export function loadToEvaluate(
  dev: Device,
  { dir, model }: ModelInputs,
  samples: readonly Sample[],
  { adapter, weightDtype }: { adapter: string | null; weightDtype: "f32" | "bf16" },
): Engine {
  using checkpoint = openCheckpoint(dir);
  const saved: LoadedPeftAdapter | null = adapter === null ? null : readPeftAdapter(adapter);
  const engine = new Engine(dev, model, {
    adapterOf: saved ? adapterOfPeft(saved) : noAdapters,
    weightDtype,
    limits: limitsFor(samples, [], { batchSize: EVALUATION_BATCH, padded: false }),
    purpose: "evaluate",
    staged: 0,
  });
  const theta = saved
    ? fromPeft(saved, engine.adapters, { P: engine.parameters, config: model, dir: adapter! })
    : new Float32Array(0);
  requireRoom("evaluate", evaluationBytes(dev, engine), [], { dev });
  engine.allocate();
  loadWeights(dev, engine.model, checkpoint);
  engine.setAdapters(theta);
  return engine;
}
