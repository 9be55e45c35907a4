/** Charts as inline SVG: no script, colours by CSS class, so that they follow the page's light and dark. */
import { type Html, markup } from "./html.ts";

/** A point, in the units of the data. */
export type Point = readonly [x: number, y: number];

/** One line (or row of dots) of a chart. */
export interface Series {
  readonly name: string;
  /** CSS class: "a" to "e" have colours of their own, "faint" is for raw values behind a smoothed line. */
  readonly style: "a" | "b" | "c" | "d" | "e" | "faint";
  readonly shape: "line" | "dots";
  readonly points: readonly Point[];
}

/** What a chart needs beside its data. */
export interface Axes {
  /** One sentence for those who cannot see it. */
  readonly label: string;
  readonly x: string;
  readonly y: string;
  /** The y axis reaches down to 0. */
  readonly zero?: boolean;
}

const WIDTH = 720, HEIGHT = 260, LEFT = 58, RIGHT = 12, TOP = 12, BOTTOM = 40;

/** Lines and dots over two linear axes. Points that are no finite numbers are left out. */
export function lineChart(series: readonly Series[], axes: Axes): Html {
  const finite = series.map((each) => ({ ...each, points: each.points.filter((point) => point.every(Number.isFinite)) }));
  const all = finite.flatMap(({ points }) => points);
  if (all.length === 0) return markup`<p class="none">No values.</p>`;
  const x = scale(all.map(([value]) => value), LEFT, WIDTH - RIGHT, "exact");
  const y = scale([...all.map(([, value]) => value), ...axes.zero ? [0] : []], HEIGHT - BOTTOM, TOP);
  const drawn = finite.map(({ style, shape, points }) =>
    shape === "line"
      ? markup`<path class="line ${style}" d="${path(points.map(([px, py]) => [x.at(px), y.at(py)]))}"/>\n`
      : markup`${
        points.map(([px, py]) => markup`<circle class="dot ${style}" cx="${px2(x.at(px))}" cy="${px2(y.at(py))}" r="4"/>\n`)
      }`
  );
  return frame(axes, [grid(x, y), ...drawn]);
}

/** Bars of counts; `mark` is a value to point out on the x axis. */
export function histogram(
  values: readonly number[],
  axes: Axes,
  { bins = Math.min(40, Math.ceil(2 * Math.sqrt(values.length))), mark }: { bins?: number; mark?: Point[0] } = {},
): Html {
  const finite = values.filter(Number.isFinite);
  if (finite.length === 0) return markup`<p class="none">No values.</p>`;
  const least = Math.min(0, minimum(finite)), most = Math.max(maximum(finite), mark ?? 0, least + 1e-12);
  const width = (most - least) / bins;
  const counts = new Array<number>(bins).fill(0);
  for (const value of finite) counts[Math.min(bins - 1, Math.floor((value - least) / width))]!++;
  const x = scale([least, most], LEFT, WIDTH - RIGHT, "exact");
  const y = scale([0, maximum(counts)], HEIGHT - BOTTOM, TOP);
  y.ticks = y.ticks.filter(Number.isInteger); // half a sample is none
  const bars = counts.map((count, i) => {
    const from = x.at(least + i * width), to = x.at(least + (i + 1) * width), top = y.at(count);
    if (count === 0) return markup``;
    const place = markup`x="${px2(from + 0.5)}" y="${px2(top)}" width="${px2(to - from - 1)}" height="${px2(y.at(0) - top)}"`;
    return markup`<rect class="bar a" ${place}><title>${count}</title></rect>\n`;
  });
  const line = mark === undefined
    ? markup``
    : markup`<path class="line mark" d="M${px2(x.at(mark))} ${TOP}V${HEIGHT - BOTTOM}"/>`;
  return frame(axes, [grid(x, y), ...bars, line]);
}

/** At most `most` points: neighbours are averaged. */
export function thin(points: readonly Point[], most = 400): Point[] {
  if (points.length <= most) return [...points];
  return Array.from({ length: most }, (_, i) => {
    const from = Math.floor(i * points.length / most), to = Math.floor((i + 1) * points.length / most);
    const part = points.slice(from, to);
    const mean = (axis: 0 | 1) => part.reduce((sum, point) => sum + point[axis], 0) / part.length;
    return [mean(0), mean(1)];
  });
}

/**
 * Moving average over a window centred on each point, at both ends over the part of it that there is: no value lies beyond those
 * that are averaged (a line through them would, and show more effective samples than a batch has), and one odd value at the end
 * draws no peak.
 */
export function smooth(points: readonly Point[], window: number): Point[] {
  const half = Math.floor(window / 2);
  const sums = [0]; // Σ y of the first points
  points.forEach(([, y], i) => sums.push(sums[i]! + y));
  return points.map(([x], i) => {
    const from = Math.max(0, i - half), to = Math.min(points.length, i + half + 1);
    return [x, (sums[to]! - sums[from]!) / (to - from)];
  });
}

/** Values 1, 2 or 5 × 10^n apart that lie between two numbers, about `count` of them. */
export function ticks(least: number, most: number, count = 5): number[] {
  const rough = (most - least) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough * (1 - 1e-9))!;
  const first = Math.ceil(least / step - 1e-9);
  return Array.from(
    { length: Math.floor(most / step + 1e-9) - first + 1 },
    (_, i) => Number(((first + i) * step).toPrecision(12)),
  );
}

interface Scale {
  at(value: number): number;
  ticks: number[];
}

/** A linear map onto pixels; the ends move out to round values, unless they must stay. */
function scale(values: readonly number[], from: number, to: number, ends: "round" | "exact" = "round"): Scale {
  let least = minimum(values), most = maximum(values);
  if (least === most) [least, most] = least === 0 ? [0, 1] : [least - Math.abs(least) / 2, most + Math.abs(most) / 2];
  let marks = ticks(least, most);
  if (ends === "round" && marks.length > 1) {
    const step = marks[1]! - marks[0]!;
    if (least < marks[0]! - 1e-9 * step) least = marks[0]! - step;
    if (most > marks.at(-1)! + 1e-9 * step) most = marks.at(-1)! + step;
    marks = ticks(least, most);
  }
  return { at: (value) => from + (value - least) / (most - least) * (to - from), ticks: marks };
}

function grid(x: Scale, y: Scale): Html {
  const bottom = HEIGHT - BOTTOM;
  const right = WIDTH - RIGHT;
  const rules = y.ticks.map((value) => {
    const at = y.at(value);
    const text = markup`<text class="tick" x="${LEFT - 8}" y="${px2(at + 4)}" text-anchor="end">${number(value)}</text>`;
    return markup`<path class="grid" d="M${LEFT} ${px2(at)}H${right}"/>${text}\n`;
  });
  const marks = x.ticks.map((value) =>
    markup`<text class="tick" x="${px2(x.at(value))}" y="${bottom + 18}" text-anchor="middle">${number(value)}</text>\n`
  );
  return markup`${rules}${marks}<path class="axis" d="M${LEFT} ${bottom}H${right}"/>\n`;
}

function frame({ label, x, y }: Axes, parts: readonly Html[]): Html {
  const xAt = markup`x="${(LEFT + WIDTH - RIGHT) / 2}" y="${HEIGHT - 4}"`;
  return markup`<div class="chart"><p class="unit">${y}</p>
<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${label}"><title>${label}</title>
${parts}<text class="name" ${xAt} text-anchor="middle">${x}</text></svg></div>`;
}

const path = (points: readonly Point[]): string => "M" + points.map(([x, y]) => `${px2(x)} ${px2(y)}`).join("L");
/** Pixels, to a tenth. */
const px2 = (value: number): string => String(Math.round(value * 10) / 10);

/** As short as can be read: 12,500 or 0.0025 or 1e-7. */
export function number(value: number): string {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e7)) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  return value.toLocaleString("en", { maximumSignificantDigits: size >= 100 ? 7 : 4 });
}

// Math.min(...values) fails beyond some 100,000 values.
const minimum = (values: readonly number[]): number => values.reduce((a, b) => Math.min(a, b), Infinity);
const maximum = (values: readonly number[]): number => values.reduce((a, b) => Math.max(a, b), -Infinity);
