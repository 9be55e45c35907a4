/** The resolved configuration as YAML, and the schema as JSON Schema. */
import { stringify } from "@std/yaml";
import { z } from "zod";
import { type Config, configSchema } from "./schema.ts";

/**
 * YAML text with every key spelled out; `parseConfig` of it gives the same configuration again.
 *
 * @param comment Put on top, a line each.
 */
export function writeConfig(config: Config, comment: readonly string[] = []): string {
  const head = comment.map((line) => `# ${line}\n`).join("");
  return head + stringify(config);
}

/** JSON Schema (draft 2020-12) of a configuration file: editors complete and check with it. */
export function configJsonSchema(): Record<string, unknown> {
  return { title: "metalora configuration", ...z.toJSONSchema(configSchema, { io: "input" }) };
}
