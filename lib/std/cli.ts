/**
 * `parseArgs` of JSR's `@std/cli`: same name, options and results.
 *
 * JSR cannot be reached from every host that builds metalora; to move there, point `@std/cli` in deno.json at `jsr:@std/cli`.
 * The only difference is in types: dotted option names (`string: ["a.b"]`) are typed `unknown`. (`parseArgs` of `node:util`
 * is no base for it: it knows neither numbers, nor dotted keys, nor `-n5`, nor values without declared options.)
 */

type List<T> = T | readonly T[];

type Aliases = Readonly<Record<string, List<string>>>;
type Defaults = Readonly<Record<string, unknown>>;

/** Options of {@linkcode parseArgs}. */
export interface ParseOptions<
  B extends boolean | List<string> | undefined = boolean | List<string> | undefined,
  S extends List<string> | undefined = List<string> | undefined,
  C extends List<string> | undefined = List<string> | undefined,
  D extends Defaults | undefined = Defaults | undefined,
  A extends Aliases | undefined = Aliases | undefined,
  DD extends boolean | undefined = boolean | undefined,
> {
  /** Put what stands behind `--` into `result["--"]` instead of `result._`. */
  "--"?: DD;
  /** Other names of an option: all of them are set. */
  alias?: A;
  /** Flags; `true`: every `--name` without `=` is one. They are false when not given. */
  boolean?: B;
  /** Values of options that are not given. */
  default?: D;
  /** Stop at the first argument that is no option. */
  stopEarly?: boolean;
  /** Options whose values stay text. `_` keeps positional arguments text. */
  string?: S;
  /** Options that gather the values of all their uses in a list. */
  collect?: C;
  /** Flags that `--no-NAME` sets to false. */
  negatable?: List<string>;
  /** Called for every argument that is not declared; returning false leaves it out. */
  unknown?: (arg: string, key?: string, value?: unknown) => unknown;
}

/** Literal names in a list; nothing for a list whose contents the compiler does not know. */
type Names<T> = T extends readonly (infer U extends string)[] ? (string extends U ? never : U)
  : T extends string ? (string extends T ? never : T)
  : never;
/** `name` and its aliases, for every name. */
type WithAliases<N, A> =
  | N
  | (A extends Aliases ? {
      [P in keyof A & string]: P extends N ? Names<A[P]> : [N & Names<A[P]>] extends [never] ? never : P | Names<A[P]>;
    }[keyof A & string]
    : never);
/** Dotted names make nested objects, which this type leaves `unknown`. */
type Plain<N> = N extends `${string}.${string}` | "_" ? never : N & string;

/** What {@linkcode parseArgs} returns: a property for each option, `_` for the rest. */
export type Args<B = undefined, S = undefined, C = undefined, D = undefined, A = undefined, DD = undefined> =
  // deno-lint-ignore no-explicit-any
  & { [name: string]: [B, S, C] extends [undefined, undefined, undefined] ? any : unknown; _: (string | number)[] }
  & {
    [N in Plain<WithAliases<Names<B>, A>>]: N extends WithAliases<Names<C>, A> ? boolean[] : boolean;
  }
  & {
    [N in Plain<WithAliases<Names<S>, A>>]: N extends WithAliases<Names<C>, A> ? string[]
      : N extends WithAliases<keyof D & string, A> ? string
      : string | undefined;
  }
  & { [N in Exclude<Plain<WithAliases<Names<C>, A>>, WithAliases<Names<B> | Names<S>, A>>]: unknown[] }
  & (DD extends true ? { "--": string[] } : unknown);

type Tree = Record<string, unknown>;

const isNumber = (text: string) => text.trim() !== "" && Number.isFinite(Number(text));

function asList(value: undefined | boolean | List<string>): string[] {
  const list = Array.isArray(value) ? value : typeof value === "string" ? [value] : [];
  return list.filter((name) => name !== "");
}

/** Keys through which a command line could reach the prototypes of all objects. */
function isUnsafe(tree: Tree, key: string): boolean {
  return key === "__proto__" || (key === "constructor" && typeof tree[key] === "function");
}

/**
 * Takes a list of command line arguments apart.
 *
 * `--name value`, `--name=value`, `--flag`, `-abc`, `-n5`, `-n=5`; `a.b` makes nested objects; text that reads as a number
 * becomes one unless the option is declared `string`.
 *
 * @param args Arguments, without the program's name.
 * @param options What the options are.
 *
 * @example
 * ```ts
 * import { parseArgs } from "@std/cli";
 * import { assertEquals } from "@std/assert";
 *
 * const args = parseArgs(["--foo", "--bar", "baz", "-n5", "rest"], { boolean: ["foo"], string: ["bar"] });
 * assertEquals(args, { _: ["rest"], foo: true, bar: "baz", n: 5 });
 * ```
 */
export function parseArgs<
  const B extends boolean | List<string> | undefined = undefined,
  const S extends List<string> | undefined = undefined,
  const C extends List<string> | undefined = undefined,
  const D extends Defaults | undefined = undefined,
  const A extends Aliases | undefined = undefined,
  const DD extends boolean | undefined = undefined,
>(args: readonly string[], options?: ParseOptions<B, S, C, D, A, DD>): Args<B, S, C, D, A, DD> {
  const declared = (options ?? {}) as ParseOptions;
  const aliases = aliasGroups(declared.alias ?? {});
  const named = (names: undefined | boolean | List<string>) =>
    new Set(asList(names).flatMap((name) => [name, ...(aliases.get(name) ?? [])]));
  const [booleans, strings, collected, negatable] = [
    named(declared.boolean),
    named(declared.string),
    named(declared.collect),
    named(declared.negatable),
  ];
  const allBooleans = declared.boolean === true;
  const isFlag = (name: string) => booleans.has(name) || [...(aliases.get(name) ?? [])].some((alias) => booleans.has(alias));
  const emptyValue = (name: string) => strings.has(name) ? "" : true;
  const result: Tree & { _: (string | number)[] } = { _: [] };

  function store(name: string, value: unknown, arg: string, gather = true): void {
    const known = booleans.has(name) || strings.has(name) || aliases.has(name) || collected.has(name) ||
      (allBooleans && /^--[^=]+$/.test(arg));
    if (!known && declared.unknown?.(arg, name, value) === false) return;
    const typed = typeof value === "string" && !strings.has(name) && isNumber(value) ? Number(value) : value;
    for (const each of [name, ...(aliases.get(name) ?? [])]) {
      setNested(result, each.split("."), typed, gather && collected.has(name));
    }
  }

  const end = args.indexOf("--");
  const rest = end < 0 ? [] : args.slice(end + 1);
  const own = end < 0 ? args : args.slice(0, end);

  for (let i = 0; i < own.length; i++) {
    const arg = own[i]!;
    const next = own[i + 1];
    const double = /^--(?<no>no-)?(?<name>.+?)(?:=(?<value>.*))?$/s.exec(arg)?.groups;
    if (double) {
      const { no, value } = double;
      let name = double.name!;
      if (value !== undefined) store(name, booleans.has(name) ? value !== "false" : value, arg);
      else if (no && negatable.has(name)) store(name, false, arg, false);
      else {
        if (no) name = `no-${name}`;
        if (next && !allBooleans && !next.startsWith("-") && !isFlag(name)) store(name, own[++i], arg);
        else if (next === "true" || next === "false") store(name, own[++i] !== "false", arg);
        else store(name, emptyValue(name), arg);
      }
    } else if (/^-./s.test(arg)) {
      if (storeLetters(arg) || arg.endsWith("-")) continue;
      const name = arg.slice(-1);
      if (next && !/^--?[^-]/.test(next) && !isFlag(name)) store(name, own[++i], arg);
      else if (next === "true" || next === "false") store(name, own[++i] !== "false", arg);
      else store(name, emptyValue(name), arg);
    } else {
      if (declared.unknown?.(arg) !== false) result._.push(strings.has("_") || !isNumber(arg) ? arg : Number(arg));
      if (declared.stopEarly) {
        result._.push(...own.slice(i + 1));
        break;
      }
    }
  }

  /** All letters of `-abc` but the last; true when one of them took the remainder as its value. */
  function storeLetters(arg: string): boolean {
    const letters = [...arg.slice(1, -1).split("")];
    for (const [j, letter] of letters.entries()) {
      const tail = arg.slice(j + 2);
      if (tail === "-") {
        store(letter, tail, arg);
        continue;
      }
      const value = tail === "="
        ? ""
        : /[A-Za-z]/.test(letter)
        ? /=(.+)/.exec(tail)?.[1] ?? (/-?\d+(\.\d*)?(e-?\d+)?$/.test(tail) ? tail : undefined)
        : undefined;
      const taken = value ?? (/\W/.test(letters[j + 1] ?? "") ? tail : undefined);
      store(letter, taken ?? emptyValue(letter), arg);
      if (taken !== undefined) return true;
    }
    return false;
  }

  for (const [name, value] of Object.entries(declared.default ?? {})) {
    if (hasNested(result, name.split("."))) continue;
    for (const each of [name, ...(aliases.get(name) ?? [])]) setNested(result, each.split("."), value, false);
  }
  for (const name of booleans) {
    if (!hasNested(result, name.split("."))) setNested(result, name.split("."), collected.has(name) ? [] : false, false);
  }
  for (const name of strings) {
    if (collected.has(name) && !hasNested(result, name.split("."))) setNested(result, name.split("."), [], false);
  }
  if (declared["--"]) result["--"] = rest;
  else result._.push(...rest);
  return result as Args<B, S, C, D, A, DD>;
}

/** Each name → the other names of the same option. */
function aliasGroups(alias: Readonly<Record<string, List<string> | undefined>>): Map<string, Set<string>> {
  const groups = new Map<string, Set<string>>();
  for (const [name, value] of Object.entries(alias)) {
    if (value === undefined) throw new TypeError("Alias value must be defined");
    const all = [name, ...(typeof value === "string" ? [value] : value)];
    for (const each of all) groups.set(each, new Set(all.filter((other) => other !== each)));
  }
  return groups;
}

function setNested(root: Tree, path: readonly string[], value: unknown, gather: boolean): void {
  const [last] = path.slice(-1) as [string];
  let tree = root;
  for (const key of path.slice(0, -1)) {
    if (isUnsafe(tree, key)) return;
    tree = (tree[key] ??= {}) as Tree;
  }
  if (isUnsafe(tree, last)) return;
  const old = tree[last];
  if (gather && Array.isArray(old)) old.push(value);
  else tree[last] = gather ? (old ? [old, value] : [value]) : value;
}

function hasNested(root: Tree, path: readonly string[]): boolean {
  let tree: unknown = root;
  for (const key of path) {
    if (!Object.hasOwn(tree as Tree, key)) return false;
    tree = (tree as Tree)[key];
  }
  return true;
}
