/**
 * The dashboard as one page without a single further file: style and script are inside, and the page's policy names their hashes, so
 * that a browser runs these and nothing else.
 */
import { createHash } from "node:crypto";
import * as chart from "./chart.js";
import * as dashboard from "./dashboard.js";
import * as format from "./format.js";
import { STYLE } from "./style.ts";

// A function's text is what stands in its file: the files stay plain JavaScript that is formatted, linted and tested.
const functions = [format, chart, dashboard].flatMap((module) => Object.values(module) as ((...args: never[]) => unknown)[]);
const SCRIPT = `"use strict";\n${functions.map(String).join("\n")}\ndashboard();\n`;

const ICON = "data:image/svg+xml," + encodeURIComponent(
  `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="4" fill="#2459c4"/>` +
    `<path d="M3 4.5C6 4.5 6 11.5 13 11.5" fill="none" stroke="#fff" stroke-width="2" stroke-linecap="round"/></svg>`,
);

/** A number with a name and a line below. */
const tile = (id: string, name: string, more = "") =>
  `<div class="card" id="${id}-tile"><dt>${name}</dt><dd class="value" id="${id}">–</dd><dd class="more" id="${id}-more"></dd>${more}</div>`;

const chartCard = (id: string, name: string, note: string, more = "") =>
  `<section class="card" id="${id}-card"${more}><div class="head"><h2>${name}</h2><small id="${id}-note">${note}</small></div>` +
  `<figure id="${id}-chart" tabindex="0" aria-label="${name}"></figure></section>`;

const METER = `<dd class="meter" id="meter" hidden><i id="meter-fill"></i></dd>`;

const HTML = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>metalora</title>
<link rel="icon" href="${ICON}">
<style>${STYLE}</style>
</head>
<body data-link="waiting">
<header>
<div class="title"><h1 id="name">metalora</h1><p id="what"></p></div>
<div class="signs"><span class="link" id="link" role="status">Connecting</span><span class="pill" id="state" role="status" data-state="starting">Starting</span></div>
</header>
<main>
<noscript><p class="card">This page needs JavaScript. The same numbers are at <a href="status">/status</a>.</p></noscript>
<section class="card run" aria-label="Progress">
<div class="top"><div><span id="percent">0 %</span><span id="steps"></span></div><div><span id="elapsed"></span><span id="left"></span></div></div>
<div class="track" id="bar" role="progressbar" aria-label="Steps made" aria-valuemin="0" aria-valuemax="100" aria-valuenow="0"><i id="fill"></i></div>
<p class="message" id="message" hidden></p>
</section>
<dl class="tiles">
${tile("loss", "Loss")}
${tile("lr", "Learning rate")}
${tile("speed", "Speed")}
${tile("memory", "Memory", METER)}
${tile("effective", "Effective samples")}
${tile("epoch", "Epoch")}
</dl>
<div class="charts">
<section class="card wide"><div class="head"><h2>Loss</h2><div class="keys" id="loss-keys"></div></div>
<figure id="loss-chart" tabindex="0" aria-label="Loss"></figure></section>
${chartCard("effective", "Effective sample size", "% of the batch", " hidden")}
${chartCard("weights", "Weights", "", " hidden")}
${chartCard("lr", "Learning rate", "")}
${chartCard("speed", "Speed", "tokens a second")}
${chartCard("norm", "Gradient norm", "before clipping")}
<section class="card evaluations"><div class="head"><h2>Evaluations</h2><small>newest of each data set</small></div>
<p class="none" id="evaluation-none">No evaluation yet</p>
<div class="scroll" id="evaluation-table" hidden><table><thead><tr><th scope="col">Data</th><th scope="col">Step</th><th scope="col">Loss</th><th scope="col" class="spare">Perplexity</th>
<th scope="col">Exact</th><th scope="col">Samples</th></tr></thead><tbody id="evaluation-rows"></tbody></table></div></section>
</div>
<div class="samples" id="samples" hidden>
<section class="card"><h2>Most useful samples</h2><ol id="most"></ol></section>
<section class="card"><h2>Least useful samples</h2><ol id="least"></ol></section>
</div>
<section class="card" aria-label="About this run"><dl id="facts"></dl></section>
</main>
<footer><a href="status">status</a><a href="metrics">metrics</a><a href="schema">schema</a></footer>
<script>${SCRIPT}</script>
</body>
</html>
`;

const sha256 = (text: string) => `'sha256-${createHash("sha256").update(text).digest("base64")}'`;

/** The dashboard and the Content-Security-Policy to serve it with. */
export const page: { readonly html: string; readonly policy: string } = {
  html: HTML,
  policy: [
    "default-src 'none'",
    `script-src ${sha256(SCRIPT)}`,
    `style-src ${sha256(STYLE)}`,
    "connect-src 'self'",
    "img-src data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
  ].join("; "),
};
