import { assert, assertStringIncludes } from "@std/assert";
import { historySchema, snapshotSchema, stateSchema } from "../../lib/status/schema.ts";
import { TestApp } from "./harness.ts";

const text = Deno.readTextFileSync(new URL("../../docs/status.md", import.meta.url));

Deno.test("docs/status.md tells every key, state and path", async () => {
  for (const key of Object.keys(snapshotSchema.shape)) {
    assert(text.includes(`\`${key}\``) || key === "tokens_per_second_mean", `nothing tells what ${key} is`);
  }
  for (const key of Object.keys(historySchema.shape)) assertStringIncludes(text, `\`${key}\``);
  for (const state of stateSchema.options) assertStringIncludes(text, `\`${state}\``);
  using test = new TestApp({ samples: true });
  const paths = [...text.matchAll(/^\| `(\/[a-z]*)`/gm)].map(([, path]) => path!);
  assert(paths.length === 8, `${paths}`);
  for (const path of paths) {
    const response = await test.request(path);
    await response.body?.cancel();
    assert(response.status === 200, `${path}: ${response.status}`);
  }
});

Deno.test("docs/status.md names metrics that there are", async () => {
  using test = new TestApp();
  test.advance(150);
  const metrics = await (await test.request("/metrics")).text();
  const section = text.slice(text.indexOf("## Prometheus"), text.indexOf("## Who may see it"));
  const names = [...section.matchAll(/`([a-z_]+)(?:\{[^}]*\})?`/g)].map(([, name]) =>
    `metalora_${name!.replace(/^metalora_/, "")}`
  )
    .filter((name) => name !== "metalora_");
  assert(names.length > 12);
  for (const name of names) assertStringIncludes(metrics, `# TYPE ${name} `);
  for (const [name] of section.matchAll(/\bmetalora_[a-z_]+\b/g)) if (name !== "metalora_") assertStringIncludes(metrics, name);
});
