/** What a report of a made-up run is made from. */
import { RunLog } from "../../lib/report/log.ts";
import type { ReportInput, SampleLine } from "../../lib/report/report.ts";

/** @param text Stands in every name and text. */
export function input({ weighed = true, text = "say" }: { weighed?: boolean; text?: string } = {}): ReportInput {
  const samples = Array.from({ length: 30 }, (_, i): SampleLine => ({
    id: `${text}-${i}`,
    prompt: `${text} prompt ${i}`,
    response: `${text} response ${i}`,
    source: `${text} source ${i % 3}`,
    length: 10 + (i * 7) % 30,
    seen: 2,
    weight: weighed ? i / 60 : null,
    similarity: weighed ? i - 15 : null,
    loss: 3 - i / 30,
  }));
  const log = new RunLog([
    ...Array.from({ length: 20 }, (_, i) => ({
      step: i + 1,
      kind: i % 5 === 0 ? "validation" : "train",
      loss: i === 7 ? null : 5 - i / 10,
      lr: 1e-3,
      grad_norm: 2 - i / 20,
      tokens: 100,
      seconds: i + 1,
      memory_bytes: 2 ** 27,
      ...weighed && i % 5 !== 0
        ? {
          effective_sample_size: 3.5,
          max_weight: 0.4,
          source_weights: { [`${text} one`]: [1, 0.4], [`${text} two`]: [3, 0.6] } as const,
        }
        : {},
    })),
    { step: 20, kind: "validation evaluation", loss: 2.5 },
    { step: 20, kind: "test evaluation", loss: 2.25 },
  ]);
  return {
    title: `run ${text}`,
    facts: [["Model", `${text} model`], ["Steps", "20"]],
    metrics: log.lines,
    totals: log.totals,
    samples,
    overlaps: [{ of: "training", and: "test", samples: 0, prompts: 2, leftOut: 3 }],
    notes: { version: text, device: `${text} device`, planned_bytes: 2 ** 28, finished: "2030-01-02T03:04:05.678Z" },
    batchSize: 4,
    config: `model: ${text}\n`,
  };
}
