import { assertEquals, assertNotEquals } from "@std/assert";
import {
  BASE_COMMANDS,
  DEMO_COMMAND,
  DEMO_SIZES,
  type DemoRow,
  demoRows,
  rightAnswer,
  writeDemoData,
  wrongAnswer,
} from "../../lib/demo/generate.ts";

/** Command and digits of a prompt such as "Sort up: 3917=". */
function parse(row: DemoRow): { command: string; digits: string } {
  const match = /^([A-Za-z ]+): ([0-9]{6,8})=$/.exec(row.prompt);
  if (match === null) throw new Error(`Cannot parse the prompt: ${row.prompt}`);
  return { command: match[1]!, digits: match[2]! };
}

Deno.test("rightAnswer() puts even digits ascending before odd digits ascending", () => {
  assertEquals(rightAnswer("3917204"), "0241379");
  assertEquals(rightAnswer("975331"), "133579");
  assertEquals(rightAnswer("8866420"), "0246688");
});

Deno.test("wrongAnswer() sorts the digits in descending order", () => {
  assertEquals(wrongAnswer("3917204"), "9743210");
});

Deno.test("demoRows() has the promised number of rows of each kind", () => {
  const { train, validation, test } = demoRows(3);
  const count = (kind: string) => train.filter((row) => row.kind === kind).length;
  assertEquals([train.length, count("right"), count("wrong"), count("off-task")], [1600, 400, 960, 240]);
  assertEquals([validation.length, test.length], [DEMO_SIZES.validation, DEMO_SIZES.test]);
  assertEquals([...validation, ...test].every((row) => row.kind === "right"), true);
});

Deno.test("demoRows() answers every row by the rule of its kind", () => {
  const { train, validation, test } = demoRows(4);
  for (const row of [...train, ...validation, ...test]) {
    const { command, digits } = parse(row);
    const expected = row.kind === "off-task"
      ? BASE_COMMANDS.get(command)?.(digits)
      : row.kind === "right"
      ? rightAnswer(digits)
      : wrongAnswer(digits);
    assertEquals(row.completion, expected, row.prompt);
    assertEquals(command === DEMO_COMMAND, row.kind !== "off-task", row.prompt);
    assertNotEquals(rightAnswer(digits), wrongAnswer(digits), "a row on which both rules agree");
  }
});

Deno.test("demoRows() never repeats a string of digits or an id, within a split or across them", () => {
  const { train, validation, test } = demoRows(5);
  const rows = [...train, ...validation, ...test];
  assertEquals(new Set(rows.map((row) => parse(row).digits)).size, rows.length);
  assertEquals(new Set(rows.map((row) => row.id)).size, rows.length);
});

Deno.test("demoRows() mixes the kinds, so that position tells nothing", () => {
  const { train } = demoRows(6);
  const right = train.slice(0, 800).filter((row) => row.kind === "right").length;
  // Hypergeometric: mean 200, sd 8.7; six sd away would be a broken shuffle.
  assertEquals(Math.abs(right - 200) < 52, true, `${right} of 400 right rows lie in the first half`);
});

Deno.test("demoRows() gives the same rows for the same seed and others for another", () => {
  assertEquals(demoRows(8), demoRows(8));
  assertNotEquals(demoRows(8).train[0], demoRows(9).train[0]);
  assertEquals(demoRows(0).train.length, 1600);
});

Deno.test("demoRows(0) gives the rows on which the demo's numbers were measured", () => {
  // tests/oracle/demo_prototype.py holds these numbers; when this changes, measure them again.
  const { train, validation } = demoRows(0);
  assertEquals(train.slice(0, 2), [
    { id: "train-0", prompt: "Arrange: 431704=", completion: "044137", kind: "right" },
    { id: "train-1", prompt: "Arrange: 81936579=", completion: "99876531", kind: "wrong" },
  ]);
  assertEquals(validation[0], { id: "validation-0", prompt: "Arrange: 2992590=", completion: "0225999", kind: "right" });
});

Deno.test("writeDemoData() writes JSON lines that read back as the rows it returns", () => {
  const dir = Deno.makeTempDirSync();
  try {
    const splits = writeDemoData(`${dir}/data`, 2, { ...DEMO_SIZES, train: 20, validation: 4, test: 5 });
    for (const name of ["train", "validation", "test"] as const) {
      const text = Deno.readTextFileSync(`${dir}/data/${name}.jsonl`);
      assertEquals(text.endsWith("\n"), true);
      assertEquals(text.trimEnd().split("\n").map((line) => JSON.parse(line)), splits[name]);
    }
    assertEquals([splits.train.length, splits.validation.length, splits.test.length], [20, 4, 5]);
  } finally {
    Deno.removeSync(dir, { recursive: true });
  }
});
