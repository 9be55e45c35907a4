/**
 * `report.html` of a run: one page that needs nothing else, neither network nor script. What it draws is read off the lines
 * of metrics.jsonl and weights.jsonl.
 */
import { essSection, gradientSection, lossSection, weightOverTimeSection } from "./curves.ts";
import { Html, markup } from "./html.ts";
import type { ReportInput, RunNotes } from "./input.ts";
import { lossSamples } from "./samples.ts";
import { STYLE } from "./style.ts";
import { costSection, overlapSection } from "./tables.ts";
import { type Weighed, weightSections } from "./weights.ts";

export type { MetricsLine, ReportInput, SampleLine } from "./input.ts";

/** The page. */
export function renderReport(input: ReportInput): string {
  const { title, facts, metrics, totals, samples, overlaps, notes, batchSize, config } = input;
  const weighed = samples.filter((sample): sample is Weighed => sample.weight !== null);
  const page = markup`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
${notes ? markup`<meta name="metalora-run" content="${JSON.stringify(notes)}">\n` : markup``}<title>${title} · metalora</title>
<style>${new Html(STYLE)}</style>
</head>
<body>
<main>
<h1>${title}</h1>
<dl class="facts">
${facts.map(([name, value]) => markup`<div><dt>${name}</dt><dd>${value}</dd></div>\n`)}</dl>
${lossSection(metrics)}
${gradientSection(metrics)}
${weightOverTimeSection(metrics, batchSize)}
${essSection(metrics, batchSize)}
${weighed.length > 0 ? weightSections(weighed, batchSize) : lossSamples(samples)}
${overlapSection(overlaps)}
${costSection(totals, notes)}
<details><summary>Configuration</summary><pre>${config}</pre></details>
</main>
</body>
</html>
`;
  return page.text;
}

/** What a page that {@linkcode renderReport} made carries about its run; null where it carries nothing. */
export function readNotes(page: string): RunNotes | null {
  const content = /<meta name="metalora-run" content="([^"]*)">/.exec(page)?.[1];
  if (content === undefined) return null;
  const plain: Readonly<Record<string, string>> = { "&quot;": '"', "&#39;": "'", "&lt;": "<", "&gt;": ">", "&amp;": "&" };
  try {
    return JSON.parse(content.replace(/&(quot|#39|lt|gt|amp);/g, (entity) => plain[entity]!)) as RunNotes;
  } catch {
    return null;
  }
}
