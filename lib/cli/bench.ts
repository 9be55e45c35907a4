import type { Device } from "../../ffi/device.ts";
import { DeviceError } from "../../ffi/native.ts";
import { gemm, upload2d } from "../../ffi/operators.ts";
import { parseConfig } from "../config/load.ts";
import type { Sample } from "../data/encode.ts";
import { BatchCursor } from "../data/order.ts";
import { Rng } from "../data/random.ts";
import { refusalOf, UserError } from "../errors.ts";
import { randomWeights } from "../model/load.ts";
import { modelShape, stepFlops } from "../model/shapes.ts";
import { Arena } from "../tensor/arena.ts";
import { adapterOf, initialAdapters } from "../train/adapters.ts";
import { buildTraining, unusedSettings } from "../train/build.ts";
import { requireRoom, smallerConfigs } from "../train/fit.ts";
import { formatBytes, memoryPlan, release, residentBytes, takenBytes } from "../train/memory.ts";
import { Trainer, trainerOptions } from "../train/trainer.ts";
import { type Command, jsonOption, setOption } from "./command.ts";
import { deviceOption, openDevice, threadsOption } from "./device.ts";
import { memoryTable, savings } from "./memory_table.ts";
import { printJson, printLine, printNote } from "./output.ts";

/** `metalora bench`: the time and memory of a training step on random weights of a shape. */
export const command: Command = {
  name: "bench",
  summary: "Time training steps of a model shape with random weights",
  usage: "[--model-shape NAME|DIR] [--batch N] [--length N] [--precision f32|bf16] [--method none|mix|meta-lora] [--steps N]",
  details: [
    "Every token is labelled, rank 32 on all linear layers. With --method meta-lora a validation batch of the same size comes " +
    "every 10 batches, and its share is part of the step time.",
    "mfu is the arithmetic of the step divided by its time and by the rate of one large matrix product, with weights of the same type, " +
    "measured in the same run.",
  ],
  options: [
    {
      name: "model-shape",
      value: "NAME|DIR",
      description: "Shape, or a model folder whose config.json gives it (default: smollm2-135m)",
    },
    { name: "batch", value: "N", description: "Samples a step (default: 4)" },
    {
      name: "length",
      value: "N",
      description: "Tokens a sample (default: 128, or what the model was made for where that is less)",
    },
    { name: "precision", value: "f32|bf16", description: "Type of the frozen weights (default: the device's)" },
    { name: "method", value: "METHOD", description: "none, mix or meta-lora (default: none)" },
    { name: "steps", value: "N", description: "Training batches to time, after three to warm up (default: 10)" },
    { name: "parts", description: "Also time every operator by itself, in one more step" },
    deviceOption,
    threadsOption,
    { name: "dry-run", description: "Print the memory plan and stop; 1: it does not fit" },
    setOption,
    jsonOption,
  ],
  examples: [
    ["bench --model-shape smollm2-135m --batch 4 --length 128", "A LoRA step of SmolLM2-135M"],
    ["bench --method meta-lora --json", "The same with META-LORA, as JSON"],
  ],
  run(args) {
    const shape = args.value("model-shape") ?? "smollm2-135m";
    const model = modelShape(shape);
    const batch = args.number("batch", { min: 1, max: 65536, whole: true }) ?? 4;
    const length = args.number("length", { min: 2, max: model.maxPositions, whole: true }) ?? Math.min(128, model.maxPositions);
    const steps = args.number("steps", { min: 1, whole: true }) ?? 10;
    const precision = args.value("precision") ?? "auto";
    const method = args.value("method") ?? "none";
    if (!["none", "mix", "meta-lora"].includes(method)) {
      throw new UserError(`Cannot use --method: expected none, mix or meta-lora, found '${method}'`, 2);
    }
    if (!["auto", "f32", "bf16"].includes(precision)) {
      throw new UserError(`Cannot use --precision: expected f32 or bf16, found '${precision}'`, 2);
    }
    const sets = [
      `train.precision=${precision}`,
      `train.batch_size=${batch}`,
      `reweight.method=${method}`,
      `reweight.validation.batch_size=${batch}`,
      `train.steps=${10 * (steps + 10) + 2}`,
      ...refuseOwned(args.values("set")),
    ];
    const { config } = parseConfig(BASE, "bench", sets);

    using dev = openDevice(args);
    // Planned before there are any samples: those of a batch that fits nowhere would not fit, either.
    const limits = { tokens: batch * length, rows: batch * (length - 1), segments: batch, positions: length };
    const layout = { model, limits, sumsPasses: false, adapterOf: adapterOf(config.adapter, model), padId: 0 };
    // Plans that are compared start with the same number.
    const before = { resident: residentBytes(), peak: 0 };
    const work = { saves: "nothing", data: 4 * batch * length, before } as const;
    const training = buildTraining(dev, config, layout, work);
    const { engine } = training;
    using _arena = engine;
    const plan = memoryPlan(dev, training, work);
    function* smaller() {
      for (const { settings, config: { train, optimizer } } of smallerConfigs(config)) {
        if (train.batch_size !== batch) continue; // nothing is accumulated here
        const bytes = memoryPlan(dev, buildTraining(dev, { ...config, train, optimizer }, layout, work), work).total_bytes;
        yield { settings: settings === "train.precision: bf16" ? "--precision bf16" : settings.replace(": ", "="), bytes };
      }
    }
    const requireFit = () =>
      requireRoom("run this", plan.total_bytes, smaller(), { dev, memory: config.train.memory, last: SMALLER });
    const { layout: { recompute, embedding }, options: { weightDtype } } = engine;
    for (const line of unusedSettings(dev, config, model.tied)) printNote(line);
    const title = `${shape}, ${batch} × ${length} tokens, ${weightDtype}, method ${method}, on ${dev.name}`;
    if (args.flag("dry-run")) {
      const refusal = refusalOf(requireFit);
      const problems = refusal === null ? [] : [refusal];
      if (args.flag("json")) printJson({ ...plan, recompute, embedding, would_start: refusal === null, problems });
      else {
        printLine(title);
        printLine(memoryTable(plan));
        for (const line of savings(engine.layout)) printLine(line);
      }
      if (refusal !== null) printNote(`metalora: ${refusal}`);
      return refusal === null ? 0 : 1;
    }
    requireFit();
    const samples = randomSamples(model.V, batch, length);
    engine.allocate();
    randomWeights(dev, engine.model);
    const theta = initialAdapters(engine.adapters, engine.parameters, { init: "kaiming", seed: 0 });
    engine.setAdapters(theta);
    release(theta);

    const times = timeSteps(dev, training, config, samples, { steps, parts: args.flag("parts") });
    const share = times.validation.median / config.reweight.validation.every;
    const stepMs = times.train.median + share;
    const peak = takenBytes(dev);
    const flops = stepFlops(model, {
      T: batch * length,
      R: batch * (length - 1),
      length,
      adapterParameters: 2 * engine.parameters,
    });
    engine[Symbol.dispose](); // the yardstick needs memory, too
    const yardstick = measured(() => measureGemm(dev, weightDtype));
    const result = {
      shape,
      batch,
      length,
      precision: weightDtype,
      method,
      step_ms: round(stepMs),
      step_ms_min: round(times.train.min + share),
      step_ms_max: round(times.train.max + share),
      ...(times.validation.median > 0
        ? { train_ms: round(times.train.median), validation_ms: round(times.validation.median) }
        : {}),
      tokens_per_second: Math.round(batch * length / stepMs * 1000),
      mfu: yardstick && round(flops / stepMs * 1000 / yardstick, 3),
      gemm_gflops: yardstick && Math.round(yardstick / 1e9),
      peak_memory_bytes: peak,
      planned_bytes: plan.total_bytes,
      arena_bytes: engine.arena.bytes,
      recompute,
      embedding,
      ...(times.parts ? { parts: times.parts } : {}),
      device: dev.name,
    };
    if (args.flag("json")) printJson(result);
    else {
      printLine(title);
      printLine(`  step     ${result.step_ms} ms (${result.step_ms_min} – ${result.step_ms_max} over ${steps})`);
      if (times.validation.median > 0) {
        printLine(`           of it 1/${config.reweight.validation.every} of a validation batch of ${result.validation_ms} ms`);
      }
      printLine(`  speed    ${result.tokens_per_second.toLocaleString("en")} tokens/s`);
      if (result.mfu !== null) {
        printLine(`  mfu      ${(100 * result.mfu).toFixed(1)} % of ${result.gemm_gflops} GFLOP/s, the matrix product's rate`);
      }
      const whose = dev.backend === "cuda" ? " of the GPU, all processes on it together" : "";
      printLine(`  memory   ${formatBytes(peak)}${whose}; planned ${formatBytes(plan.total_bytes)}`);
      for (const { operator, ms, calls } of times.parts ?? []) {
        printLine(`  ${operator.padEnd(22)} ${ms.toFixed(2).padStart(9)} ms  ${calls} calls`);
      }
    }
    return 0;
  },
};

/** Keys that the options decide, or that mean nothing here; --set on them would be timed as something else than it is. */
const OWNED = /^(train\.(batch_size|accumulate|steps|epochs)|reweight\.(method|validation\.batch_size)|(model|output|data)\b.*)$/;

function refuseOwned(sets: readonly string[]): readonly string[] {
  for (const set of sets) {
    const key = set.split("=")[0]!;
    if (!OWNED.test(key)) continue;
    throw new UserError(
      `Cannot use --set ${key} in bench: it takes --model-shape, --batch, --length, --steps and --method, and random data`,
      2,
    );
  }
  return sets;
}

/** What was measured, or null and a line on stderr: the step's time is known without it. */
function measured(rate: () => number): number | null {
  try {
    return rate();
  } catch (error) {
    if (!(error instanceof DeviceError) || error.lost) throw error;
    printNote(`No mfu: the matrix product that it compares with did not run. ${error.message}`);
    return null;
  }
}

/** What to do about a step that does not fit. */
const SMALLER = "lower --batch, --length or --set adapter.rank, or use a smaller shape or a larger machine";

const BASE = `
model: random
output: none
data: { train: { path: random }, validation: { path: random } }
adapter: { rank: 32 }
`;

const round = (value: number, digits = 1) => Number(value.toFixed(digits));

function randomSamples(V: number, count: number, length: number): Sample[] {
  const rng = new Rng(0, "bench");
  return Array.from({ length: count }, (_, i) => {
    const ids = new Int32Array(length).map(() => rng.below(V));
    return { id: String(i), line: i + 1, ids, labels: ids, prompt: "", response: "", source: null, truncated: false };
  });
}

/** The first runs as it is, on CUDA the second is recorded, the third replays for the first time. */
const WARM_UP = 3;

/** Device time of an operator in one step. */
interface Part {
  operator: string;
  ms: number;
  calls: number;
}

interface Times {
  min: number;
  median: number;
  max: number;
}

/** Times `steps` training batches and the validation batches between them; the first of each warms up. */
function timeSteps(
  dev: Device,
  { engine, adam, similarity }: ReturnType<typeof buildTraining>,
  config: ReturnType<typeof parseConfig>["config"],
  samples: Sample[],
  { steps, parts: byParts }: { steps: number; parts: boolean },
): { train: Times; validation: Times; parts: Part[] | null } {
  const order = (stream: string) =>
    new BatchCursor({ samples: samples.length, batchSize: samples.length, order: "sequential", seed: 0, stream });
  const data = { train: samples, validation: samples, trainOrder: order("train"), validationOrder: order("validation") };
  const trainer = new Trainer(engine, adam, similarity, data, trainerOptions(config, config.train.steps!));
  const times: Record<"train" | "validation", number[]> = { train: [], validation: [] };
  const run = trainer.run();
  let start = performance.now();
  for (let next = run.next(); !next.done; next = run.next()) {
    dev.synchronize(); // the update of the adapters included
    times[next.value.kind].push(performance.now() - start);
    if (times.train.length >= steps + WARM_UP) break;
    start = performance.now();
  }
  let parts: Part[] | null = null;
  if (byParts) {
    let kind: string | undefined;
    const profile = dev.profile(() => {
      while (kind !== "train") kind = run.next().value?.kind ?? "train";
    });
    parts = [...profile].map(([symbol, { ms, calls }]) => ({ operator: symbol.replace("ml_", ""), ms: round(ms, 3), calls }));
  }
  const summary = (values: number[]): Times => {
    const sorted = (values.length > WARM_UP ? values.slice(WARM_UP) : values.slice(-1)).sort((a, b) => a - b);
    return { min: sorted[0] ?? 0, median: sorted[Math.floor(sorted.length / 2)] ?? 0, max: sorted.at(-1) ?? 0 };
  };
  return { train: summary(times.train), validation: summary(times.validation), parts };
}

/**
 * Rate of a large product of activations and weights in FLOP/s, the yardstick of mfu: [2048,2048]·[2048,1536] on the CPU, 8192³ on
 * CUDA. The CPU multiplies bf16 weights at twice the rate of f32 ones where it has avx512bf16.
 */
function measureGemm(dev: Device, weightDtype: "f32" | "bf16"): number {
  const dtype = dev.activationDtype;
  const [M, N, K] = dev.backend === "cuda" ? [8192, 8192, 8192] as const : [2048, 1536, 2048] as const;
  using arena = new Arena();
  const a = arena.reserve("workspace", M, K, { dtype }), b = arena.reserve("workspace", N, K, { dtype: weightDtype });
  const c = arena.reserve("workspace", M, N, { dtype });
  arena.allocate(dev);
  // A product of zeros, or of numbers with few different bits, takes less power and runs faster than one of data.
  const rng = new Rng(0, "product");
  const noise = Float32Array.from({ length: 64 * K }, () => 2 * rng.uniform() - 1);
  for (const matrix of [a, b]) {
    for (let row = 0; row < matrix.rows; row += 64) {
      upload2d(dev, 64, K, new Uint8Array(noise.buffer), "f32", matrix.rowRange(row, 64));
    }
  }
  let best = Infinity;
  for (let i = 0; i < 12; i++) {
    dev.synchronize();
    const start = performance.now();
    gemm(dev, { M, N, K, a, b, c, transB: true });
    dev.synchronize();
    best = Math.min(best, performance.now() - start);
  }
  return 2 * M * N * K / (best / 1000);
}
