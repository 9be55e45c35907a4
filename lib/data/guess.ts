/** Which format a data file has, read off its first row. */
import type { DataSource } from "../config/schema.ts";
import { UserError } from "../errors.ts";
import type { DataSpec } from "./dataset.ts";
import { readRows } from "./readers.ts";

const ALPACA = { format: "alpaca", fields: { instruction: "instruction", input: "input", output: "output" } } as const;
const PROMPT_COMPLETION = { format: "prompt-completion", fields: { prompt: "prompt", completion: "completion" } } as const;

/**
 * Format and fields of a file that no configuration describes.
 * @param preferred a configured source; its fields are taken where the first row has them
 * @throws {UserError} when the first row fits no format
 */
export function guessSource(path: string, preferred: DataSource | null): DataSpec {
  for (const { fields: row } of readRows(path)) {
    for (const { format, fields } of [...preferred ? [preferred] : [], ALPACA, PROMPT_COMPLETION]) {
      const answer = "output" in fields ? [fields.instruction, fields.output] : [fields.prompt, fields.completion];
      if (answer.every((name) => name in row)) return { path, limit: null, format, fields } as DataSpec;
    }
    throw new UserError(
      `Cannot use the data ${path}: its first row has the fields ${Object.keys(row).join(", ")}. ` +
        `Needed: instruction and output, or prompt and completion`,
      2,
    );
  }
  throw new UserError(`Cannot use the data ${path}: it has no rows. Give a file with at least one sample`, 2);
}
