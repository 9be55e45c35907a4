/**
 * The text around a sample.
 *
 * @module
 */

import type { Example } from "./formats.ts";

/**
 * Name of a prompt:
 * - `alpaca`: the two prompts of Stanford Alpaca (https://github.com/tatsu-lab/stanford_alpaca), word for word. They end in
 *   "### Response:", with nothing behind it; the answer follows at once.
 * - `alpaca-reference`: the same with one space behind "### Response:", as in the META-LORA authors' code (algorithms §1.6).
 * - `none`: the text of the row as it stands; where there is an input, it follows on a new line.
 */
export type TemplateName = "alpaca" | "alpaca-reference" | "none";

/** What the model is given, and what it must answer. */
export interface Rendered {
  readonly prompt: string;
  readonly response: string;
}

const WITH_INPUT = "Below is an instruction that describes a task, paired with an input that provides further context. " +
  "Write a response that appropriately completes the request.\n\n" +
  "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:";

const WITHOUT_INPUT = "Below is an instruction that describes a task. " +
  "Write a response that appropriately completes the request.\n\n" +
  "### Instruction:\n{instruction}\n\n### Response:";

/** Puts the template around an example. */
export function render(template: TemplateName, { instruction, input, response }: Example): Rendered {
  if (template === "none") return { prompt: input === "" ? instruction : `${instruction}\n${input}`, response };
  const parts: Record<string, string> = { instruction, input };
  // A function, and one pass: text such as "$&" or "{input}" inside a row stays what it is.
  const prompt = (input === "" ? WITHOUT_INPUT : WITH_INPUT).replace(/\{(instruction|input)\}/g, (_, part) => parts[part]!);
  return { prompt: template === "alpaca-reference" ? `${prompt} ` : prompt, response };
}
