// Charts of the dashboard: SVG in pixels of the screen, colours from the style sheet. page.ts puts the text of these functions into the page.
import { formatCount, formatNumber, roundTicks } from "./format.js";

/**
 * An SVG element.
 * @param {string} name @param {Record<string, string | number>} attributes @param {string} [text]
 */
export function svgElement(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  if (text !== undefined) element.textContent = text;
  return element;
}

/**
 * Where a chart draws and how values become pixels.
 * @param {Element} figure @param {number[]} xs @param {(number | null)[]} ys @param {{ zero?: boolean, most?: number }} options
 */
export function chartFrame(figure, xs, ys, { zero = false, most: atMost }) {
  const width = Math.max(240, figure.clientWidth), height = figure.clientHeight;
  const values = ys.filter((value) => value !== null);
  let least = zero ? 0 : Math.min(...values), most = atMost ?? Math.max(...values);
  if (!(most > least)) {
    [least, most] = most === 0 ? [0, 1] : zero ? [0, most * 1.2] : [least - Math.abs(least) * 0.1, most + Math.abs(most) * 0.1];
  } else if (!zero) [least, most] = [least - (most - least) * 0.06, most + (most - least) * 0.06];
  else if (atMost === undefined) most += (most - least) * 0.08;
  const ticks = roundTicks(least, most, height > 200 ? 5 : 4);
  const longest = Math.max(...ticks.map((tick) => formatNumber(tick).length));
  const left = 14 + longest * 6.6, right = 14, top = 10, bottom = 26;
  const x0 = xs[0], x1 = xs[xs.length - 1];
  const x = (value) => left + (x1 > x0 ? (value - x0) / (x1 - x0) : 0.5) * (width - left - right);
  const y = (value) => height - bottom - (value - least) / (most - least) * (height - top - bottom);
  const svg = svgElement("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
  for (const tick of ticks) {
    const at = Math.round(y(tick)) + 0.5;
    svg.append(svgElement("path", { class: "rule", d: `M${left} ${at}H${width - right}` }));
    svg.append(svgElement("text", { x: left - 8, y: at + 4, "text-anchor": "end" }, formatNumber(tick)));
  }
  return { svg, width, height, left, right, top, bottom, x, y, x0, x1 };
}

/**
 * Lines and dots over the steps of a run. Whoever points at it, or moves with the arrow keys, sees the values of a step.
 *
 * @param {HTMLElement} figure
 * @param {{ steps: number[], series: { name: string, style: string, values: (number | null)[] }[],
 *   dots?: { name: string, style: string, points: [number, number][] }[], zero?: boolean, most?: number,
 *   format?: (value: number) => string }} chart
 */
export function lineChart(figure, { steps, series, dots = [], zero, most, format = formatNumber }) {
  const points = dots.flatMap((each) => each.points);
  const ys = [...series.flatMap(({ values }) => values), ...points.map(([, value]) => value)];
  if (!ys.some((value) => value !== null)) return emptyChart(figure, "No values yet");
  const xs = steps.length > 0 ? steps : points.map(([step]) => step);
  const frame = chartFrame(figure, xs, ys, { zero, most });
  const { svg, width, height, left, right, top, bottom, x, y, x0, x1 } = frame;
  const places = roundTicks(x0, x1, Math.max(4, Math.floor(width / 110))).filter(Number.isInteger);
  for (const tick of places) {
    const anchor = x(tick) > width - right - 20 ? "end" : "middle";
    svg.append(svgElement("text", { x: x(tick), y: height - 6, "text-anchor": anchor }, formatCount(tick)));
  }
  for (const { style, values } of series) {
    let d = "", pen = "M";
    values.forEach((value, i) => {
      if (value === null) return;
      d += `${pen}${x(steps[i]).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = "L";
    });
    if (d.indexOf("L") > 0) svg.append(svgElement("path", { class: `line ${style}`, d }));
    else if (d !== "") svg.append(svgElement("path", { class: `line point ${style}`, d: `${d}h0` }));
  }
  for (const { style, points } of dots) {
    for (const [step, value] of points) {
      svg.append(svgElement("circle", { class: `dot ${style}`, cx: x(step), cy: y(value), r: 4 }));
    }
  }
  const rule = svgElement("path", { class: "cursor", d: "" });
  svg.append(rule);
  figure.replaceChildren(svg);

  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  figure.append(tip);
  const hide = () => {
    tip.hidden = true;
    rule.setAttribute("d", "");
  };
  const show = (i) => {
    figure.dataset.at = String(i);
    const at = x(steps[i]);
    rule.setAttribute("d", `M${at.toFixed(1)} ${top}V${height - bottom}`);
    const head = document.createElement("b");
    head.textContent = `step ${formatCount(steps[i])}`;
    const rows = series.filter(({ values }) => values[i] !== null).map(({ name, style, values }) =>
      chartKey(name, style, format(values[i]))
    );
    tip.replaceChildren(head, ...rows);
    tip.hidden = false;
    tip.style.left = `${Math.min(Math.max(0, at - tip.offsetWidth / 2), width - tip.offsetWidth)}px`;
  };
  const nearest = (px) => {
    const step = x0 + (px - left) / (width - left - right) * (x1 - x0);
    let best = 0;
    for (let i = 1; i < steps.length; i++) if (Math.abs(steps[i] - step) < Math.abs(steps[best] - step)) best = i;
    return best;
  };
  if (steps.length === 0) return;
  figure.onpointermove = figure.onpointerdown = (event) => show(nearest(event.clientX - figure.getBoundingClientRect().left));
  figure.onpointerleave = figure.onblur = hide;
  figure.onkeydown = ({ key }) => {
    if (key === "Escape") return hide();
    const now = Number(figure.dataset.at ?? steps.length - 1);
    if (key === "ArrowLeft") show(Math.max(0, Math.min(now, steps.length) - 1));
    if (key === "ArrowRight") show(Math.min(steps.length - 1, now + 1));
  };
}

/**
 * Bars of counts; the last one is for everything above the last edge.
 * @param {HTMLElement} figure @param {number[]} edges @param {number[]} counts @param {string} unit of the edges
 */
export function barChart(figure, edges, counts, unit) {
  const total = counts.reduce((a, b) => a + b, 0);
  if (total === 0) return emptyChart(figure, "No weights yet");
  const { svg, width, height, left, right, bottom, top, y } = chartFrame(figure, [0, 1], [0, ...counts], { zero: true });
  const room = (width - left - right) / counts.length;
  const gap = room > 9 ? 2 : 1;
  counts.forEach((count, i) => {
    if (count === 0) return;
    const from = i === 0 ? 0 : edges[i - 1];
    const range = i < edges.length
      ? `${formatNumber(from)} to ${formatNumber(edges[i])} ${unit}`
      : `more than ${formatNumber(from)} ${unit}`;
    const bar = svgElement("rect", {
      class: "column",
      x: left + i * room + gap / 2,
      y: y(count),
      width: room - gap,
      height: y(0) - y(count),
      rx: Math.min(2, room / 4),
    });
    bar.append(svgElement("title", {}, `${range}: ${formatCount(count)} samples`));
    svg.append(bar);
  });
  edges.forEach((edge, i) => {
    const at = left + (i + 1) * room;
    if (edge === 1) svg.append(svgElement("path", { class: "even", d: `M${at} ${top}V${height - bottom}` }));
    if (Number.isInteger(edge)) svg.append(svgElement("text", { x: at, y: height - 6, "text-anchor": "middle" }, `${edge}×`));
  });
  svg.append(svgElement("text", { x: left, y: height - 6, "text-anchor": "middle" }, "0"));
  figure.replaceChildren(svg);
}

/** A name with its colour, and a value. @param {string} name @param {string} style @param {string} [value] */
export function chartKey(name, style, value) {
  const key = document.createElement("span");
  key.className = `key ${style}`;
  key.textContent = name;
  if (value !== undefined) {
    const number = document.createElement("i");
    number.textContent = value;
    key.append(number);
  }
  return key;
}

/** @param {Element} figure @param {string} text */
export function emptyChart(figure, text) {
  const note = document.createElement("p");
  note.className = "none";
  note.textContent = text;
  figure.replaceChildren(note);
}
