/** Adapters measured side by side on the data that a configuration holds out. */
import type { Config } from "../config/schema.ts";
import { UserError } from "../errors.ts";
import { openDevice } from "../devices.ts";
import { weightDtype } from "./build.ts";
import { type Evaluation, evaluation } from "./evaluation.ts";
import { loadRunInputs } from "./inputs.ts";
import { Interrupted, type StopFlag } from "./interrupt.ts";
import { loadToEvaluate } from "./loaded.ts";
import type { RunOptions } from "./session.ts";

/** What several adapters are worth on the same samples. */
export interface Measured {
  /** "test" where the configuration has test data, else "validation". */
  readonly data: "test" | "validation";
  readonly path: string;
  /** SHA-256 of the whole file, hexadecimal. */
  readonly sha256: string;
  /** One for each adapter, in their order; a loss may be NaN. */
  readonly evaluations: readonly Evaluation[];
}

/**
 * Measures adapters one after the other, each in the same way.
 * @param adapters Folders of PEFT adapters; null: the model without one.
 * @returns null when `stop` was raised
 * @throws {UserError} when the configuration holds nothing out, or an adapter cannot be used
 */
export function measure(
  config: Config,
  { device = {} }: RunOptions,
  adapters: readonly (string | null)[],
  stop: StopFlag,
): Measured | null {
  const inputs = loadRunInputs(config);
  const { test, validation } = inputs.data;
  const dataset = test ?? validation;
  if (!dataset) throw new UserError("Cannot compare adapters: the configuration has neither test nor validation data", 2);
  using dev = openDevice(device);
  try {
    const evaluations = adapters.map((adapter) => {
      using engine = loadToEvaluate(dev, inputs, dataset.samples, {
        adapter,
        weightDtype: weightDtype(dev, config.train.precision),
      });
      engine.beforePass = () => stop.check();
      return evaluation(engine.evaluate(dataset.samples));
    });
    return { data: test ? "test" : "validation", path: dataset.path, sha256: dataset.sha256, evaluations };
  } catch (error) {
    if (error instanceof Interrupted) return null;
    throw error;
  }
}
