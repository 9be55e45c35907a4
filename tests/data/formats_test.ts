import { assert, assertEquals, assertThrows } from "@std/assert";
import { type Format, toExample } from "../../lib/data/formats.ts";
import { render } from "../../lib/data/template.ts";
import { UserError } from "../../lib/errors.ts";

const alpaca: Format = {
  path: "d/train.jsonl",
  format: "alpaca",
  fields: { instruction: "instruction", input: "input", output: "output" },
};
const pairs: Format = {
  path: "d/train.jsonl",
  format: "prompt-completion",
  fields: { prompt: "prompt", completion: "completion" },
};
const row = (fields: Record<string, unknown>) => ({ fields, index: 6, where: "d/train.jsonl:7" });

Deno.test("toExample() takes the parts of an alpaca row, its id and its source", () => {
  const fields = { instruction: "I", input: "X", output: "O", id: 17, source: "S", other: [] };
  assertEquals(toExample(row(fields), alpaca), { id: "17", instruction: "I", input: "X", response: "O", source: "S" });
  assertEquals(toExample(row({ instruction: "I", output: "O", id: "abc" }), alpaca).id, "abc");
  const bare = toExample(row({ instruction: "I", input: null, output: "", id: null, source: 3 }), alpaca);
  assertEquals(bare, { id: "train:6", instruction: "I", input: "", response: "", source: null });
});

Deno.test("toExample() takes renamed fields and leaves out an input that is null", () => {
  const fields = { question: "Q", context: "C", answer: "A", input: "never" };
  const renamed = { ...alpaca, fields: { instruction: "question", input: "context", output: "answer" } };
  assertEquals(toExample(row(fields), renamed), { id: "train:6", instruction: "Q", input: "C", response: "A", source: null });
  const without = { ...alpaca, fields: { instruction: "question", input: null, output: "answer" } };
  assertEquals(toExample(row(fields), without).input, "");
  assertEquals(toExample(row({ prompt: "P", completion: "C" }), pairs).instruction, "P");
});

Deno.test("toExample() names file:line, the fields that are there and the key to set", () => {
  const cases: [Record<string, unknown>, Format, string][] = [
    [
      { question: "Q", output: "O" },
      alpaca,
      'd/train.jsonl:7: Cannot use the row as alpaca: it has no field "instruction" (it has: question, output). ' +
      "Set fields.instruction of this data to the name of the field, or correct the row",
    ],
    [{ instruction: "I", output: 5 }, alpaca, 'its field "output" is a number instead of text. Set fields.output'],
    [{ instruction: "I", output: null }, alpaca, 'its field "output" is null instead of text'],
    [{ instruction: ["I"], output: "O" }, alpaca, 'its field "instruction" is a list instead of text'],
    [{ instruction: "I", input: {}, output: "O" }, alpaca, 'its field "input" is an object instead of text'],
    [{}, alpaca, "(it has: none)"],
    [{ constructor: 1 }, { ...pairs, fields: { prompt: "toString", completion: "c" } }, 'no field "toString"'],
    [
      { prompt: "P" },
      pairs,
      'Cannot use the row as prompt-completion: it has no field "completion" (it has: prompt). Set fields.completion',
    ],
    [
      { instruction: "I", output: "O" },
      { ...alpaca, fields: { instruction: "instruction", input: "context", output: "output" } },
      'no field "context"',
    ],
  ];
  for (const [fields, format, message] of cases) {
    const error = assertThrows(() => toExample(row(fields), format), UserError, message) as UserError;
    assertEquals(error.exitCode, 2);
  }
});

const example = { id: "x", instruction: "Add.", input: "", response: "3", source: null };

Deno.test("render() writes Stanford Alpaca's two prompts word for word", () => {
  assertEquals(
    render("alpaca", example).prompt,
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n" +
      "### Instruction:\nAdd.\n\n### Response:",
  );
  assertEquals(
    render("alpaca", { ...example, input: "1 2" }).prompt,
    "Below is an instruction that describes a task, paired with an input that provides further context. " +
      "Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:",
  );
  assertEquals(render("alpaca", example).response, "3");
});

Deno.test("render() puts one space behind 'Response:' for alpaca-reference, and nothing around a row for none", () => {
  assertEquals(render("alpaca-reference", example).prompt, `${render("alpaca", example).prompt} `);
  assertEquals(render("none", example), { prompt: "Add.", response: "3" });
  assertEquals(render("none", { ...example, input: "1 2" }).prompt, "Add.\n1 2");
});

Deno.test("render() leaves text alone that looks like a template", () => {
  const { prompt } = render("alpaca", { ...example, instruction: "$& {input} $1 {instruction}", input: "$$" });
  assert(prompt.includes("### Instruction:\n$& {input} $1 {instruction}\n\n### Input:\n$$\n"), prompt);
});
