/** `metalora report`, on the folders of real runs. */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { workspace } from "../e2e/harness.ts";

const GUIDED = ["reweight.method=meta-lora", "train.steps=12", "checkpoints.every=5"];

Deno.test("report makes the very page again that a run made, and without that page all but what only the run knew", async () => {
  using space = workspace();
  await space.train("out", GUIDED);
  const page = space.read("out/report.html"), before = space.tree("out");
  for (const heading of ["Weight over time", "Sources", "Overlap of the data", "Cost", "Most useful samples"]) {
    assertStringIncludes(page, `<h2>${heading}</h2>`);
  }
  assertStringIncludes(page, "No sample and no prompt is in two data sets");
  assertEquals((await space.ok("report", "out")).out, "wrote out/report.html\n");
  assertEquals([space.read("out/report.html"), space.tree("out")], [page, before]);
  Deno.removeSync(space.file("out/report.html"));
  const { out } = await space.ok("report", "run.yaml", "--set", "output=out", "--json");
  assertEquals(JSON.parse(out), {
    report: "out/report.html",
    samples: 20,
    lines: space.jsonl("out/metrics.jsonl").length,
    notes: [],
  });
  const bare = (text: string) =>
    text.replace(/<meta name="metalora-run".*?>\n/, "").replace(/<div><dt>(Device|Finished)<.*?<\/div>\n/g, "")
      .replace(/ \(planned .*?\)/, "");
  assertEquals(bare(space.read("out/report.html")), bare(page));
});

Deno.test("report works while texts are gone, for a run that was killed, and into another file", async () => {
  using space = workspace();
  await space.train("out", GUIDED);
  Deno.renameSync(space.file("train.jsonl"), space.file("moved.jsonl"));
  Deno.removeSync(space.file("out/adapter"), { recursive: true });
  Deno.writeTextFileSync(space.file("out/metrics.jsonl"), '{"step": 13, "ki', { append: true });
  const { err } = await space.ok("report", "out", "--output", "page.html");
  assertMatch(err, /^Texts of samples, lengths and overlaps are missing: Cannot read the data train\.jsonl/);
  assertStringIncludes(err, "The run is not complete: it has no adapter yet.");
  const page = space.read("page.html");
  assertStringIncludes(page, "<h2>Most useful samples</h2>");
  assertStringIncludes(page, "<dt>Steps</dt><dd>12 in ");
  assert(!page.includes("<h2>Weight and length</h2>"));
  space.write("train.jsonl", space.jsonl("moved.jsonl").slice(5));
  const changed = await space.ok("report", "out");
  assertStringIncludes(changed.err, "train.jsonl is not what it was: 5 samples of the run are not in it.");
});

Deno.test("report of a retraining is that of its current release, and of no run says so", async () => {
  using space = workspace();
  await space.ok("retrain", "run.yaml", "--threads=1", "--device=cpu");
  for (const what of ["run.yaml", "out"]) {
    assertEquals((await space.ok("report", what)).out, "wrote out/current/report.html\n");
  }
  Deno.mkdirSync(space.file("empty"));
  const elsewhere = await space.run("report", "out", "--output", "/proc/x.html");
  const advice = "programs may not write there. Choose another place";
  assertEquals([elsewhere.code, elsewhere.err], [1, `metalora: Cannot write /proc/x.html: ${advice}\n`]);
  const { code, err } = await space.run("report", "empty");
  assertEquals([code, err], [
    2,
    "metalora: Cannot make a report of empty: it has no config.yaml. Name the output folder of a run\n",
  ]);
});
