/** Curves of a report: what changed from step to step. */
import { lineChart, number, type Point, type Series, smooth, thin } from "./charts.ts";
import { type Html, markup } from "./html.ts";
import type { MetricsLine } from "./input.ts";

/** Losses of batches and evaluations by step. */
export function lossSection(metrics: readonly MetricsLine[]): Html {
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
${legend(series)}</section>`;
}

/** Effective sample size of weighted batches by step; nothing for a run without weights. */
export function essSection(metrics: readonly MetricsLine[], batchSize: number): Html {
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

/** Learning rate and norm of the gradient by step. */
export function gradientSection(metrics: readonly MetricsLine[]): Html {
  const passes = metrics.filter(({ grad_norm: norm }) => typeof norm === "number");
  if (passes.length === 0) return markup``;
  const rates = passes.map(({ step, lr }): Point => [step, lr ?? NaN]);
  return markup`<section><h2>Gradient and learning rate</h2>
${
    lineChart(rawAndSmooth(passes.map(({ step, grad_norm: norm }): Point => [step, norm!]), "a step"), {
      label: "Norm of the gradient before clipping by optimizer step",
      x: "optimizer step",
      y: "norm of the gradient",
      zero: true,
    })
  }
${
    lineChart([{ name: "learning rate", style: "b", shape: "line", points: thin(rates) }], {
      label: "Learning rate by optimizer step",
      x: "optimizer step",
      y: "learning rate",
      zero: true,
    })
  }</section>`;
}

const STYLES = ["a", "b", "c", "d", "e"] as const;

/** How the weights of batches, and of the sources in them, changed; nothing for a run without weights. */
export function weightOverTimeSection(metrics: readonly MetricsLine[], batchSize: number): Html {
  const largest = metrics.flatMap(({ step, max_weight: most }) =>
    typeof most === "number" ? [[step, most * batchSize] as const] : []
  );
  if (largest.length === 0) return markup``;
  const sources = bySource(metrics, batchSize);
  const bySourceChart = sources.length < 2
    ? markup``
    : markup`<p>Mean weight of the samples of each source, as a multiple of an even share${
      sources.length > STYLES.length ? `; the ${STYLES.length} largest of ${sources.length} sources` : ""
    }. Above 1: the source got more than its share of the batches it was in.</p>
${
      lineChart(
        sources.slice(0, STYLES.length).map(({ points }, i) => ({
          name: "",
          style: STYLES[i]!,
          shape: "line",
          points: thin(smooth(points, Math.max(1, Math.round(points.length / 10)))),
        })),
        { label: "Mean weight of each source by optimizer step", x: "optimizer step", y: "weight / even share", zero: true },
      )
    }
${
      legend(
        sources.slice(0, STYLES.length).map(({ name }, i) => ({ name: name || "(no source)", style: STYLES[i]!, shape: "line" })),
      )
    }`;
  return markup`<section><h2>Weight over time</h2>
${bySourceChart}<p>Largest weight of each batch, as a multiple of an even share: 1 when all weigh the same, ${batchSize} when one sample has all the weight.</p>
${
    lineChart(rawAndSmooth(largest, "a batch"), {
      label: "Largest weight of a batch by optimizer step",
      x: "optimizer step",
      y: "weight / even share",
      zero: true,
    })
  }</section>`;
}

/** Mean weight × batch size of each source by step, the source with most samples first. */
function bySource(metrics: readonly MetricsLine[], batchSize: number): { name: string; points: Point[] }[] {
  const sources = new Map<string, { samples: number; points: Point[] }>();
  for (const { step, source_weights: weights } of metrics) {
    for (const [name, [samples, weight]] of Object.entries(weights ?? {})) {
      const source = sources.get(name) ?? { samples: 0, points: [] };
      source.samples += samples;
      source.points.push([step, weight * batchSize / samples]);
      sources.set(name, source);
    }
  }
  return [...sources].sort(([, a], [, b]) => b.samples - a.samples).map(([name, { points }]) => ({ name, points }));
}

function rawAndSmooth(points: readonly Point[], name: string): Series[] {
  return [
    { name, style: "faint", shape: "line", points: thin(points) },
    { name: "smoothed", style: "a", shape: "line", points: thin(smooth(points, Math.max(1, Math.round(points.length / 15)))) },
  ];
}

function legend(series: readonly Pick<Series, "name" | "style" | "shape">[]): Html {
  return markup`<p class="legend">${
    series.map(({ name, style, shape }) => markup`<span><i class="key ${style} ${shape}"></i>${name}</span>`)
  }</p>`;
}
