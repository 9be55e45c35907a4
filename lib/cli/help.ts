/** The texts of `--help`, at most 100 columns wide. */
import { type Command, commonOptions, type Option } from "./command.ts";
import { VERSION } from "../version.ts";

const WIDTH = 100;

/** Breaks a text into lines of at most `width` characters; a longer word stands alone. */
export function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  for (const word of text.split(/\s+/)) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + 1 + word.length <= width) lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines;
}

/** Two columns: terms, and what they mean wrapped beside them. */
function table(rows: readonly (readonly [term: string, meaning: string])[]): string[] {
  const longest = Math.min(34, Math.max(...rows.map(([term]) => term.length)));
  return rows.flatMap(([term, meaning]) => {
    const lines = wrap(meaning, WIDTH - longest - 4);
    const first = `  ${term.padEnd(longest)}  `;
    if (term.length > longest) return [`  ${term}`, ...lines.map((line) => " ".repeat(longest + 4) + line)];
    return lines.map((line, i) => (i === 0 ? first : " ".repeat(longest + 4)) + line);
  });
}

function optionTerm({ name, value }: Option): string {
  return `--${name}${value === undefined ? "" : ` ${value}`}${name === "help" ? ", -h" : ""}`;
}

/** Help of one command. */
export function commandHelp(command: Command): string {
  const lines = [command.summary, ""];
  const usage = wrap(command.usage, WIDTH - 18 - command.name.length);
  const lead = `Usage: metalora ${command.name} `;
  lines.push(...usage.map((line, i) => (i === 0 ? lead : " ".repeat(lead.length)) + line).map((line) => line.trimEnd()));
  for (const paragraph of command.details ?? []) lines.push("", ...wrap(paragraph, WIDTH));
  const options = [...command.options, ...commonOptions];
  lines.push("", "Options:", ...table(options.map((option) => [optionTerm(option), option.description] as const)));
  if (command.examples) {
    lines.push("", "Examples:", ...command.examples.flatMap(([line, meaning]) => [`  metalora ${line}`, `      ${meaning}`]));
  }
  return lines.join("\n");
}

/** Help of the whole program. */
export function programHelp(commands: readonly { name: string; summary: string }[]): string {
  return [
    `metalora ${VERSION}: fine-tunes language models with LoRA on noisy data, guided by a few trusted samples`,
    "",
    "Usage: metalora COMMAND [ARGUMENTS] [OPTIONS]",
    "",
    "Commands:",
    ...table(commands.map(({ name, summary }) => [name, summary] as const)),
    "",
    "Options:",
    ...table([["--version", "Show the version"], ["--help, -h", "Show this text, or behind a command its own"]]),
    "",
    "Examples:",
    ...commands.some(({ name }) => name === "demo")
      ? ["  metalora demo", "      See META-LORA beside plain LoRA on mostly wrong data, in minutes"]
      : [],
    "  metalora train configs/mawps-metalora.yaml",
    "      Train as the file says; every key can be changed behind --set",
    "",
    "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 75 another run uses the output.",
  ].join("\n");
}
