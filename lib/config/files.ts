/** Whether what a configuration names is there; opening and checking it is the run's own work. */
import { join } from "node:path";
import type { KeyPath } from "./document.ts";
import type { LoadedConfig } from "./load.ts";

/**
 * Looks for the model's files, the data and the token that a configuration names.
 *
 * @returns A complete line, `file:line:column: Cannot use …`, for each that is missing.
 */
export function missingFiles({ config, locate }: Pick<LoadedConfig, "config" | "locate">): string[] {
  const { train, validation, test } = config.data;
  const files: [key: KeyPath, path: string | null][] = [
    [["data", "train", "path"], train.path],
    [["data", "validation", "path"], validation?.path ?? null],
    [["data", "test", "path"], test?.path ?? null],
    [["status", "token_file"], config.status.token_file],
  ];
  const model = modelProblem(config.model);
  return [
    ...model === null ? [] : [`${locate(["model"])}: Cannot use model: ${model}`],
    ...files.flatMap(([key, path]) => {
      const problem = path === null ? null : fileProblem(path);
      return problem === null ? [] : [`${locate(key)}: Cannot use ${key.join(".")}: ${problem}`];
    }),
  ];
}

type Found = "file" | "folder" | null;

function find(path: string): Found {
  try {
    return Deno.statSync(path).isDirectory ? "folder" : "file";
  } catch {
    return null;
  }
}

function fileProblem(path: string): string | null {
  const found = find(path);
  if (found === "folder") return `${path} is a folder. Name a file in it`;
  return found === null ? `there is no file ${path}. Correct the path` : null;
}

/** Files of which a model folder needs one each. */
const MODEL_FILES = [["config.json"], ["tokenizer.json"], ["model.safetensors", "model.safetensors.index.json"]] as const;

function modelProblem(folder: string): string | null {
  const advice = "Name the folder of a Hugging Face model";
  if (find(folder) !== "folder") return `there is no folder ${folder}. ${advice}`;
  const missing = MODEL_FILES.find((names) => names.every((name) => find(join(folder, name)) !== "file"));
  return missing ? `${folder} has no ${missing.join(" or ")}. ${advice}` : null;
}
