import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import type { Dataset } from "../../lib/data/dataset.ts";
import { escapeHtml, markup } from "../../lib/report/html.ts";
import { countOverlaps } from "../../lib/report/overlap.ts";
import { readNotes, renderReport } from "../../lib/report/report.ts";
import { spearman } from "../../lib/report/weights.ts";
import { RunLog } from "../../lib/report/log.ts";
import { input } from "./input.ts";

const EVIL = `</pre><script>alert("x")</script><img src=x onerror='y'>&amp;`;

/** The part of a page below a heading. */
const section = (page: string, heading: string) => page.split(`<h2>${heading}</h2>`)[1]!.split("</section>")[0]!;
const cellsOf = (cells: string) => [...cells.matchAll(/<td class="n">(.*?)<\/td>/g)].map(([, cell]) => cell!);

/** Headings, in order. */
const headings = (page: string) => [...page.matchAll(/<h2>(.*?)<\/h2>/g)].map(([, heading]) => heading);

Deno.test("the report of a weighted run has curves, weights, sources and samples at both ends", () => {
  const page = renderReport(input());
  assertEquals(headings(page), [
    "Loss",
    "Gradient and learning rate",
    "Weight over time",
    "Effective sample size",
    "Weights",
    "Sources",
    "Weight and length",
    "Most useful samples",
    "Least useful samples",
    "Overlap of the data",
    "Cost",
  ]);
  assertStringIncludes(page, "<title>run say · metalora</title>");
  assertStringIncludes(page, "<dt>Model</dt><dd>say model</dd>");
  assertStringIncludes(page, "all validation data: 2.5000");
  assertStringIncludes(page, "test data: 2.2500");
  assertEquals(page.split("<svg").length - 1, 7);
  const ids = [...page.matchAll(/<h3>say-(\d+) /g)].map(([, id]) => Number(id));
  assertEquals(ids, [29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  assertStringIncludes(page, "weight 1.93 × even share · similarity 14 · last loss 2.033 · seen 2 times");
  // Sources by their mean: i % 3 = 2 has 2, 5, … 29, on average 15.5 / 60 × 4.
  const sources = section(page, "Sources");
  assertEquals(
    [...sources.matchAll(/<tr><td>(.*?)<\/td>(.*?)<td class="share">/g)].map(([, name, cells]) => [name, ...cellsOf(cells!)]),
    [
      ["say source 2", "10", "1.03", "33.3 %", "35.6 %"],
      ["say source 1", "10", "0.97", "33.3 %", "33.3 %"],
      ["say source 0", "10", "0.90", "33.3 %", "31.0 %"],
    ],
  );
});

Deno.test("the report of a run without weights shows the samples with the highest and lowest loss", () => {
  const page = renderReport(input({ weighed: false }));
  assertEquals(headings(page), [
    "Loss",
    "Gradient and learning rate",
    "Samples with the highest loss",
    "Samples with the lowest loss",
    "Overlap of the data",
    "Cost",
  ]);
  assertEquals([...page.matchAll(/<h3>say-(\d+) /g)].map(([, id]) => Number(id)).slice(8, 12), [8, 9, 29, 28]);
});

Deno.test("a report of few samples shows none of them twice, and an empty one is still a page", () => {
  const few = input();
  const page = renderReport({ ...few, samples: few.samples.slice(0, 12) });
  assertEquals(page.split("<article>").length - 1, 12);
  const empty = renderReport({ ...few, samples: [], metrics: [], totals: new RunLog().totals, overlaps: [], notes: null });
  assertEquals(headings(empty), ["Loss"]);
  assertStringIncludes(empty, "No values.");
});

Deno.test("weight over time has a line a source, in the order of their size", () => {
  const part = section(renderReport(input()), "Weight over time");
  assertEquals([...part.matchAll(/<i class="key (\w+) line"><\/i>(.*?)<\/span>/g)].map((m) => m.slice(1)), [
    ["a", "say two"],
    ["b", "say one"],
  ]);
  // 0.4 of a batch of 4 on one sample: 1.6 times an even share; 0.6 on three: 0.8 times.
  const ys = (style: string) =>
    new Set(
      /<path class="line STYLE" d="M([^"]*)"/.exec(part.replace(`line ${style}"`, 'line STYLE"'))![1]!.split("L").map((p) =>
        p.split(" ")[1]
      ),
    );
  assertEquals([ys("a").size, ys("b").size], [1, 1]);
  const [two, one] = ["a", "b"].map((style) => Number([...ys(style)][0]));
  assert(Math.abs((220 - two!) / (220 - one!) - 0.8 / 1.6) < 0.01, `${two}, ${one}`);
});

Deno.test("the length check tells which way weights lean, and that chance leans a little, too", () => {
  const base = input();
  const verdict = (length: (i: number) => number) =>
    /<p>(.*?)<\/p>/.exec(
      section(renderReport({ ...base, samples: base.samples.map((s, i) => ({ ...s, length: length(i) })) }), "Weight and length"),
    )![1]!;
  assertEquals(
    verdict((i) => 2 * i),
    "Rank correlation 1.00: clearly long answers weigh more. Where length says nothing about quality, try reweight.normalize: cosine. ",
  );
  assertMatch(verdict((i) => 100 - i), /^Rank correlation -1\.00: clearly short answers weigh more\./);
  assertMatch(verdict((i) => (i * 7) % 30), /: no more than chance gives with 30 samples \(0\.36\)\.$/);
  assertEquals(verdict(() => 5), "All are of one length or one weight: nothing to compare.");
  // Data that is gone has no lengths.
  const gone = renderReport({ ...base, samples: base.samples.map((sample) => ({ ...sample, length: null })), overlaps: null });
  assert(!headings(gone).includes("Weight and length"));
  assertStringIncludes(section(gone, "Overlap of the data"), "The data cannot be read any more.");
});

Deno.test("spearman() is the correlation of ranks, ties sharing theirs", () => {
  assertEquals(spearman([1, 2, 3], [10, 100, 1000]), 1);
  assertEquals(spearman([1, 2, 3], [3, 2, 1]), -1);
  assertEquals(spearman([1, 2, 3], [4, 4, 4]), NaN);
  // Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: 4.5 / √(4.5 · 5).
  assertEquals(spearman([1, 2, 2, 4], [1, 3, 2, 4]).toFixed(12), "0.948683298051");
});

Deno.test("cost and overlaps are tables of what the lines say", () => {
  const page = renderReport(input());
  const rows = Object.fromEntries(
    [...section(page, "Cost").matchAll(/<tr><th>(.*?)<\/th><td>(.*?)<\/td>/g)].map((m) => m.slice(1)),
  );
  assertEquals(rows, {
    "Training": "20 s",
    "Training batches": "16 with 1,600 tokens",
    "Validation batches": "4 with 400 tokens, 20.0 % of the tokens",
    "Speed": "100 tokens a second",
    "Evaluations": "2",
    "Peak memory": "128 MiB (planned 256 MiB)",
  });
  const overlap = section(page, "Overlap of the data");
  assertStringIncludes(overlap, "No sample is in two data sets. Some share a prompt with another answer");
  assertEquals(cellsOf(overlap), ["0", "2", "3"]);
  const shared = renderReport({ ...input(), overlaps: [{ of: "training", and: "test", samples: 1, prompts: 0, leftOut: 0 }] });
  assertStringIncludes(shared, "The training data shares samples with the test data: losses there look better than they are.");
});

Deno.test("a page carries what only the run knew, whatever it says", () => {
  const { notes } = input({ text: EVIL });
  assertEquals(readNotes(renderReport(input({ text: EVIL }))), notes);
  assertEquals(readNotes("<html></html>"), null);
});

Deno.test("countOverlaps() finds samples and prompts that two data sets share", () => {
  const set = (texts: [string, string][], dropped = 0): Dataset => ({
    path: "x",
    sha256: "",
    samples: texts.map(([prompt, response], i) => ({
      id: `${i}`,
      line: i + 1,
      source: null,
      ids: new Int32Array(),
      labels: new Int32Array(),
      prompt,
      response,
      truncated: false,
    })),
    dropped: dropped ? [{ reason: "also in the test data", count: dropped }] : [],
    truncated: 0,
  });
  const train = set([["a", "1"], ["B  b", "2"], ["c", "3"], ["d", "4"]], 7);
  const test = set([["b B", "2"], ["c", "other"], ["e", "5"]]);
  assertEquals(countOverlaps({ train, validation: null, test }), [
    { of: "training", and: "test", samples: 1, prompts: 1, leftOut: 7 },
  ]);
});

Deno.test("text from data never becomes markup", () => {
  const page = renderReport(input({ text: EVIL }));
  assert(!/<script|<img/i.test(page));
  assertStringIncludes(
    page,
    "&lt;/pre&gt;&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&lt;img src=x onerror=&#39;y&#39;&gt;&amp;amp;",
  );
  // The same tags as with harmless text: nothing was opened or closed by the data.
  const tags = (text: string) => [...text.matchAll(/<\/?[a-z][a-z0-9]*/gi)].map(([tag]) => tag);
  assertEquals(tags(page), tags(renderReport(input())));
});

Deno.test("every tag of the report is closed, and it loads nothing", () => {
  const page = renderReport(input());
  const open: string[] = [];
  for (const [, close, name, self] of page.matchAll(/<(\/?)([a-z][a-z0-9]*)[^>]*?(\/?)>/g)) {
    if (self || name === "meta") continue;
    if (!close) open.push(name!);
    else assertEquals(open.pop(), name);
  }
  assertEquals(open, []);
  assert(!/https?:|src=|href=|@import|url\(/.test(page));
  assertStringIncludes(page, `content="default-src 'none'; style-src 'unsafe-inline'"`);
  assertStringIncludes(page, "prefers-color-scheme: dark");
});

Deno.test("a long text is cut between characters", () => {
  const base = input();
  const page = renderReport({ ...base, samples: [{ ...base.samples[0]!, prompt: "🦙".repeat(1000) }] });
  assertStringIncludes(page, `<pre>${"🦙".repeat(700)} … (300 more characters)<mark>`);
});

Deno.test("escapeHtml() replaces what HTML gives a meaning to, and control characters", () => {
  assertEquals(escapeHtml(`<a href="x" b='y'>&\0\x1b\n\t`), "&lt;a href=&quot;x&quot; b=&#39;y&#39;&gt;&amp;��\n\t");
  assertEquals(markup`<i>${"<"}${[markup`<b>${1}</b>`, markup`&nbsp;`]}</i>`.text, "<i>&lt;<b>1</b>&nbsp;</i>");
});
