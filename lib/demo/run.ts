/**
 * The demo: a model learns a command from data that is mostly wrong, plain, mixed with the validation rows, and weighted by
 * META-LORA; beside them what bounds them, the validation rows alone and the right rows only. All with the same optimizer
 * steps, and every number computed here and now.
 */
import { fileURLToPath } from "node:url";
import type { Device } from "../../ffi/device.ts";
import type { Config } from "../config/schema.ts";
import { loadConfig } from "../config/load.ts";
import type { Sample } from "../data/encode.ts";
import { type Dataset, withSamples } from "../data/dataset.ts";
import type { SampleRecord } from "../train/statistics.ts";
import { loadRunInputs, type RunInputs } from "../train/inputs.ts";
import { evaluation } from "../train/evaluation.ts";
import { loadRun, makeTrainer, prepareRun } from "../train/run.ts";
import { loadToEvaluate } from "../train/loaded.ts";
import { writeAll, writeFileAtomic } from "../tensor/atomic.ts";
import { openDevice } from "../devices.ts";
import { auc } from "./auc.ts";
import { type DemoKind, type DemoSplits, writeDemoData } from "./generate.ts";

/** What is compared; `base` is not trained. */
export const CONDITIONS = ["base", "lora", "mix", "metalora", "valonly", "ideal"] as const;
/** One of {@linkcode CONDITIONS}. */
export type Condition = typeof CONDITIONS[number];

/** One condition on one seed. */
export interface DemoResult {
  readonly condition: Condition;
  readonly seed: number;
  /** Share of the test rows that greedy decoding answers exactly. */
  readonly accuracy: number;
  /** How well the mean weights of the samples tell right rows from the others; META-LORA alone has weights. */
  readonly auc: number | null;
  readonly seconds: number;
}

const at = (path: string) => fileURLToPath(new URL(`../../${path}`, import.meta.url));

/** The base model's folder. The single binary puts its own below `output`: files inside it cannot be mapped or examined. */
function modelFolder(output: string): string {
  return Deno.build.standalone ? `${output}/model` : at("demo/model");
}

/** Unpacks the base model of the single binary; each file appears complete. */
function unpackModel(output: string): void {
  if (!Deno.build.standalone) return;
  const folder = modelFolder(output);
  Deno.mkdirSync(folder, { recursive: true });
  for (const { name } of Deno.readDirSync(at("demo/model"))) {
    const bytes = Deno.readFileSync(`${at("demo/model")}/${name}`);
    writeFileAtomic(`${folder}/${name}`, (file) => writeAll(file, bytes));
  }
}

/** The configuration of a condition; only what the condition is about differs. */
export function demoConfig(
  condition: Condition,
  { seed, output, sets = [] }: { seed: number; output: string; sets?: readonly string[] },
): Config {
  const data = `${output}/data-${seed}`;
  const method = condition === "metalora" ? "meta-lora" : condition === "mix" ? "mix" : "none";
  const { config } = loadConfig(at("configs/demo.yaml"), [
    `model=${JSON.stringify(modelFolder(output))}`,
    `output=${JSON.stringify(`${output}/${condition}-${seed}`)}`,
    `seed=${seed}`,
    ...["train", "validation", "test"].map((split) => `data.${split}.path=${JSON.stringify(`${data}/${split}.jsonl`)}`),
    `reweight.method=${method}`,
    ...sets,
  ]);
  return config;
}

/** The training rows of a condition. */
function trainingData(
  condition: Condition,
  { train, validation }: { train: Dataset; validation: Dataset },
  kinds: ReadonlyMap<string, DemoKind>,
): Dataset {
  if (condition === "valonly") return withSamples(train, validation.samples);
  if (condition === "ideal") return withSamples(train, train.samples.filter(({ id }) => kinds.get(id) === "right"));
  return train;
}

/** Runs one condition on one seed, whose data must have been written by `writeDemoData`. */
export async function runCondition(
  dev: Device,
  condition: Condition,
  { seed, output, splits, sets = [], stepped = () => {} }: {
    seed: number;
    output: string;
    splits: DemoSplits;
    sets?: readonly string[];
    stepped?: (step: number, steps: number) => void;
  },
): Promise<DemoResult> {
  const start = performance.now();
  const config = demoConfig(condition, { seed, output, sets });
  const inputs = loadRunInputs(config);
  const test = inputs.data.test!.samples;
  if (condition === "base") {
    using engine = loadToEvaluate(dev, inputs, test, { adapter: null, weightDtype: "f32" });
    const { accuracy } = evaluation(engine.evaluate(test));
    return { condition, seed, accuracy, auc: null, seconds: (performance.now() - start) / 1000 };
  }
  const kinds = new Map(splits.train.map(({ id, kind }) => [id, kind]));
  const train = trainingData(condition, { train: inputs.data.train, validation: inputs.data.validation! }, kinds);
  const chosen: RunInputs = { ...inputs, data: { ...inputs.data, train } };
  const prepared = prepareRun(dev, config, chosen);
  using engine = prepared.engine;
  loadRun(dev, prepared);
  const trainer = makeTrainer(prepared);
  let breath = performance.now();
  for (const report of trainer.run()) {
    stepped(report.step, prepared.steps);
    if (performance.now() - breath < 100) continue;
    await new Promise((resolve) => setTimeout(resolve)); // signals are heard
    breath = performance.now();
  }
  const { accuracy } = evaluation(engine.evaluate(test));
  const weighted = condition === "metalora" ? weightAuc(train.samples, trainer.statistics.records, kinds) : null;
  return { condition, seed, accuracy, auc: weighted, seconds: (performance.now() - start) / 1000 };
}

/** AUC of the mean weights at telling right rows, over the rows that were weighed at all; null where those are of one kind. */
function weightAuc(
  samples: readonly Sample[],
  records: readonly SampleRecord[],
  kinds: ReadonlyMap<string, DemoKind>,
): number | null {
  const seen = records.flatMap(({ compared, weightSum }, i) =>
    compared > 0 ? [{ weight: weightSum / compared, id: samples[i]!.id }] : []
  );
  const area = auc(seen.map(({ weight }) => weight), seen.map(({ id }) => kinds.get(id) === "right"));
  return Number.isNaN(area) ? null : area;
}

/** What `summary.json` holds: accuracies in 0..1 and the AUC as means over the seeds. */
export type DemoSummary = Record<Condition, number> & {
  /** null when no run had one. */
  auc: number | null;
  /** (metalora − mix) / (ideal − mix); null when right rows only are no better than MIX. */
  share: number | null;
  seconds: number;
  seeds: number[];
  runs: DemoResult[];
};

/** Means over the seeds. */
export function summarise(runs: readonly DemoResult[], seconds: number): DemoSummary {
  const mean = (values: number[]) => values.reduce((a, b) => a + b, 0) / values.length;
  const accuracy = (condition: Condition) => mean(runs.filter((run) => run.condition === condition).map((run) => run.accuracy));
  const means = Object.fromEntries(CONDITIONS.map((condition) => [condition, accuracy(condition)])) as Record<Condition, number>;
  const areas = runs.flatMap(({ auc }) => auc === null ? [] : [auc]);
  return {
    ...means,
    auc: areas.length > 0 ? mean(areas) : null,
    share: means.ideal > means.mix ? (means.metalora - means.mix) / (means.ideal - means.mix) : null,
    seconds,
    seeds: [...new Set(runs.map(({ seed }) => seed))],
    runs: [...runs],
  };
}

/** Runs every condition on every seed, in this thread; what else waits in it, such as a signal, has its turn between steps. */
export async function runDemo(
  { seeds, output, threads, sets = [], started = () => {}, stepped = () => {}, finished = () => {} }: {
    seeds: readonly number[];
    output: string;
    threads: number;
    sets?: readonly string[];
    started?: (condition: Condition, seed: number) => void;
    stepped?: (step: number, steps: number) => void;
    finished?: (result: DemoResult) => void;
  },
): Promise<DemoSummary> {
  const start = performance.now();
  unpackModel(output);
  using dev = openDevice({ threads });
  const runs: DemoResult[] = [];
  for (const seed of seeds) {
    const splits = writeDemoData(`${output}/data-${seed}`, seed);
    for (const condition of CONDITIONS) {
      started(condition, seed);
      const result = await runCondition(dev, condition, { seed, output, splits, sets, stepped });
      finished(result);
      runs.push(result);
    }
  }
  return summarise(runs, (performance.now() - start) / 1000);
}
