import { existsSync } from "node:fs";
import { basename, dirname, isAbsolute, join, relative } from "node:path";
import type { StartingData } from "../config/start.ts";
import { startingConfig } from "../config/start.ts";
import { guessSource } from "../data/guess.ts";
import { UserError } from "../errors.ts";
import { reasonOf, requireParent } from "../files.ts";
import { loadModelConfig } from "../model/config.ts";
import { type Command, jsonOption } from "./command.ts";
import { printJson, printLine } from "./output.ts";

/** `metalora config init`: a commented configuration to start from. */
export const command: Command = {
  name: "config init",
  summary: "Write a commented configuration to start from",
  usage: "[PATH]… [--output FILE] [--json]",
  details: [
    "Of the paths, a folder is the model and files are data, in this order: training, validation, test. A file whose name says what it " +
    "is (valid, dev, trusted; test, eval; train) takes that place. Formats and names of fields are read off the first row of each.",
    "Nothing is asked, and no file is overwritten. What is not given stands in the file as FILL IN.",
  ],
  options: [
    { name: "output", value: "FILE", description: "The file to write (default: metalora.yaml)" },
    jsonOption,
  ],
  positional: [0, 4],
  examples: [
    ["config init models/SmolLM2-135M train.jsonl trusted.jsonl", "META-LORA, guided by the second file"],
    ["config init models/SmolLM2-135M train.jsonl --output run.yaml", "Plain LoRA, in a file of another name"],
  ],
  files: [["metalora.yaml", "the configuration that is written"]],
  run(args) {
    const output = args.value("output") ?? "metalora.yaml";
    const { model, ...files } = sortPaths(args.positional);
    const written = (path: string) => isAbsolute(path) ? path : relative(dirname(output), path) || ".";
    const data = (path: string | null): StartingData | null =>
      path === null ? null : { path: written(path), source: guessSource(path, null) };
    const text = startingConfig({
      model: model === null ? null : written(model),
      maxPositions: model === null ? null : loadModelConfig(model).maxPositions,
      train: data(files.train),
      validation: data(files.validation),
      test: data(files.test),
      output: join("runs", basename(output).replace(/\.ya?ml$/, "")),
    });
    writeNew(output, text);
    if (args.flag("json")) printJson({ output, model, ...files });
    else {
      printLine(`wrote ${output}${text.includes("FILL IN") ? "; its lines with FILL IN need your values" : ""}`);
      printLine(`next: metalora config check ${quotedForShell(output)}`);
    }
    return 0;
  },
};

const ROLES = [
  ["validation", /valid|dev|trusted/],
  ["test", /test|eval/],
  ["train", /train/],
] as const;

type Sorted = Record<"model" | "train" | "validation" | "test", string | null>;

/**
 * Which path is what: a folder is the model; a file's name may say its role, other files take the free places in order.
 *
 * @throws {UserError} Exit code 2: a path that is not there, two models, more files than places.
 */
export function sortPaths(paths: readonly string[]): Sorted {
  const sorted: Sorted = { model: null, train: null, validation: null, test: null };
  const unnamed: string[] = [];
  for (const path of paths) {
    if (isFolder(path)) {
      if (sorted.model !== null) throw cannot(`${sorted.model} and ${path} are both folders. Name one model`);
      sorted.model = path;
      continue;
    }
    const [role] = ROLES.find(([, pattern]) => pattern.test(basename(path).toLowerCase())) ?? [null];
    if (role !== null && sorted[role] === null) sorted[role] = path;
    else unnamed.push(path);
  }
  for (const path of unnamed) {
    const free = (["train", "validation", "test"] as const).find((role) => sorted[role] === null);
    if (free === undefined) throw cannot(`there are more than three data files, the last is ${path}. Leave one out`);
    sorted[free] = path;
  }
  return sorted;
}

const cannot = (what: string) => new UserError(`Cannot write a configuration: ${what}`, 2);

function isFolder(path: string): boolean {
  try {
    return Deno.statSync(path).isDirectory;
  } catch {
    throw cannot(`there is no ${path}. Name a model's folder and files with samples`);
  }
}

/** A word as a shell takes it, in quotes where it would be more than one or mean something else. */
function quotedForShell(word: string): string {
  return /^[\p{L}\p{N}_.,:/@%+=-]+$/u.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}

/** Writes a file that is not there yet. */
function writeNew(path: string, text: string): void {
  requireParent(path);
  try {
    Deno.writeTextFileSync(path, text, { createNew: true });
  } catch (error) {
    if (error instanceof Deno.errors.AlreadyExists) {
      throw new UserError(`Cannot write ${path}: it is there already. Choose another file with --output, or remove it`, 2);
    }
    if (error instanceof Deno.errors.NotCapable) { // /proc, /sys and the like
      throw new UserError(`Cannot write ${path}: programs may not write there. Choose another file with --output`, 1);
    }
    // What is half-written would be in the way of the next attempt.
    if (existsSync(path)) Deno.removeSync(path);
    throw new UserError(`Cannot write ${path}: ${reasonOf(error as Error)}. Choose another file with --output`, 1);
  }
}
