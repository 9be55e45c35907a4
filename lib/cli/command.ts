/** What a command of the command line is, and what it is given. */
import { parseArgs } from "@std/cli";
import { UserError } from "../errors.ts";
import { didYouMean } from "../nearest.ts";

/** One `--option` of a command. */
export interface Option {
  /** Without dashes. */
  readonly name: string;
  /** Placeholder of its value, such as `FILE`; without one the option is a flag. */
  readonly value?: string;
  /** May be given several times. */
  readonly repeat?: true;
  /** One sentence, no full stop. */
  readonly description: string;
}

/** A command; the module of a command exports it as `command`. */
export interface Command {
  /** As typed, `train` or `config check`. */
  readonly name: string;
  /** One line, no full stop. */
  readonly summary: string;
  /** What stands behind the name, such as `CONFIG [--resume]`. */
  readonly usage: string;
  /** More about it, shown by `--help`; a paragraph each. */
  readonly details?: readonly string[];
  readonly options: readonly Option[];
  /** Command lines without `metalora`, each with what it does. */
  readonly examples?: readonly (readonly [line: string, meaning: string])[];
  /** Exit codes beside 0, 1 and 2, which every command has (or what these mean here), each with its meaning. */
  readonly exits?: readonly (readonly [code: number, meaning: string])[];
  /** Files that it reads or writes, each with what they are. */
  readonly files?: readonly (readonly [path: string, meaning: string])[];
  /** Fewest and most positional arguments; none when omitted. */
  readonly positional?: readonly [least: number, most: number];
  /** @returns The exit code of the program. */
  run(args: Arguments): number | Promise<number>;
}

/** `--json`, for every command that reports. */
export const jsonOption: Option = {
  name: "json",
  description: "Print JSON, one object a line, on stdout; progress goes to stderr",
};

/** `--set`, for every command that reads a configuration. */
export const setOption: Option = {
  name: "set",
  value: "KEY=VALUE",
  repeat: true,
  description: "Use this value for a key of the configuration, such as train.steps=100; text is taken as it stands",
};

/** Options that every command has. */
export const commonOptions: readonly Option[] = [
  { name: "debug", description: "Show where in the program an error arose" },
  { name: "help", description: "Show this text" },
];

/** Joins `--threads -1` to `--threads=-1`: a negative number is the option's value, and no option. */
function withNegatives(args: readonly string[], valued: readonly string[]): string[] {
  const end = args.indexOf("--");
  const takes = (arg: string | undefined) => arg?.startsWith("--") === true && valued.includes(arg.slice(2));
  const isValue = (i: number) => (end < 0 || i < end) && /^-[\d.]/.test(args[i]!) && takes(args[i - 1]);
  return args.flatMap((arg, i) => isValue(i) ? [] : i + 1 < args.length && isValue(i + 1) ? [`${arg}=${args[i + 1]}`] : [arg]);
}

/** The arguments of a command, checked against its options. */
export class Arguments {
  /** Arguments that are no options. */
  readonly positional: readonly string[];
  readonly #options: ReadonlyMap<string, Option>;
  readonly #flags: ReadonlySet<string>;
  readonly #values: ReadonlyMap<string, readonly string[]>;

  /**
   * @param command Whose options hold.
   * @param args What stands behind the command's name.
   * @throws {UserError} Exit code 2: an unknown option (with the nearest name), one without its value, too few or too many arguments.
   */
  constructor(command: Pick<Command, "name" | "usage" | "options" | "positional">, args: readonly string[]) {
    const options = [...command.options, ...commonOptions];
    this.#options = new Map(options.map((option) => [option.name, option]));
    const flags = options.filter((option) => option.value === undefined).map((option) => option.name);
    const valued = options.filter((option) => option.value !== undefined).map((option) => option.name);
    const cannot = (what: string) => new UserError(`Cannot run '${command.name}': ${what}`, 2);

    const end = args.indexOf("--");
    for (const arg of end < 0 ? args : args.slice(0, end)) {
      const name = /^--([^=]+)=/s.exec(arg)?.[1];
      if (name !== undefined && flags.includes(name)) throw cannot(`--${name} takes no value, found '${arg}'`);
    }
    const parsed = parseArgs(withNegatives(args, valued), {
      boolean: flags,
      string: ["_", ...valued],
      collect: valued,
      alias: { help: "h" },
      unknown: (arg, key) => {
        if (key === undefined) return true;
        const names = [...this.#options.keys()].map((name) => `--${name}`);
        throw cannot(
          `there is no option '${arg.split("=")[0]}'.${
            didYouMean(`--${key}`, names) || ` See 'metalora ${command.name} --help'`
          }`,
        );
      },
    });
    this.positional = parsed._.map(String);
    this.#flags = new Set(flags.filter((name) => parsed[name] === true));
    this.#values = new Map(valued.map((name) => [name, (parsed[name] as string[] | undefined) ?? []]));

    for (const [name, values] of this.#values) {
      const { value, repeat } = this.#options.get(name)!;
      if (values.includes("")) throw cannot(`--${name} needs a value. Write --${name}=${value}`);
      if (values.length > 1 && !repeat) throw cannot(`--${name} is given ${values.length} times. Give it once`);
    }
    if (this.flag("help")) return;
    const [least, most] = command.positional ?? [0, 0];
    const count = this.positional.length;
    if (count < least) throw cannot(`an argument is missing. Usage: metalora ${command.name} ${command.usage}`.trimEnd());
    if (count > most) {
      throw cannot(`unexpected argument '${this.positional[most]}'. Usage: metalora ${command.name} ${command.usage}`.trimEnd());
    }
  }

  /** Whether the flag is given. */
  flag(name: string): boolean {
    this.#require(name);
    return this.#flags.has(name);
  }

  /** The value of an option, undefined when it is not given. */
  value(name: string): string | undefined {
    return this.values(name).at(-1);
  }

  /** All values of an option that may be repeated. */
  values(name: string): readonly string[] {
    this.#require(name);
    return this.#values.get(name) ?? [];
  }

  /**
   * The value of an option as a number.
   *
   * @param range Smallest and largest number allowed, and whether only whole ones are.
   * @throws {UserError} Exit code 2, for anything else.
   */
  number(name: string, range: { min?: number; max?: number; whole?: true } = {}): number | undefined {
    const text = this.value(name);
    if (text === undefined) return undefined;
    const { min = -Infinity, max = Infinity, whole } = range;
    const value = text.trim() === "" ? NaN : Number(text);
    if (value >= min && value <= max && Number.isFinite(value) && (!whole || Number.isInteger(value))) return value;
    const limits = [min > -Infinity ? `at least ${min}` : "", max < Infinity ? `at most ${max}` : ""].filter(Boolean).join(
      " and ",
    );
    const expected = `a ${whole ? "whole " : ""}number${limits && ` of ${limits}`}`;
    throw new UserError(`Cannot use --${name}: expected ${expected}, found '${text}'`, 2);
  }

  #require(name: string): void {
    if (!this.#options.has(name)) throw new TypeError(`Cannot read the option '${name}': the command does not declare it`);
  }
}
