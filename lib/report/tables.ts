/** Tables of a report: what the run cost, and whether its data sets are apart. */
import { formatBytes } from "../train/memory.ts";
import { type Html, markup } from "./html.ts";
import type { OverlapCount, RunNotes } from "./input.ts";
import type { LogTotals } from "./log.ts";

const whole = (value: number) => Math.round(value).toLocaleString("en");

/** Time, tokens and memory. */
export function costSection(totals: LogTotals, notes: RunNotes | null): Html {
  const { evaluations, skipped, faulty, seconds, memory_bytes: memory } = totals;
  if (totals.train.batches + totals.validation.batches === 0) return markup``;
  const train = totals.train.tokens, validation = totals.validation.tokens;
  const share = (part: number) => `${(100 * part / Math.max(1, train + validation)).toFixed(1)} % of the tokens`;
  const rows: [string, string][] = [
    ["Training", duration(seconds)],
    ["Training batches", `${whole(totals.train.batches)} with ${whole(train)} tokens`],
    ...validation > 0
      ? [
        ["Validation batches", `${whole(totals.validation.batches)} with ${whole(validation)} tokens, ${share(validation)}`] as [
          string,
          string,
        ],
      ]
      : [],
    ["Speed", seconds > 0 ? `${whole((train + validation) / seconds)} tokens a second` : "not known"],
    ["Evaluations", whole(evaluations)],
    ["Peak memory", `${formatBytes(memory)}${notes ? ` (planned ${formatBytes(notes.planned_bytes)})` : ""}`],
    ...skipped > 0
      ? [["Batches without weight", `${whole(skipped)}: no sample resembled the validation data`] as [string, string]]
      : [],
    ...faulty > 0 ? [["Faulty batches", `${whole(faulty)}, skipped; metrics.jsonl names their samples`] as [string, string]] : [],
  ];
  return markup`<section><h2>Cost</h2>
<table><tbody>${rows.map(([name, value]) => markup`<tr><th>${name}</th><td>${value}</td></tr>\n`)}</tbody></table></section>`;
}

/** Whether data sets share samples: those measured on must be new to the model. */
export function overlapSection(overlaps: readonly OverlapCount[] | null): Html {
  if (overlaps === null) {
    return markup`<section><h2>Overlap of the data</h2><p class="none">The data cannot be read any more.</p></section>`;
  }
  if (overlaps.length === 0) return markup``;
  const worst = overlaps.filter(({ samples }) => samples > 0);
  const near = overlaps.filter(({ prompts }) => prompts > 0);
  const verdict = worst.length > 0
    ? `The ${
      worst.map(({ of, and }) => `${of} data shares samples with the ${and} data`).join(", the ")
    }: losses there look better than they are.`
    : near.length > 0
    ? "No sample is in two data sets. Some share a prompt with another answer, which may be right, or a leak."
    : "No sample and no prompt is in two data sets (upper and lower case and spaces do not count).";
  return markup`<section><h2>Overlap of the data</h2>
<p>${verdict}</p>
<div class="wide"><table><thead><tr><th>data</th><th class="n">same sample</th><th class="n">same prompt, other answer</th><th class="n">left out before</th></tr></thead><tbody>${
    overlaps.map(({ of, and, samples, prompts, leftOut }) =>
      markup`<tr><td>${of} in ${and}</td><td class="n">${whole(samples)}</td><td class="n">${whole(prompts)}</td><td class="n">${
        whole(leftOut)
      }</td></tr>\n`
    )
  }</tbody></table></div></section>`;
}

/** "45 s", "12 min", "3.2 h". */
export function duration(seconds: number): string {
  if (seconds < 120) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  return seconds < 7200 ? `${(seconds / 60).toFixed(0)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
