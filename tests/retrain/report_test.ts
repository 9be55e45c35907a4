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

Deno.test("report and train --resume say the same of an adapter that is damaged, the dry run, too", async () => {
  using space = workspace();
  await space.train("out", ["checkpoints.every=2"]);
  Deno.truncateSync(space.file("out/adapter/adapter_model.safetensors"), 100);
  const what = "adapter_model.safetensors is missing or damaged";
  assertEquals((await space.ok("report", "out")).err, `The run has no adapter that can be used: ${what}.\n`);
  const resume = ["train", "run.yaml", "--resume", "--threads=1", "--set", "checkpoints.every=2"];
  const said = `passing over out/adapter: ${what}; continuing from step 4\n`;
  assertStringIncludes((await space.ok(...resume, "--dry-run")).err, said);
  assertStringIncludes((await space.ok(...resume)).err, said);
  assertEquals((await space.ok("report", "out")).err, "");
});

Deno.test("report names the first line that is damaged, by file and number", async () => {
  using space = workspace();
  await space.train("out", GUIDED);
  const logs = { "metrics.jsonl": space.read("out/metrics.jsonl"), "weights.jsonl": space.read("out/weights.jsonl") };
  const page = space.read("out/report.html");
  const changed = (line: string, values: object) => JSON.stringify({ ...JSON.parse(line), ...values });
  const advice = "Restore the file, or remove that line\n";
  const cases: [name: keyof typeof logs, number: number, damage: (line: string) => string, says: string][] = [
    ["weights.jsonl", 1, () => '{"a":1}', `: Cannot make a report: the line has no 'id'. ${advice}`],
    ["weights.jsonl", 20, (l) => changed(l, { weight: "x" }), `: Cannot make a report: the line has "x" as 'weight'. ${advice}`],
    ["metrics.jsonl", 2, (l) => changed(l, { loss: "x" }), `: Cannot make a report: the line has "x" as 'loss'. ${advice}`],
    ["metrics.jsonl", 3, () => '{"a":1}', `: Cannot make a report: the line has no 'kind'. ${advice}`],
    ["metrics.jsonl", 3, (l) => changed(l, { kind: "t" }), `: Cannot make a report: the line has "t" as 'kind'. ${advice}`],
    [
      "metrics.jsonl",
      2,
      (l) => changed(l, { source_weights: { odd: [1, null] } }),
      `: Cannot make a report: the line has null as 'source_weights.odd.1'. ${advice}`,
    ],
    ["metrics.jsonl", 4, () => "null", `: Cannot use the row: it is null instead of an object. ${advice}`],
    ["metrics.jsonl", 1, (l) => l.slice(0, 9), `. ${advice}`],
    ["weights.jsonl", 3, () => "garbage", `: Cannot read the data: expected a value, found "g". ${advice}`],
    ["weights.jsonl", 21, () => '{"id": "row', `: Cannot read the data: a string has no closing quote. ${advice}`],
  ];
  for (const [name, number, damage, says] of cases) {
    const lines = logs[name].split("\n");
    lines[number - 1] = damage(lines[number - 1]!);
    space.write(`out/${name}`, lines.join("\n"));
    const { code, out, err } = await space.run("report", "out");
    assertEquals([code, out, err.split("\n").length], [2, "", 2], err);
    assert(err.startsWith(`metalora: out/${name}:${number}`) && err.includes(says), err);
    space.write(`out/${name}`, logs[name]);
  }
  space.write("out/weights.jsonl", Uint8Array.of(0xff, 0xfe));
  const { err } = await space.run("report", "out");
  assertEquals(err, `metalora: out/weights.jsonl:1: Cannot read the data: it is not valid UTF-8. ${advice}`);
  space.write("out/weights.jsonl", logs["weights.jsonl"]);
  await space.ok("report", "out");
  assertEquals(space.read("out/report.html"), page);
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
  for (
    const [output, what] of [
      ["nowhere/x.html", "there is no folder nowhere. Make it first"],
      ["empty", "it is a folder. Name a file with --output"],
    ] as const
  ) {
    const { code, err } = await space.run("report", "out", "--output", output);
    assertEquals([code, err], [2, `metalora: Cannot write ${output}: ${what}\n`]);
  }
  const { code, err } = await space.run("report", "empty");
  assertEquals([code, err], [
    2,
    "metalora: Cannot make a report of empty: it has no config.yaml. Name the output folder of a run\n",
  ]);
});
