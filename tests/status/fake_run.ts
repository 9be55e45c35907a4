/** Events of a run that never was: the same every time, every kind of event in it. */
import { parseConfig } from "../../lib/config/load.ts";
import type { BatchSample, EvaluatedEvent, RunEvent, StartedEvent, SteppedEvent } from "../../lib/train/events.ts";

/** Settings of a {@link FakeRun}. */
export interface FakeOptions {
  readonly method?: "none" | "meta-lora";
  readonly steps?: number;
  readonly samples?: number;
  readonly batch?: number;
  readonly evalEvery?: number;
  /** Whether samples bring their texts. */
  readonly texts?: boolean;
}

/** A clock that stands still until it is told otherwise. */
export class FakeClock {
  ms = 1000;
  readonly now = () => this.ms;
  readonly wall = () => new Date(Date.UTC(2026, 0, 2, 3, 4, 5) + this.ms - 1000);
}

/** Makes events; every pass takes half a second. */
export class FakeRun {
  readonly options: Required<FakeOptions>;
  #random = 1;

  constructor(options: FakeOptions = {}) {
    this.options = { method: "meta-lora", steps: 400, samples: 3000, batch: 16, evalEvery: 100, texts: true, ...options };
  }

  /** @param resumedAt step of a checkpoint that the run continues from */
  started({ resumedAt = 0 }: { resumedAt?: number } = {}): StartedEvent {
    const { method, steps, samples, evalEvery } = this.options;
    const yaml = `
model: /srv/models/SmolLM2-135M
output: /home/ada/runs/word-problems
data: { train: { path: train.jsonl }, validation: { path: validation.jsonl }, test: { path: test.jsonl } }
train: { steps: ${steps}, eval_every: ${evalEvery} }
checkpoints: { every: 100 }
reweight: { method: ${method} }`;
    const facts = { sha256: "0".repeat(64), truncated: 0, dropped: [] };
    return {
      type: "started",
      version: "0.1.0",
      config: parseConfig(yaml, "run.yaml").config,
      device: "AMD EPYC 9R14, avx512, 8 threads",
      parameters: 4_884_480,
      steps,
      resumedAt,
      data: {
        train: { path: "train.jsonl", samples, ...facts },
        validation: { path: "validation.jsonl", samples: 200, ...facts },
        test: { path: "test.jsonl", samples: 200, ...facts },
      },
      // deno-lint-ignore no-explicit-any
      plan: { total_bytes: Math.round(3.4 * 2 ** 30) } as any,
    };
  }

  /** A pass over a training batch. */
  stepped(step: number, changes: Partial<SteppedEvent> = {}): SteppedEvent {
    const { steps, batch, method, samples: n } = this.options;
    const loss = 0.55 + 2.6 * Math.exp(-step / (steps / 6)) + 0.35 * (this.random() - 0.5);
    const samples = method === "none" ? [] : this.#batch(batch, n, loss);
    const squares = samples.reduce((sum, { weight }) => sum + weight! ** 2, 0);
    const warm = steps / 20;
    return {
      type: "stepped",
      step,
      steps,
      kind: "train",
      epoch: Math.floor(step * batch / n),
      lr: step < warm ? 5e-4 * step / warm : 2.5e-4 * (1 + Math.cos(Math.PI * (step - warm) / (steps - warm))),
      loss,
      gradNorm: 0.4 + 1.8 * Math.exp(-step / (steps / 8)) + 0.25 * this.random(),
      tokens: 3000 + Math.floor(400 * this.random()),
      tokensPerSecond: 6350,
      seconds: step * 0.5,
      memoryBytes: Math.round(2.9 * 2 ** 30),
      effectiveSampleSize: method === "none" ? null : 1 / squares,
      skipped: false,
      fault: null,
      samples,
      ...changes,
    };
  }

  /** A pass over a validation batch. */
  guided(step: number): SteppedEvent {
    const { loss } = this.stepped(step);
    return this.stepped(step, { kind: "validation", loss: loss + 0.15, effectiveSampleSize: null, samples: [] });
  }

  evaluated(name: "validation" | "test", step: number): EvaluatedEvent {
    const loss = 0.72 + 2.1 * Math.exp(-step / (this.options.steps / 5)) + (name === "test" ? 0.06 : 0);
    const accuracy = Math.round(200 * (0.62 - 0.5 * Math.exp(-step / (this.options.steps / 3)))) / 200;
    return {
      type: "evaluated",
      name,
      step,
      evaluation: { loss, perplexity: Math.exp(loss), accuracy, samples: 200, tokens: 2400 },
    };
  }

  saved(step: number): RunEvent {
    return {
      type: "saved",
      step,
      path: `/home/ada/runs/word-problems/checkpoints/${step}`,
      bytes: 58 * 2 ** 20,
      seconds: 0.2,
      best: true,
    };
  }

  finished(): RunEvent {
    const { steps } = this.options;
    const result = {
      steps,
      loss: 0.5,
      seconds: steps / 2,
      tokens_per_second: 6350,
      peak_memory_bytes: 3e9,
      output: "/home/ada/runs/x",
    };
    return { type: "finished", ending: { kind: "complete", result } };
  }

  failed(message: string): RunEvent {
    return {
      type: "finished",
      ending: { kind: "failed", message, exitCode: 1, defect: false, stack: "Error: at /home/ada/secret.ts:1" },
    };
  }

  /** The events from the start to a step. */
  *until(last: number): Generator<RunEvent> {
    yield this.started();
    for (let step = 1; step <= last; step++) {
      if (this.options.method === "meta-lora" && step % 10 === 1) yield this.guided(step);
      yield this.stepped(step);
      if (step % this.options.evalEvery !== 0) continue;
      yield this.evaluated("validation", step);
      yield this.evaluated("test", step);
      yield this.saved(step);
    }
  }

  /** The same numbers in every run of the tests. */
  random(): number {
    this.#random = (Math.imul(this.#random, 1664525) + 1013904223) >>> 0;
    return this.#random / 2 ** 32;
  }

  #batch(batch: number, n: number, loss: number): BatchSample[] {
    const raw = Array.from({ length: batch }, () => {
      const index = Math.floor(this.random() * n);
      return { index, raw: Math.max(0, 0.15 + (index % 9) / 9 + 0.5 * this.random() - (index % 7 === 3 ? 1 : 0)) };
    });
    const sum = raw.reduce((total, each) => total + each.raw, 0);
    return raw.map(({ index, raw }) => ({
      index,
      id: `mawps-${index}`,
      source: index % 7 === 3 ? "scraped" : "curated",
      loss: loss + 0.4 * (this.random() - 0.5),
      weight: raw / sum,
      similarity: raw - 0.3,
      ...(this.options.texts ? text(index) : {}),
    }));
  }
}

function text(index: number): { prompt: string; response: string } {
  const apples = 3 + index % 17, more = 2 + index % 5;
  const prompt =
    `Rachel had ${apples} apples and bought ${more} bags with ${apples} apples in each. How many apples does she have now?`;
  return { prompt, response: index % 7 === 3 ? "click here to see the answer" : `${apples + more * apples}` };
}
