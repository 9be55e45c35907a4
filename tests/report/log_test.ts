/** The lines of a long run: few are kept, and the totals are those of all. */
import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import type { MetricsLine } from "../../lib/report/input.ts";
import { RunLog } from "../../lib/report/log.ts";

function* passes(count: number): Generator<MetricsLine> {
  for (let step = 1; step <= count; step++) {
    yield {
      step,
      kind: step % 10 === 0 ? "validation" : "train",
      loss: step % 100 === 1 ? null : step,
      tokens: 3,
      seconds: step / 10,
      memory_bytes: step === 5 ? 99 : 7,
      ...step % 10 === 0 ? {} : { max_weight: 0.5, source_weights: { a: [1, 0.25], b: [2, 0.75] } as const },
      ...step % 1000 === 500 ? { skipped: true, fault: "its loss is NaN" } : step % 1000 === 501 ? { skipped: true } : {},
    };
  }
}

Deno.test("a short log is kept line by line", () => {
  const lines = [...passes(50)];
  const log = new RunLog(lines);
  assertEquals(log.lines.map(({ step }) => step), lines.map(({ step }) => step));
  assertEquals(log.lines.map(({ loss }) => loss), lines.map(({ loss }) => loss));
});

Deno.test("of a long log at most 4,096 lines a kind are kept, each the mean of its neighbours; the totals are of all lines", () => {
  const log = new RunLog(passes(100_000));
  const { totals, lines } = log;
  assertEquals(totals, {
    train: { batches: 90_000, tokens: 270_000 },
    validation: { batches: 10_000, tokens: 30_000 },
    evaluations: 0,
    skipped: 100,
    faulty: 100,
    step: 100_000,
    seconds: 10_000,
    loss: 99_999,
    memory_bytes: 99,
  });
  const train = lines.filter(({ kind }) => kind === "train");
  assert(train.length > 2048 && train.length <= 4096, `${train.length} lines`);
  assert(lines.every(({ step }, i) => i === 0 || lines[i - 1]!.step <= step), "out of order");
  // Losses are the steps: means of neighbours stay on that line, but for those with a loss that is not known.
  for (const { step, loss } of train) assert(Math.abs(step - loss!) < 3, `step ${step}, loss ${loss}`);
  const [samples, weight] = train[0]!.source_weights!.b!;
  assertAlmostEquals(weight / samples, 0.375);
  assertAlmostEquals(train.at(-1)!.max_weight!, 0.5);
});

Deno.test("evaluations stay as they are", () => {
  const evaluation = { step: 3, kind: "test evaluation", loss: 1, accuracy: 0.5, samples: 8 };
  const log = new RunLog([...passes(5), evaluation]);
  assertEquals([log.lines.find(({ kind }) => kind === "test evaluation"), log.totals.evaluations], [evaluation, 1]);
});
