import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { escapeHtml, markup } from "../../lib/report/html.ts";
import { renderReport, type ReportInput, type SampleLine } from "../../lib/report/report.ts";

const EVIL = `</pre><script>alert("x")</script><img src=x onerror='y'>&amp;`;

function input({ weighed = true, text = "say" }: { weighed?: boolean; text?: string } = {}): ReportInput {
  const samples = Array.from({ length: 30 }, (_, i): SampleLine => ({
    id: `${text}-${i}`,
    prompt: `${text} prompt ${i}`,
    response: `${text} response ${i}`,
    source: `${text} source ${i % 3}`,
    seen: 2,
    weight: weighed ? i / 60 : null,
    similarity: weighed ? i - 15 : null,
    loss: 3 - i / 30,
  }));
  return {
    title: `run ${text}`,
    facts: [["Model", `${text} model`], ["Steps", "20"]],
    metrics: [
      ...Array.from({ length: 20 }, (_, i) => ({
        step: i + 1,
        kind: i % 5 === 0 ? "validation" : "train",
        loss: i === 7 ? null : 5 - i / 10,
        ...weighed && i % 5 !== 0 ? { effective_sample_size: 3.5 } : {},
      })),
      { step: 20, kind: "validation evaluation", loss: 2.5 },
      { step: 20, kind: "test evaluation", loss: 2.25 },
    ],
    samples,
    batchSize: 4,
    config: `model: ${text}\n`,
  };
}

/** Headings, in order. */
const headings = (page: string) => [...page.matchAll(/<h2>(.*?)<\/h2>/g)].map(([, heading]) => heading);

Deno.test("the report of a weighted run has curves, weights, sources and samples at both ends", () => {
  const page = renderReport(input());
  assertEquals(headings(page), [
    "Loss",
    "Effective sample size",
    "Weights",
    "Sources",
    "Most useful samples",
    "Least useful samples",
  ]);
  assertStringIncludes(page, "<title>run say · metalora</title>");
  assertStringIncludes(page, "<dt>Model</dt><dd>say model</dd>");
  assertStringIncludes(page, "all validation data: 2.5000");
  assertStringIncludes(page, "test data: 2.2500");
  assertEquals(page.split("<svg").length - 1, 3);
  const ids = [...page.matchAll(/<h3>say-(\d+) /g)].map(([, id]) => Number(id));
  assertEquals(ids, [29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  assertStringIncludes(page, "weight 1.93 × even share · similarity 14 · last loss 2.033 · seen 2 times");
  // Sources by their mean: i % 3 = 2 has 2, 5, … 29, on average 15.5 / 60 × 4.
  assertEquals(
    [...page.matchAll(/<tr><td>(.*?)<\/td><td class="n">(\d+)<\/td><td class="n">(.*?)<\/td>/g)].map((m) => m.slice(1)),
    [
      ["say source 2", "10", "1.03"],
      ["say source 1", "10", "0.97"],
      ["say source 0", "10", "0.90"],
    ],
  );
});

Deno.test("the report of a run without weights shows the samples with the highest and lowest loss", () => {
  const page = renderReport(input({ weighed: false }));
  assertEquals(headings(page), ["Loss", "Samples with the highest loss", "Samples with the lowest loss"]);
  assertEquals([...page.matchAll(/<h3>say-(\d+) /g)].map(([, id]) => Number(id)).slice(8, 12), [8, 9, 29, 28]);
});

Deno.test("a report of few samples shows none of them twice, and an empty one is still a page", () => {
  const few = input();
  const page = renderReport({ ...few, samples: few.samples.slice(0, 12) });
  assertEquals(page.split("<article>").length - 1, 12);
  const empty = renderReport({ ...few, samples: [], metrics: [] });
  assertEquals(headings(empty), ["Loss"]);
  assertStringIncludes(empty, "No values.");
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
