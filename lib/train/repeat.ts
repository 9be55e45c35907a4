/** A pass of a run once more, on fresh adapters: what a kernel reads out of place depends on shapes and ids, not on their values. */
import { openDevice } from "../devices.ts";
import type { Work } from "../repeat.ts";
import { loadRunInputs } from "./inputs.ts";
import { loadRun, makeTrainer, prepareRun } from "./run.ts";

/**
 * A validation batch where nothing is kept to compare with, and the pass itself, with its update: that of the pass before, which may be
 * where the fault arose, is no other.
 */
const PASSES = 2;

/**
 * Repeats what a run was doing, and writes nothing.
 * @throws {DeviceError} when an operator runs into a fault
 */
export function repeatTraining({ config, device, position: { before, evaluating } }: Extract<Work, { kind: "train" }>): void {
  const inputs = loadRunInputs(config);
  using dev = openDevice(device);
  const prepared = prepareRun(dev, config, inputs);
  using engine = prepared.engine;
  loadRun(dev, prepared);
  const trainer = makeTrainer(prepared);
  // The losses of trained adapters would make those of fresh ones look faulty, and a faulty batch makes no update.
  if (before) trainer.restore({ ...before, skips: 0, faults: { losses: [], row: 0, first: null } });
  for (let pass = 0; pass < PASSES && trainer.next() !== null; pass++);
  const { validation, test } = inputs.data;
  for (const dataset of evaluating ? [validation, test] : []) if (dataset) engine.evaluate(dataset.samples);
}
