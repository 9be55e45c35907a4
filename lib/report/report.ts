/**
 * `report.markup` of a run: one page that needs nothing else, neither network nor script. What it draws is read off the lines
 * of metrics.jsonl and weights.jsonl.
 */
import { histogram, lineChart, number, type Point, smooth, thin } from "./charts.ts";
import { Html, markup } from "./html.ts";
import { STYLE } from "./style.ts";

/** A line of metrics.jsonl, as far as the report reads it. */
export interface MetricsLine {
  readonly step: number;
  /** "train", "validation" (a batch of each) or "validation evaluation", "test evaluation". */
  readonly kind: string;
  readonly loss: number | null;
  readonly lr?: number;
  readonly effective_sample_size?: number | null;
}

/** A line of weights.jsonl with the text of its sample. */
export interface SampleLine {
  readonly id: string;
  readonly prompt: string;
  readonly response: string;
  readonly source: string | null;
  readonly seen: number;
  /** Mean weight; null: it was never weighed. */
  readonly weight: number | null;
  readonly similarity: number | null;
  readonly loss: number | null;
}

/** Everything on the page. */
export interface ReportInput {
  readonly title: string;
  /** Name and value, in the order of the page. */
  readonly facts: readonly (readonly [name: string, value: string])[];
  readonly metrics: readonly MetricsLine[];
  readonly samples: readonly SampleLine[];
  /** Samples that share a weight of 1. */
  readonly batchSize: number;
  /** The resolved configuration, YAML. */
  readonly config: string;
}

const SHOWN = 10; // samples at each end
const SOURCES = 25;
const TEXT = 700; // characters of a sample's prompt, and of its response

/** The page. */
export function renderReport(input: ReportInput): string {
  const { title, facts, metrics, samples, batchSize, config } = input;
  const weighed = samples.filter((sample): sample is Weighed => sample.weight !== null);
  const page = markup`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>${title} · metalora</title>
<style>${new Html(STYLE)}</style>
</head>
<body>
<main>
<h1>${title}</h1>
<dl class="facts">
${facts.map(([name, value]) => markup`<div><dt>${name}</dt><dd>${value}</dd></div>\n`)}</dl>
${lossSection(metrics)}
${essSection(metrics, batchSize)}
${weighed.length > 0 ? weightSections(weighed, batchSize) : lossSamples(samples)}
<details><summary>Configuration</summary><pre>${config}</pre></details>
</main>
</body>
</html>
`;
  return page.text;
}

type Weighed = SampleLine & { readonly weight: number };

function lossSection(metrics: readonly MetricsLine[]): Html {
  const of = (kind: string): Point[] =>
    metrics.flatMap((line) => line.kind === kind && line.loss !== null ? [[line.step, line.loss] as const] : []);
  const train = of("train"), batches = of("validation");
  const evaluations = of("validation evaluation"), tests = of("test evaluation");
  const last = (points: Point[]) => points.length > 0 ? ` ${points.at(-1)![1].toFixed(4)}` : "";
  const smoothed = smooth(train, Math.max(1, Math.round(train.length / 15)));
  const series = [
    { name: "a training batch", style: "faint", shape: "line", points: thin(train) },
    { name: "training, smoothed", style: "a", shape: "line", points: thin(smoothed) },
    ...batches.length > 0 ? [{ name: "a validation batch", style: "b", shape: "line", points: thin(batches) } as const] : [],
    ...evaluations.length > 0
      ? [{ name: `all validation data:${last(evaluations)}`, style: "b", shape: "dots", points: evaluations } as const]
      : [],
    ...tests.length > 0 ? [{ name: `test data:${last(tests)}`, style: "c", shape: "dots", points: tests } as const] : [],
  ] as const;
  return markup`<section><h2>Loss</h2>
${
    lineChart(series, {
      label: "Loss of training and validation by optimizer step",
      x: "optimizer step",
      y: "loss (nats a token)",
    })
  }
<p class="legend">${
    series.map(({ name, style, shape }) => markup`<span><i class="key ${style} ${shape}"></i>${name}</span>`)
  }</p></section>`;
}

function essSection(metrics: readonly MetricsLine[], batchSize: number): Html {
  const points = metrics.flatMap(({ step, effective_sample_size: size }) =>
    typeof size === "number" ? [[step, size] as const] : []
  );
  if (points.length === 0) return markup``;
  const mean = points.reduce((sum, [, size]) => sum + size, 0) / points.length;
  const series = [
    { name: "a batch", style: "faint", shape: "line", points: thin(points) },
    { name: "smoothed", style: "a", shape: "line", points: thin(smooth(points, Math.max(1, Math.round(points.length / 15)))) },
  ] as const;
  return markup`<section><h2>Effective sample size</h2>
<p>1 / Σ w² of each batch of ${batchSize}: ${batchSize} when all weigh the same, 1 when one sample has all the weight. Mean ${
    number(mean)
  }.</p>
${
    lineChart(series, { label: "Effective sample size by optimizer step", x: "optimizer step", y: "samples", zero: true })
  }</section>`;
}

/** Weights are shown as multiples of an even share, 1 / batch size: above 1 is more than its share. */
function weightSections(samples: readonly Weighed[], batchSize: number): Html {
  const ranked = [...samples].sort((a, b) => b.weight - a.weight || (b.similarity ?? 0) - (a.similarity ?? 0));
  const below = samples.filter(({ weight }) => weight * batchSize < 1).length;
  const share = Math.round(100 * below / samples.length);
  return markup`<section><h2>Weights</h2>
<p>Mean weight of each of the ${samples.length.toLocaleString("en")} samples that were weighed, as a multiple of an even share; ${
    String(share)
  } % have less than theirs.</p>
${
    histogram(samples.map(({ weight }) => weight * batchSize), {
      label: "Histogram of the samples' mean weights",
      x: "mean weight / even share",
      y: "samples",
    }, { mark: 1 })
  }</section>
${sourceSection(samples, batchSize)}
<section><h2>Most useful samples</h2>${sampleList(ranked.slice(0, SHOWN), batchSize)}</section>
<section><h2>Least useful samples</h2>${sampleList(ranked.slice(SHOWN).slice(-SHOWN).reverse(), batchSize)}</section>`;
}

function sourceSection(samples: readonly Weighed[], batchSize: number): Html {
  const groups = new Map<string, { count: number; sum: number }>();
  for (const { source, weight } of samples) {
    const group = groups.get(source ?? "") ?? { count: 0, sum: 0 };
    groups.set(source ?? "", { count: group.count + 1, sum: group.sum + weight * batchSize });
  }
  if (groups.size < 2) return markup``;
  const rows = [...groups].map(([name, { count, sum }]) => ({ name: name || "(none)", count, mean: sum / count }));
  rows.sort((a, b) => b.count - a.count);
  const shown = rows.slice(0, SOURCES).sort((a, b) => b.mean - a.mean);
  const most = Math.max(1e-12, ...shown.map(({ mean }) => mean));
  const rest = rows.length - shown.length;
  return markup`<section><h2>Sources</h2>
<table><thead><tr><th>source</th><th class="n">samples</th><th class="n">mean weight / even share</th><th></th></tr></thead><tbody>${
    shown.map(({ name, count, mean }) =>
      markup`<tr><td>${name}</td><td class="n">${count.toLocaleString("en")}</td><td class="n">${mean.toFixed(2)}</td>${
        bar(mean / most)
      }</tr>\n`
    )
  }</tbody></table>${rest > 0 ? markup`<p>And ${rest} smaller sources.</p>` : markup``}</section>`;
}

/** A bar as long as a share of the column. */
const bar = (share: number): Html => markup`<td class="share"><div style="width:${(100 * share).toFixed(1)}%"></div></td>`;

function sampleList(samples: readonly SampleLine[], batchSize: number): Html {
  if (samples.length === 0) return markup`<p class="none">There are no more samples.</p>`;
  return markup`${
    samples.map((sample) => {
      const { id, source, prompt, response, weight, similarity, loss, seen } = sample;
      const numbers = [
        ...weight === null ? [] : [`weight ${(weight * batchSize).toFixed(2)} × even share`],
        ...similarity === null ? [] : [`similarity ${number(similarity)}`],
        ...loss === null ? [] : [`last loss ${number(loss)}`],
        `seen ${seen} ${seen === 1 ? "time" : "times"}`,
        ...source === null ? [] : [source],
      ];
      return markup`<article><h3>${id} <small>${numbers.join(" · ")}</small></h3>
<pre>${cut(prompt)}<mark>${cut(response)}</mark></pre></article>
`;
    })
  }`;
}

/** Without weights, the last loss tells which samples are odd. */
function lossSamples(samples: readonly SampleLine[]): Html {
  const seen = samples.filter((sample): sample is SampleLine & { loss: number } => sample.loss !== null);
  if (seen.length === 0) return markup``;
  const ranked = [...seen].sort((a, b) => b.loss - a.loss);
  return markup`<section><h2>Samples with the highest loss</h2>
<p>This run gave no weights (reweight.method is not meta-lora). The loss is the one when the sample was last trained on.</p>
${sampleList(ranked.slice(0, SHOWN), 1)}</section>
<section><h2>Samples with the lowest loss</h2>${sampleList(ranked.slice(SHOWN).slice(-SHOWN).reverse(), 1)}</section>`;
}

function cut(text: string): string {
  const characters = Array.from(text);
  return characters.length <= TEXT
    ? text
    : `${characters.slice(0, TEXT).join("")} … (${characters.length - TEXT} more characters)`;
}
