/** The texts of `--help`, laid out as manual pages of 80 columns. */
import { type Command, commonOptions, type Option } from "./command.ts";
import { ENDED, STOPPED } from "../errors.ts";
import { VERSION } from "../version.ts";

const WIDTH = 80;
const INDENT = "    ";

/** Breaks a text into lines of at most `width` characters; a longer word stands alone. */
export function wrap(text: string, width: number): string[] {
  return fill(text.split(/\s+/), width);
}

function fill(words: readonly string[], width: number): string[] {
  const lines: string[] = [];
  for (const word of words) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + 1 + word.length <= width) lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines;
}

type Row = readonly [term: string, meaning: string];

/** Two columns: terms, and what they mean wrapped beside them. A term that is too long has its meaning below. */
function table(rows: readonly Row[], widest = 24): string[] {
  const fitting = rows.map(([term]) => term.length).filter((length) => length <= widest);
  const column = Math.max(3, ...fitting) + 2;
  return rows.flatMap(([term, meaning]) => {
    const lines = wrap(meaning, WIDTH - INDENT.length - column).map((line) => " ".repeat(column) + line);
    if (term.length > column - 2) return [term, ...lines];
    return [term.padEnd(column) + lines[0]!.trimStart(), ...lines.slice(1)];
  });
}

/** A heading with its lines below; nothing without lines. */
function section(heading: string, lines: readonly string[]): string[] {
  return lines.length === 0 ? [] : ["", heading, ...lines.map((line) => line === "" ? "" : INDENT + line)];
}

const paragraph = (text: string) => wrap(text, WIDTH - INDENT.length);
const paragraphs = (texts: readonly string[]) => texts.flatMap((text, i) => [...(i > 0 ? [""] : []), ...paragraph(text)]);

/** A command line; what stands in one pair of brackets stays on one line. */
function synopsis(name: string, usage: string): string[] {
  const lead = `metalora ${name} `;
  const parts = usage.match(/(?:\[[^\]]*\]|\S)+/g) ?? [];
  const lines = fill(parts, WIDTH - INDENT.length - lead.length);
  return lines.length === 0 ? [lead.trimEnd()] : lines.map((line, i) => (i === 0 ? lead : " ".repeat(lead.length)) + line);
}

function optionTerm({ name, value }: Option): string {
  return `--${name}${value === undefined ? "" : ` ${value}`}${name === "help" ? ", -h" : ""}`;
}

/** Each example on a line of its own with what it does below. */
function exampleLines(examples: readonly Row[]): string[] {
  return examples.flatMap((
    [line, meaning],
  ) => [`metalora ${line}`, ...wrap(meaning, WIDTH - 2 * INDENT.length).map((each) => INDENT + each)]);
}

const EXITS = new Map([[0, "done"], [1, "failed; a line on stderr says why"], [2, "wrong usage, configuration or data"]]);

/** Exit codes that every command has, those of this one beside them or in their place. */
function exitTable(own: readonly (readonly [code: number, meaning: string])[]): string[] {
  return table([...new Map([...EXITS, ...own])].map(([code, meaning]): Row => [String(code), meaning]));
}

/** Help of one command. */
export function commandHelp(command: Command): string {
  const { name, summary, usage, details = [], examples = [], exits = [], files = [] } = command;
  const options = [...command.options, ...commonOptions].map((option): Row => [optionTerm(option), option.description]);
  return [
    "NAME",
    ...wrap(`metalora ${name} - ${summary}`, WIDTH - INDENT.length).map((line) => INDENT + line),
    ...section("SYNOPSIS", synopsis(name, usage)),
    ...section("DESCRIPTION", paragraphs(details)),
    ...section("OPTIONS", table(options)),
    ...section("EXAMPLES", exampleLines(examples)),
    ...section("FILES", table(files)),
    ...section("EXIT CODES", exitTable(exits)),
  ].join("\n");
}

type Summary = { readonly name: string; readonly summary: string };

const commandTable = (commands: readonly Summary[]) => table(commands.map(({ name, summary }): Row => [name, summary]));

/** Help of a group of commands, such as `config`. */
export function groupHelp(group: string, commands: readonly Summary[]): string {
  return [
    "NAME",
    `${INDENT}metalora ${group} - ${commands.length} commands`,
    ...section("COMMANDS", commandTable(commands)),
    ...section("SEE ALSO", paragraph(`metalora ${group} COMMAND --help tells more about one of them.`)),
  ].join("\n");
}

/** Help of the whole program. */
export function programHelp(commands: readonly Summary[]): string {
  const has = (name: string) => commands.some((each) => each.name === name);
  const examples: Row[] = [
    ["demo", "See META-LORA beside plain LoRA on mostly wrong data, in minutes."],
    ["config init MODEL train.jsonl trusted.jsonl", "Write a commented configuration to start from."],
    ["train metalora.yaml --set train.steps=500", "Train as it says; every key can be changed behind --set."],
  ];
  return [
    "NAME",
    `${INDENT}metalora - fine-tunes language models with LoRA on noisy data`,
    ...section("SYNOPSIS", ["metalora COMMAND [ARGUMENTS] [OPTIONS]", "metalora COMMAND --help", "metalora --version"]),
    ...section(
      "DESCRIPTION",
      paragraph(
        "Trains LoRA adapters of Hugging Face models on data that is partly wrong or off the subject, guided by a small set of " +
          "samples that you trust: while it trains, every training sample is weighted by how well its gradient agrees with theirs.",
      ),
    ),
    ...section("COMMANDS", commandTable(commands)),
    ...section(
      "OPTIONS",
      table([["--version, -V", "Show the version"], [
        "--licences",
        "Show the licences of the program and of what is built into it",
      ], ["--help, -h", "Show this text, or behind a command its own"]]),
    ),
    ...section("EXAMPLES", exampleLines(examples.filter(([line]) => has(line.split(" ")[0]!) || has("config init")))),
    ...section(
      "ENVIRONMENT",
      table([
        ["TMPDIR", "Where the single binary unpacks its native library (default: /tmp)"],
        ["METALORA_LIBRARY_DIR", "A folder with native libraries to use instead of the program's own"],
      ]),
    ),
    ...section(
      "EXIT CODES",
      exitTable([
        [3, "retrain: trained, but not better than what is published"],
        [75, "another run holds the output folder"],
        [ENDED, "ended at once by a second SIGTERM or SIGINT, nothing saved"],
        [STOPPED, "stopped by a signal after saving"],
      ]),
    ),
    ...section("VERSION", [VERSION]),
  ].join("\n");
}

/** Headings in bold, for terminals. */
export function emphasise(help: string): string {
  return help.replace(/^[A-Z][A-Z ]+$/gm, "\x1b[1m$&\x1b[0m");
}
