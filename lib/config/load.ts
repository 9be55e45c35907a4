/** Reads a configuration file, with `--set` on top, into a complete `Config`. */
import { isScalar, parseDocument } from "yaml";
import { dirname, isAbsolute, join } from "node:path";
import { UserError } from "../errors.ts";
import { unreadable } from "../files.ts";
import { type ConfigDocument, type KeyPath, parseConfigDocument, yamlReason } from "./document.ts";
import { type Problem, problemsOf, textAt, valueAt } from "./problems.ts";
import { applyPreset, checkAcrossKeys, resolve, setAt } from "./resolve.ts";
import { type Config, configSchema } from "./schema.ts";

/** A configuration together with where it came from. */
export interface LoadedConfig {
  /** Complete; relative paths of files are as they can be opened from the current directory. */
  readonly config: Config;
  /** The configuration file, as given. */
  readonly path: string;
  /** Where a key was set, for errors about its value: `file:line:column` or the `--set` that gave it. */
  locate(path: KeyPath): string;
}

/** A configuration that cannot be used; `problems` has every one found, each a complete line. */
export class ConfigError extends UserError {
  readonly problems: readonly string[];

  constructor(problems: readonly string[]) {
    const more = problems.length - 1;
    super(`${problems[0]}${more > 0 ? ` (and ${more} more ${more === 1 ? "problem" : "problems"})` : ""}`, 2);
    this.problems = problems;
  }
}

interface Override {
  readonly path: readonly string[];
  readonly value: unknown;
  readonly text: string;
}

/**
 * Loads a configuration file.
 *
 * A relative path in it (model, data) is taken from the current directory; where nothing stands there, from the
 * configuration's own folder. `output` is always taken from the current directory. `~/` is the home folder: no shell expands it
 * behind `output=`, and a folder of that name would be a trap.
 *
 * @param path The YAML file.
 * @param sets `key.path=value` from the command line; values replace those of the file. Of a key that holds text the value is taken
 *   as it stands (quotes around all of it are left out), of any other it is read as YAML.
 * @throws {ConfigError} With `file:line:column: …` (or `--set …: …`) for everything that is wrong.
 * @throws {UserError} When the file cannot be read or is no YAML.
 */
export function loadConfig(path: string, sets: readonly string[] = []): LoadedConfig {
  const loaded = parseConfig(readText(path), path, sets);
  return { ...loaded, config: findFiles(loaded.config, dirname(path)) };
}

/**
 * Like loadConfig, from text; paths stay as they are written.
 *
 * @param name Name of the file in errors.
 */
export function parseConfig(text: string, name: string, sets: readonly string[] = []): LoadedConfig {
  const document = parseConfigDocument(text, name);
  const raw = structuredClone(document.value);
  const overrides = sets.map(parseOverride);
  for (const { path, value, text } of overrides) {
    if (!setAt(raw, path, value)) {
      throw new ConfigError([`--set ${text}: Cannot set ${path.join(".")}: a key on the way is no group of keys`]);
    }
  }
  dropReplacedLength(raw, overrides);

  const locate = (path: KeyPath, part: "value" | "key" = "value") => place(path, part, document, overrides);
  const fail = (problems: readonly Problem[], first: readonly string[] = []) => {
    const lines = problems.map((each) => `${locate(each.path, each.part)}: ${each.message}`);
    if (lines.length + first.length === 0) return;
    throw new ConfigError([...first, ...lines.sort((a, b) => lineOf(a) - lineOf(b))]); // as a reader meets them; --set last
  };
  const contradictions = applyPreset(raw);
  const parsed = configSchema.safeParse(raw);
  fail([...(parsed.error ? problemsOf(parsed.error.issues, raw) : []), ...contradictions], document.repeated);
  fail(checkAcrossKeys(parsed.data!));
  return { config: resolve(parsed.data!), path: name, locate };
}

/** Line number in front of a problem; Infinity for one of a `--set`. */
function lineOf(problem: string): number {
  const at = problem.startsWith("--set ") ? null : /:(\d+):(\d+): Cannot /.exec(problem);
  return at ? Number(at[1]) + Number(at[2]) / 1e6 : Number.MAX_VALUE;
}

function readText(path: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(Deno.readFileSync(path));
  } catch (error) {
    const what = error instanceof TypeError
      ? "it is not UTF-8 text. Save it as UTF-8"
      : error instanceof Deno.errors.IsADirectory
      ? "it is a directory. Name the YAML file"
      : unreadable(error, "Check the path");
    throw new UserError(`Cannot read the configuration ${path}: ${what}`, 2);
  }
}

function parseOverride(text: string): Override {
  const cannot = (what: string) => new UserError(`--set ${text}: Cannot set a key: ${what}`, 2);
  const equals = text.indexOf("=");
  const path = text.slice(0, Math.max(0, equals)).split(".");
  if (equals < 0 || path.some((key) => key === "" || key === "__proto__")) {
    throw cannot("expected key.path=value, such as train.steps=100");
  }
  const given = text.slice(equals + 1);
  if (given.trim() === "") throw cannot("the value is missing. Where none is meant, write null");
  const kind = textAt(path);
  const document = parseDocument(given, { prettyErrors: false });
  if (kind !== null && !isQuoted(document.contents, given)) {
    return { path, value: kind === "text or null" && ["null", "~"].includes(given) ? null : given, text };
  }
  const error = document.errors[0] ?? document.warnings[0];
  if (error) throw cannot(`the value is no YAML: ${yamlReason(error)}`);
  try {
    return { path, value: document.toJS() ?? null, text };
  } catch (cause) { // an alias (*name) without its anchor, or more aliases than a person writes
    throw cannot(`${(cause as Error).message}. Write the value itself, in quotes where it is text that begins with *`);
  }
}

/** Whether a text is one in quotes from end to end, as those write it who know that a value is YAML. */
function isQuoted(node: unknown, text: string): boolean {
  const quoted = isScalar(node) && (node.type === "QUOTE_DOUBLE" || node.type === "QUOTE_SINGLE");
  return quoted && node.range![0] === 0 && node.range![1] === text.length;
}

/** `--set train.steps=…` replaces the `epochs` of the file, and the other way round. */
function dropReplacedLength(raw: Record<string, unknown>, overrides: readonly Override[]): void {
  const isSet = (key: string) => overrides.some(({ path, value }) => path.join(".") === key && value !== null);
  const train = raw.train;
  if (typeof train !== "object" || train === null || isSet("train.steps") === isSet("train.epochs")) return;
  delete (train as Record<string, unknown>)[isSet("train.steps") ? "epochs" : "steps"];
}

function place(path: KeyPath, part: "value" | "key", document: ConfigDocument, overrides: readonly Override[]): string {
  const starts = (short: KeyPath, long: KeyPath) => short.every((key, i) => String(long[i]) === String(key));
  const override = overrides.findLast((each) => starts(each.path, path)) ??
    // A key that only --set leads to: its group is not in the file.
    (valueAt(document.value, path) === undefined ? overrides.findLast((each) => starts(path, each.path)) : undefined);
  return override ? `--set ${override.text}` : document.locate(path, part);
}

/** Prefers the current directory, then the configuration's folder; a path that is in neither stays for the reader to report. */
function findFiles(config: Config, folder: string): Config {
  const find = (given: string) => {
    const path = atHome(given);
    if (isAbsolute(path) || exists(path)) return path;
    const beside = join(folder, path);
    return exists(beside) ? beside : path;
  };
  const source = <T extends { path: string } | null>(each: T): T => each && { ...each, path: find(each.path) };
  const { train, validation, test } = config.data;
  const { token_file } = config.status;
  return {
    ...config,
    model: find(config.model),
    output: atHome(config.output),
    status: { ...config.status, token_file: token_file && atHome(token_file) },
    data: { ...config.data, train: source(train), validation: source(validation), test: source(test) },
  };
}

function atHome(path: string): string {
  const home = path === "~" || path.startsWith("~/") ? Deno.env.get("HOME") : undefined;
  return home ? join(home, path.slice(1)) : path;
}

function exists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch {
    return false;
  }
}
