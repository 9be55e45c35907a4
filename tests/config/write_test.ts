import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { parseConfig } from "../../lib/config/load.ts";
import { allPaths } from "../../lib/config/problems.ts";
import { configJsonSchema, writeConfig } from "../../lib/config/write.ts";

const base = "model: m\noutput: o\ndata: { train: { path: t }, validation: { path: v, format: prompt-completion } }\n";

Deno.test("a written configuration reads back as the same one (property)", () => {
  const set = fc.oneof(
    fc.constantFrom(
      "train.epochs=2.5",
      "train.steps=30",
      "reweight.preset=reference",
      "reweight.preset=paper",
      "adapter.targets=[q_proj]",
    ),
    fc.constantFrom(
      "reweight.method=mix",
      "data.test={path: x, limit: 3}",
      "data.validation=null",
      "data.train.fields.input=null",
    ),
    fc.double({ min: 1e-12, max: 10, noNaN: true }).map((lr) => `optimizer.lr=${lr}`),
    fc.nat().map((seed) => `seed=${seed}`),
    fc.string({ minLength: 1 }).map((path) => `output=${JSON.stringify(path)}`),
    fc.string({ minLength: 1 }).map((path) => `data.train.path=${JSON.stringify(path)}`),
  );
  let valid = 0;
  fc.assert(fc.property(fc.array(set, { maxLength: 5 }), (sets) => {
    let config;
    try {
      config = parseConfig(base, "c", sets).config;
    } catch {
      return; // sets that contradict each other
    }
    valid++;
    assertEquals(parseConfig(writeConfig(config, ["a comment"]), "written").config, config);
  }));
  assert(valid > 20, `only ${valid} valid configurations`);
});

Deno.test("a written configuration has every key of the schema", () => {
  const text = writeConfig(parseConfig(base, "c", ["data.test.path=x"]).config);
  const missing = allPaths().filter((path) => !path.includes("fields")).filter((path) =>
    !new RegExp(`^ *${path.at(-1)}:`, "m").test(text)
  );
  assertEquals(missing, []);
});

interface JsonSchema {
  description?: string;
  properties?: Record<string, JsonSchema>;
  anyOf?: JsonSchema[];
  additionalProperties?: boolean;
  required?: string[];
}

Deno.test("the JSON Schema describes every key, asks for model, output and data only, and allows no unknown key", () => {
  const schema = configJsonSchema() as JsonSchema;
  assertEquals(schema.required, ["model", "output", "data"]);
  const visit = (node: JsonSchema, path: string) => {
    if (node.properties) assertEquals(node.additionalProperties, false, path);
    for (const [key, child] of Object.entries(node.properties ?? {})) {
      assert(child.description, `${path}.${key} has no description`);
      visit(child, `${path}.${key}`);
    }
    for (const child of node.anyOf ?? []) visit(child, path);
  };
  visit(schema, "");
});
