import { assert, assertEquals } from "@std/assert";
import { TestApp } from "./harness.ts";

interface Family {
  type: string;
  help: string;
  samples: { name: string; labels: Record<string, string>; value: number }[];
}

/** Reads the text format strictly: HELP, TYPE, then the samples of each metric, all in one place. */
function parse(text: string): Map<string, Family> {
  assert(text.endsWith("\n"));
  const families = new Map<string, Family>();
  let current: Family | undefined, name = "";
  for (const line of text.trimEnd().split("\n")) {
    const help = /^# HELP ([a-z_]+) (\S.*)$/.exec(line);
    if (help) {
      name = help[1]!;
      assert(!families.has(name), `${name} is there twice`);
      families.set(name, current = { type: "", help: help[2]!, samples: [] });
      continue;
    }
    const type = /^# TYPE ([a-z_]+) (gauge|counter|histogram)$/.exec(line);
    if (type) {
      assertEquals(type[1], name);
      current!.type = type[2]!;
      continue;
    }
    const match = /^([a-z_]+)(?:\{(.*)\})? (-?[\d.]+(?:e[+-]?\d+)?)$/.exec(line);
    assert(match, `no sample: ${line}`);
    assert(match[1] === name || (current!.type === "histogram" && match[1]!.replace(/_(bucket|sum|count)$/, "") === name), line);
    const labels: Record<string, string> = {};
    for (const [, key, value] of (match[2] ?? "").matchAll(/([a-z_]+)="((?:[^"\\]|\\.)*)"/g)) labels[key!] = value!;
    current!.samples.push({ name: match[1]!, labels, value: Number(match[3]) });
  }
  return families;
}

Deno.test("/metrics is Prometheus text with types and help", async () => {
  using test = new TestApp();
  test.advance(150);
  const response = await test.request("/metrics");
  assertEquals(response.headers.get("content-type"), "text/plain; version=0.0.4; charset=utf-8");
  const families = parse(await response.text());
  const value = (name: string) => families.get(`metalora_${name}`)!.samples[0]!.value;
  const snapshot = test.status.snapshot();
  assertEquals([value("steps_total"), value("planned_steps"), value("tokens_total")], [150, 400, snapshot.tokens]);
  assertEquals([value("loss"), value("learning_rate")], [snapshot.loss, snapshot.lr]);
  for (const [name, { type }] of families) assertEquals(type === "counter", name.endsWith("_total"), name);
  const state = families.get("metalora_state")!.samples;
  assertEquals(state.filter(({ value }) => value === 1).map(({ labels }) => labels.state), ["training"]);
  assertEquals(state.length, 8);
  assertEquals(families.get("metalora_evaluation_loss")!.samples.map(({ labels }) => labels.set), ["validation", "test"]);
  assertEquals(families.get("metalora_info")!.samples[0]!.labels.model, "SmolLM2-135M");
});

Deno.test("the weights are a histogram: cumulative buckets that end at the count", async () => {
  using test = new TestApp();
  test.advance(50);
  const { type, samples } = parse(await (await test.request("/metrics")).text()).get("metalora_sample_weight_ratio")!;
  assertEquals(type, "histogram");
  const buckets = samples.filter(({ name }) => name.endsWith("_bucket"));
  const sum = samples.find(({ name }) => name.endsWith("_sum"))!.value;
  const count = samples.find(({ name }) => name.endsWith("_count"))!.value;
  assertEquals([count, buckets.at(-1)!.value, buckets.at(-1)!.labels.le], [800, 800, "+Inf"]);
  assert(Math.abs(sum - 800) < 1e-6, "the weights of a batch sum to 1");
  assert(buckets.every(({ value }, i) => i === 0 || value >= buckets[i - 1]!.value));
  const edges = buckets.slice(0, -1).map(({ labels }) => Number(labels.le));
  assert(edges.every((edge, i) => i === 0 || edge > edges[i - 1]!));
});

Deno.test("before the run has started only what is known is told, and labels are escaped", async () => {
  using test = new TestApp();
  const families = parse(await (await test.request("/metrics")).text());
  assert(!families.has("metalora_loss") && !families.has("metalora_planned_steps"));
  assertEquals(families.get("metalora_steps_total")!.samples[0]!.value, 0);
  const started = test.run.started();
  const config = { ...started.config, model: 'a "model"\nof two lines' };
  test.status.apply({ ...started, config });
  test.clock.ms += 2000;
  const text = await (await test.request("/metrics")).text();
  assertEquals(parse(text).get("metalora_info")!.samples[0]!.labels.model, 'a \\"model\\"\\nof two lines');
});
