import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { HistoryRows, MOST_EVALUATIONS, MOST_ROWS } from "../../lib/status/history.ts";
import { EDGES, RECENT, WeightCounts } from "../../lib/status/histogram.ts";
import { recallRun } from "../../lib/status/recall.ts";
import { type History, snapshotSchema } from "../../lib/status/schema.ts";
import { RunStatus, type StatusEvent } from "../../lib/status/snapshot.ts";
import { UsefulSamplesTracker } from "../../lib/status/useful.ts";
import type { BatchSample } from "../../lib/train/events.ts";
import { FakeClock, FakeRun } from "./fake_run.ts";

/** A status after events, and the documents that all events in between led to. */
function follow(events: Iterable<StatusEvent>, { samples = false } = {}) {
  const { now, wall } = new FakeClock();
  const status = new RunStatus({ samples, now, wall });
  const states: string[] = [];
  for (const event of events) {
    status.apply(event);
    const { state } = snapshotSchema.parse(status.snapshot());
    if (states.at(-1) !== state) states.push(state);
  }
  return { status, states };
}

Deno.test("the state follows the run: it evaluates, then saves, then trains on", () => {
  const run = new FakeRun({ steps: 200 });
  const { states } = follow([...run.until(200), run.finished()]);
  const round = ["training", "evaluating", "saving"];
  assertEquals(states, [...round, ...round, "training", "finished"]);
});

Deno.test("a run that is told to stop is stopping until it is over", () => {
  const run = new FakeRun();
  const ending = { kind: "stopped", step: 6, checkpoint: "/home/ada/runs/x/checkpoints/6" } as const;
  const events: StatusEvent[] = [...run.until(5), { type: "stopping" }, run.stepped(6), run.saved(6), {
    type: "finished",
    ending,
  }];
  const { status, states } = follow(events);
  assertEquals(states, ["training", "stopping", "stopped"]);
  assertEquals(status.snapshot().message, "Stopped at step 6; --resume continues from there");
});

Deno.test("plain LoRA has no weights and no effective sample size", () => {
  const { status } = follow(new FakeRun({ method: "none" }).until(30));
  const { weights, effective_sample_size, method, validation_batch_loss } = status.snapshot();
  assertEquals([weights, effective_sample_size, method, validation_batch_loss], [null, null, "none", null]);
  assert(status.history().effective_share.every((share) => share === null));
});

Deno.test("skipped batches are counted, their faults told and numbers that are none become null", () => {
  const run = new FakeRun();
  const fault = { loss: NaN, gradNorm: null, skipped: true, fault: "its loss is NaN" };
  const { status } = follow([...run.until(5), run.stepped(5, fault), run.stepped(5, { ...fault, fault: null, loss: 1 })]);
  const { skipped_batches, last_fault, step, loss, loss_smoothed, grad_norm } = status.snapshot();
  assertEquals([skipped_batches, last_fault, step, loss], [2, "its loss is NaN", 5, 1]);
  assert(Number.isFinite(loss_smoothed) && grad_norm! > 0);
  assert(!/NaN|Infinity/.test(JSON.stringify(status.history())));
});

Deno.test("a resumed run counts its steps from the checkpoint and its time from the beginning", () => {
  const run = new FakeRun({ steps: 400 });
  const clock = new FakeClock();
  const status = new RunStatus({ now: clock.now, wall: clock.wall });
  status.apply(run.started({ resumedAt: 200 }));
  assertEquals([status.snapshot().step, status.snapshot().resumed_at, status.snapshot().seconds_left], [200, 200, null]);
  status.apply(run.stepped(201));
  const first = status.snapshot();
  assertEquals(first.tokens_per_second, 6350, "the time before the resumption is not that of one step");
  assertEquals([first.elapsed_seconds, first.seconds_left], [100.5, 99.5]);
});

Deno.test("a resumed run recalls its log up to the checkpoint, whatever has happened to it", () => {
  const output = Deno.makeTempDirSync();
  try {
    const run = new FakeRun({ steps: 400 });
    const started = run.started({ resumedAt: 20 });
    const event = { ...started, config: { ...started.config, output } };
    assertEquals(recallRun(event), { passes: [], evaluations: [] });
    const line = (step: number) => ({ step, kind: "train", loss: step === 3 ? null : 3 - step / 100, lr: 1e-4, grad_norm: 1 });
    const weighted = { ...line(10), effective_sample_size: 2, tokens_per_second: 50 };
    const evaluated = {
      step: 20,
      kind: "validation evaluation",
      loss: 2,
      perplexity: 7.4,
      accuracy: 0.5,
      samples: 200,
      tokens: 9,
    };
    const lines = [line(3), weighted, { ...line(11), kind: "validation" }, "damaged", null, evaluated, line(21)];
    const text = lines.map((each) => each === "damaged" ? '{"step":' : JSON.stringify(each)).join("\n");
    Deno.writeTextFileSync(`${output}/metrics.jsonl`, text + '\n{"step": 22, "kind"');
    const status = new RunStatus();
    status.recall(recallRun(event));
    status.apply(event);
    const { step, loss, validation_loss, effective_share, evaluations } = status.history();
    assertEquals([step, loss, validation_loss], [[3, 10, 11], [null, 2.9, null], [null, null, 2.89]]);
    assertEquals([effective_share[1], evaluations.length], [0.5, 1]);
    assertEquals(snapshotSchema.parse(status.snapshot()).evaluations[0]!.accuracy, 0.5);
  } finally {
    Deno.removeSync(output, { recursive: true });
  }
});

Deno.test("the speed is that of the last seconds, not of the whole run", () => {
  const run = new FakeRun();
  const passes = (from: number, tokens: number) =>
    Array.from({ length: 100 }, (_, i) => run.stepped(from + i, { tokens, seconds: (from + i) / 2 }));
  const { status } = follow([run.started(), ...passes(1, 500), ...passes(101, 1000)]);
  assertAlmostEquals(status.snapshot().tokens_per_second!, 2000, 20);
  // An evaluation of a minute is no slow step.
  status.apply(run.evaluated("validation", 200));
  status.apply(run.stepped(201, { tokens: 1000, seconds: 160 }));
  status.apply(run.stepped(202, { tokens: 1000, seconds: 160.5 }));
  assertAlmostEquals(status.snapshot().tokens_per_second!, 2000, 20);
});

Deno.test("the history of a long run stays within its rows and keeps its means", () => {
  const run = new FakeRun({ steps: 20_000, method: "none" });
  const history = new HistoryRows();
  let sum = 0;
  for (let step = 1; step <= 20_000; step++) {
    const event = run.stepped(step);
    sum += event.loss;
    history.add({ ...event, tokensPerSecond: 100, effectiveShare: null });
  }
  const columns = history.columns();
  assertEquals(columns.stride, 64);
  assert(columns.step.length <= MOST_ROWS && columns.step.length > MOST_ROWS / 4);
  assertEquals(columns.step.at(-1), 20_000);
  assert(columns.step.every((step, i) => i === 0 || step > columns.step[i - 1]!));
  // Every row but the last stands for 64 passes.
  const weighted = columns.loss.reduce<number>(
    (total, loss, i) => total + loss! * (i < columns.loss.length - 1 ? 64 : 20_000 % 64),
    0,
  );
  assertAlmostEquals(weighted / 20_000, sum / 20_000, 1e-4);
});

Deno.test("evaluations are thinned evenly, validation and test together", () => {
  const run = new FakeRun({ steps: 5000 });
  const history = new HistoryRows();
  for (let step = 1; step <= 1000; step++) {
    for (const name of ["validation", "test"] as const) {
      const { loss, perplexity, accuracy, samples } = run.evaluated(name, step).evaluation;
      history.evaluated({ name, step, loss, perplexity, accuracy, samples });
    }
  }
  const { evaluations }: Pick<History, "evaluations"> = history.columns();
  assert(evaluations.length <= MOST_EVALUATIONS && evaluations.length > MOST_EVALUATIONS / 3);
  const of = (name: string) => evaluations.filter((each) => each.name === name).map(({ step }) => step);
  assertEquals(of("validation"), of("test"));
  const gaps = of("test").map((step, i, all) => step - (all[i - 1] ?? 1 - 16));
  assertEquals(new Set(gaps), new Set([16]));
});

const sample = (index: number, weight: number): BatchSample => ({
  index,
  id: `s${index}`,
  source: null,
  loss: 1,
  weight,
  similarity: 0,
  prompt: "p".repeat(500),
  response: "🦙".repeat(500),
});

Deno.test("weights fall into the bins of their multiple of the even share", () => {
  const counts = new WeightCounts();
  assertEquals(counts.value, null);
  counts.add([sample(0, 0.25), sample(1, 0.25), sample(2, 0.25), sample(3, 0.25)]); // 1× each
  counts.add([sample(0, 1), sample(1, 0), sample(2, 0), sample(3, 0)]); // 4× and 0×
  const third = 1 / 3; // 3 × 1/3 must not round into the next bin
  counts.add([sample(0, third), sample(1, third), sample(2, third)]);
  const { edges, counts: bins, recent, zeros, total, sum } = counts.value!;
  assertEquals(edges, EDGES);
  assertEquals([bins[EDGES.indexOf(1)], bins.at(-1), bins[0], zeros, total, sum], [7, 1, 3, 3, 11, 11]);
  assertEquals(recent, bins);
});

Deno.test("the recent histogram forgets what lies further back", () => {
  const counts = new WeightCounts();
  const batch = (share: number) => [sample(0, share / 2), sample(1, share / 2)];
  for (let i = 0; i < RECENT; i++) counts.add(batch(0.5));
  for (let i = 0; i < RECENT / 2; i++) counts.add(batch(2));
  const { recent, counts: all } = counts.value!;
  assertEquals([recent[EDGES.indexOf(2)], recent.reduce((a, b) => a + b, 0)], [RECENT, RECENT]);
  assertEquals([all[EDGES.indexOf(0.5)], all[EDGES.indexOf(2)]], [2 * RECENT, RECENT]);
});

Deno.test("the ends among many samples are the true ones, with short texts", () => {
  const n = 5000;
  const tracker = new UsefulSamplesTracker(n, (text) => text);
  const mean = (index: number) => (index * 2654435761 >>> 0) / 2 ** 32;
  for (let round = 0; round < 3; round++) {
    for (let first = 0; first < n; first += 8) {
      tracker.add(Array.from({ length: 8 }, (_, i) => sample(first + i, mean(first + i) / 8)));
    }
  }
  const sorted = Array.from({ length: n }, (_, i) => i).sort((a, b) => mean(b) - mean(a)).map((i) => `s${i}`);
  const { most, least } = tracker.value;
  assertEquals(most.map(({ id }) => id), sorted.slice(0, 10));
  assertEquals(least.map(({ id }) => id), sorted.slice(-10).reverse());
  assertAlmostEquals(most[0]!.weight, mean(Number(most[0]!.id.slice(1))), 1e-9);
  assertEquals(most[0]!.seen, 3);
  assertEquals([Array.from(most[0]!.prompt!).length, Array.from(most[0]!.response!).length], [240, 240]);
  assert(most[0]!.response!.isWellFormed());
});

Deno.test("a sample that loses its weight leaves the most useful ones", () => {
  const tracker = new UsefulSamplesTracker(100, (text) => text);
  for (let i = 0; i < 50; i++) tracker.add([sample(i, i < 5 ? 1 : 0.5)]);
  assertEquals(tracker.value.most.slice(0, 5).map(({ id }) => id).sort(), ["s0", "s1", "s2", "s3", "s4"]);
  tracker.add([sample(0, 0)]);
  tracker.add([sample(0, 0)]);
  assert(!tracker.value.most.some(({ id }) => id === "s0"));
  assertEquals(tracker.value.least[0]!.id, "s0");
});
