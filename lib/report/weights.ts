/** What weights say about samples: their distribution, sources, length, and the samples at both ends. */
import { histogram, number } from "./charts.ts";
import { type Html, markup } from "./html.ts";
import type { SampleLine } from "./input.ts";
import { bar, sampleList, SHOWN } from "./samples.ts";

const SOURCES = 25;

/** A sample that was weighed. */
export type Weighed = SampleLine & { readonly weight: number };

/** Weights are shown as multiples of an even share, 1 / batch size: above 1 is more than its share. */
export function weightSections(samples: readonly Weighed[], batchSize: number): Html {
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
${lengthSection(samples, batchSize)}
<section><h2>Most useful samples</h2>${sampleList(ranked.slice(0, SHOWN), batchSize)}</section>
<section><h2>Least useful samples</h2>${sampleList(ranked.slice(SHOWN).slice(-SHOWN).reverse(), batchSize)}</section>`;
}

function sourceSection(samples: readonly Weighed[], batchSize: number): Html {
  const groups = new Map<string, { count: number; seen: number; sum: number; total: number }>();
  for (const { source, weight, seen } of samples) {
    const { count, seen: before, sum, total } = groups.get(source ?? "") ?? { count: 0, seen: 0, sum: 0, total: 0 };
    groups.set(source ?? "", {
      count: count + 1,
      seen: before + seen,
      sum: sum + weight * batchSize,
      total: total + weight * seen,
    });
  }
  if (groups.size < 2) return markup``;
  const rows = [...groups].map(([name, { sum, ...each }]) => ({ name: name || "(none)", ...each, mean: sum / each.count }));
  rows.sort((a, b) => b.count - a.count);
  const shown = rows.slice(0, SOURCES).sort((a, b) => b.mean - a.mean);
  const most = Math.max(1e-12, ...shown.map(({ mean }) => mean));
  const seen = rows.reduce((sum, row) => sum + row.seen, 0), total = rows.reduce((sum, row) => sum + row.total, 0);
  const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
  const rest = rows.length - shown.length;
  return markup`<section><h2>Sources</h2>
<p>Share of seen: how much of the training data that passed came from there. Share of weight: how much of the learning did.</p>
<div class="wide"><table><thead><tr><th>source</th><th class="n">samples</th><th class="n">mean weight / even share</th><th class="n">share of seen</th><th class="n">share of weight</th><th class="share"></th></tr></thead><tbody>${
    shown.map((row) =>
      markup`<tr><td>${row.name}</td><td class="n">${row.count.toLocaleString("en")}</td><td class="n">${
        row.mean.toFixed(2)
      }</td><td class="n">${percent(row.seen / Math.max(1, seen))}</td><td class="n">${
        percent(row.total / Math.max(1e-12, total))
      }</td>${bar(row.mean / most)}</tr>\n`
    )
  }</tbody></table></div>${rest > 0 ? markup`<p>And ${rest} smaller sources.</p>` : markup``}</section>`;
}

const GROUPS = 5;

/**
 * Whether weights follow the length of the response: a similarity of gradients can favour short or long answers for no other
 * reason. Spearman's ρ of length and weight; below 1.96/√(n − 1) chance alone explains it in 95 of 100 runs.
 */
function lengthSection(samples: readonly Weighed[], batchSize: number): Html {
  const known = samples.filter((sample): sample is Weighed & { length: number } => sample.length !== null);
  if (known.length < 2 * GROUPS) return markup``;
  const rho = spearman(known.map(({ length }) => length), known.map(({ weight }) => weight));
  const chance = 1.96 / Math.sqrt(known.length - 1);
  const verdict = !Number.isFinite(rho)
    ? "All are of one length or one weight: nothing to compare."
    : `Rank correlation ${rho.toFixed(2)}: ${
      Math.abs(rho) <= chance
        ? `no more than chance gives with ${known.length} samples (${chance.toFixed(2)}).`
        : `${Math.abs(rho) < 0.3 ? "weakly" : "clearly"} ${rho > 0 ? "long" : "short"} answers weigh more. ${
          Math.abs(rho) < 0.3 ? "" : "Where length says nothing about quality, try reweight.normalize: cosine. "
        }`
    }`;
  const sorted = [...known].sort((a, b) => a.length - b.length);
  const rows = Array.from({ length: GROUPS }, (_, g) => {
    const group = sorted.slice(Math.floor(g * sorted.length / GROUPS), Math.floor((g + 1) * sorted.length / GROUPS));
    const mean = group.reduce((sum, { weight }) => sum + weight * batchSize, 0) / group.length;
    return { from: group[0]!.length, to: group.at(-1)!.length, count: group.length, mean };
  });
  const most = Math.max(1e-12, ...rows.map(({ mean }) => mean));
  return markup`<section><h2>Weight and length</h2>
<p>${verdict}</p>
<div class="wide"><table><thead><tr><th>tokens of the answer</th><th class="n">samples</th><th class="n">mean weight / even share</th><th class="share"></th></tr></thead><tbody>${
    rows.map(({ from, to, count, mean }) =>
      markup`<tr><td>${from === to ? number(from) : `${number(from)} to ${number(to)}`}</td><td class="n">${
        count.toLocaleString("en")
      }</td><td class="n">${mean.toFixed(2)}</td>${bar(mean / most)}</tr>\n`
    )
  }</tbody></table></div></section>`;
}

/** Spearman's rank correlation; NaN where one side is constant. */
export function spearman(a: readonly number[], b: readonly number[]): number {
  const x = ranks(a), y = ranks(b), mean = (a.length + 1) / 2;
  let xy = 0, xx = 0, yy = 0;
  x.forEach((rank, i) => {
    const dx = rank - mean, dy = y[i]! - mean;
    xy += dx * dy;
    xx += dx * dx;
    yy += dy * dy;
  });
  return xx === 0 || yy === 0 ? NaN : xy / Math.sqrt(xx * yy);
}

/** Ranks from 1; equal values share the mean of theirs. */
function ranks(values: readonly number[]): Float64Array {
  const order = values.map((_, i) => i).sort((i, j) => values[i]! - values[j]!);
  const result = new Float64Array(values.length);
  for (let first = 0, last = 0; first < order.length; first = last) {
    while (last < order.length && values[order[last]!] === values[order[first]!]) last++;
    for (let i = first; i < last; i++) result[order[i]!] = (first + 1 + last) / 2;
  }
  return result;
}
