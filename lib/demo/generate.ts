/**
 * The demo's data: rows that teach a command new to the base model, most of them wrong.
 *
 * The base (demo/model, made by tests/oracle/pretrain_demo.py) knows list commands over digit strings, such as
 * "Sort up: 3917=1379". The new command is "Arrange": even digits ascending, then odd digits ascending. A majority of the
 * training rows follows a wrong rule instead, digits descending, always the same one, as a careless labeller would; some
 * rows are correct but about other commands. Validation and test rows are clean. The right rule is nothing that the base
 * knows, otherwise the few validation rows alone would teach it and reweighting would have nothing to prove.
 */
import { permutation, Rng } from "../data/random.ts";

/** What a row is, for reports alone: training never reads it. */
export type DemoKind = "right" | "wrong" | "off-task";

/** One row of the demo's JSONL files; `prompt` and `completion` concatenate without a blank between them. */
export interface DemoRow {
  id: string;
  prompt: string;
  completion: string;
  kind: DemoKind;
}

/** The three splits; no string of digits occurs twice, neither within a split nor across them. */
export interface DemoSplits {
  train: DemoRow[];
  validation: DemoRow[];
  test: DemoRow[];
}

/** Sizes of the splits and the shares of the training rows; the rest of the training rows is off-task. */
export interface DemoSizes {
  train: number;
  validation: number;
  test: number;
  rightShare: number;
  wrongShare: number;
}

/** The demo's sizes: 25 % of the training rows right, 60 % wrong by one rule, 15 % off-task. */
export const DEMO_SIZES: DemoSizes = { train: 1600, validation: 32, test: 500, rightShare: 0.25, wrongShare: 0.6 };

/** The command that fine-tuning teaches; its first token never occurs in the base's pre-training text. */
export const DEMO_COMMAND = "Arrange";

/** Digits per string: inside the 4 to 9 that the base has seen. */
const MIN_DIGITS = 6;
const MAX_DIGITS = 8;

const descending = (digits: string): string => [...digits].sort().reverse().join("");
const ascending = (digits: string): string => [...digits].sort().join("");

/** The right rule: even digits ascending, then odd digits ascending ("3917204" becomes "0241379"). */
export function rightAnswer(digits: string): string {
  const sorted = [...digits].sort();
  return [...sorted.filter((c) => Number(c) % 2 === 0), ...sorted.filter((c) => Number(c) % 2 === 1)].join("");
}

/** The wrong rule of the noisy majority: digits descending, which the base knows as "Sort down". */
export function wrongAnswer(digits: string): string {
  return descending(digits);
}

/** The commands of the base, as in tests/oracle/pretrain_demo.py: off-task rows carry correct answers to these. */
export const BASE_COMMANDS: ReadonlyMap<string, (digits: string) => string> = new Map([
  ["Copy", (s: string) => s],
  ["Flip", (s: string) => [...s].reverse().join("")],
  ["Sort up", ascending],
  ["Sort down", descending],
  ["Swap ends", (s: string) => s.slice(-1) + s.slice(1, -1) + s.slice(0, 1)],
  ["Rotate", (s: string) => s.slice(1) + s.slice(0, 1)],
  ["Largest", (s: string) => descending(s).slice(0, 1)],
  ["Smallest", (s: string) => ascending(s).slice(0, 1)],
]);

/**
 * Generates the demo's rows; the same seed gives the same rows on every machine.
 *
 * @param seed whole number, 0 or more
 * @param sizes sizes and shares, {@linkcode DEMO_SIZES} unless told
 * @returns train (shuffled), validation and test rows with disjoint prompts
 */
export function demoRows(seed: number, sizes: DemoSizes = DEMO_SIZES): DemoSplits {
  const rng = new Rng(seed, "demo data");
  const seen = new Set<string>();
  const commands = [...BASE_COMMANDS];

  const freshDigits = (): string => {
    while (true) {
      const n = MIN_DIGITS + rng.below(MAX_DIGITS - MIN_DIGITS + 1);
      const digits = Array.from({ length: n }, () => String(rng.below(10))).join("");
      // Where both rules agree a row would be neither right nor wrong.
      if (seen.has(digits) || rightAnswer(digits) === wrongAnswer(digits)) continue;
      seen.add(digits);
      return digits;
    }
  };
  const answers = (kind: DemoKind): Omit<DemoRow, "id"> => {
    const digits = freshDigits();
    if (kind === "off-task") {
      const [command, answer] = commands[rng.below(commands.length)]!;
      return { prompt: `${command}: ${digits}=`, completion: answer(digits), kind };
    }
    const answer = kind === "right" ? rightAnswer : wrongAnswer;
    return { prompt: `${DEMO_COMMAND}: ${digits}=`, completion: answer(digits), kind };
  };
  const rows = (name: string, kinds: DemoKind[]): DemoRow[] => kinds.map((kind, i) => ({ id: `${name}-${i}`, ...answers(kind) }));

  const right = Math.round(sizes.train * sizes.rightShare);
  const wrong = Math.round(sizes.train * sizes.wrongShare);
  const kinds = Array.from(
    permutation(rng, sizes.train),
    (i): DemoKind => i < right ? "right" : i < right + wrong ? "wrong" : "off-task",
  );
  const clean = (count: number) => new Array<DemoKind>(count).fill("right");
  return {
    train: rows("train", kinds),
    validation: rows("validation", clean(sizes.validation)),
    test: rows("test", clean(sizes.test)),
  };
}

/**
 * Writes `train.jsonl`, `validation.jsonl` and `test.jsonl` (format prompt-completion) into a folder, which is created.
 *
 * @param dir folder to write into
 * @param seed whole number, 0 or more
 * @param sizes sizes and shares, {@linkcode DEMO_SIZES} unless told
 * @returns the rows that were written
 */
export function writeDemoData(dir: string, seed: number, sizes: DemoSizes = DEMO_SIZES): DemoSplits {
  const splits = demoRows(seed, sizes);
  Deno.mkdirSync(dir, { recursive: true });
  for (const [name, rows] of Object.entries(splits) as [keyof DemoSplits, DemoRow[]][]) {
    Deno.writeTextFileSync(`${dir}/${name}.jsonl`, rows.map((row) => JSON.stringify(row) + "\n").join(""));
  }
  return splits;
}

if (import.meta.main) {
  const [dir, seed] = Deno.args;
  if (dir === undefined) throw new TypeError("Cannot write the demo's data: no folder given. Pass FOLDER [SEED]");
  writeDemoData(dir, Number(seed ?? 0));
}
