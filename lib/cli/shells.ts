/** Completion scripts for bash, zsh and fish, written from the commands' own tables of options. */
import { type Command, commonOptions, type Option } from "./command.ts";

/** What may stand in a place of the command line. */
type Kind =
  | { readonly kind: "file" | "folder" | "key" | "setting" | "none" }
  | { readonly kind: "words"; readonly words: readonly string[] };

/** What a placeholder stands for: `a|b` in small letters are words, others go by their names. */
export function kindOf(placeholder: string): Kind {
  const parts = placeholder.split("|").map((part) => part.replace(/\[.*\]$/, ""));
  if (parts.length > 1 && parts.every((part) => /^[a-z][\w-]*$/.test(part))) return { kind: "words", words: parts };
  if (placeholder === "KEY=VALUE") return { kind: "setting" };
  if (placeholder === "KEY") return { kind: "key" };
  if (parts.some((part) => /^(FILE|CONFIG|PATH)$/.test(part))) return { kind: "file" };
  if (parts.some((part) => /^(DIR|MODEL)$/.test(part))) return { kind: "folder" };
  return { kind: "none" };
}

const optionsOf = (command: Command): Option[] => [...command.options, ...commonOptions];

/** What a command's own arguments are: the first word of its usage that is no option. */
function argumentKind({ usage, positional }: Command): Kind {
  if (positional === undefined) return { kind: "none" };
  const first = usage.split(" ").find((word) => !/^\[?--/.test(word)) ?? "";
  return kindOf(first.replace(/^\[|\]?…?$/g, ""));
}

/** `config` → `check`, `schema`, …; commands of one word stand alone. */
function groupsOf(commands: readonly Command[]): Map<string, Command[]> {
  const groups = new Map<string, Command[]>();
  for (const command of commands) {
    const [group, second] = command.name.split(" ") as [string, string?];
    if (second !== undefined) groups.set(group, [...groups.get(group) ?? [], command]);
  }
  return groups;
}

const firstWords = (commands: readonly Command[]) => [...new Set(commands.map(({ name }) => name.split(" ")[0]!))];
const second = ({ name }: Command) => name.split(" ")[1]!;

/** For bash 4.2 or newer; needs no other package. */
export function bashScript(commands: readonly Command[], keys: readonly string[]): string {
  const answer = (kind: Kind): string => {
    switch (kind.kind) {
      case "words":
        return `_metalora_words "${kind.words.join(" ")}"`;
      case "setting":
        return "_metalora_setting";
      case "key":
        return `_metalora_words "$_metalora_keys"`;
      case "file":
        return "_metalora_paths -f";
      case "folder":
        return "_metalora_paths -d";
      case "none":
        return "COMPREPLY=()";
    }
  };
  const groups = groupsOf(commands);
  const values = commands.flatMap((command) =>
    optionsOf(command).flatMap(({ name, value }) =>
      value === undefined ? [] : [`    "${command.name} --${name}") ${answer(kindOf(value))}; return ;;`]
    )
  );
  const rest = commands.map((command) => {
    const names = optionsOf(command).map(({ name }) => `--${name}`).join(" ");
    const kind = argumentKind(command);
    const own = kind.kind === "none" ? `_metalora_words "${names}"` : answer(kind);
    return `    "${command.name}") if [[ $cur == -* ]]; then _metalora_words "${names}"; else ${own}; fi ;;`;
  });
  const seconds = [...groups].map(([group, list]) =>
    `  if ((COMP_CWORD == 2)) && [[ $command == ${group} ]]; then _metalora_words "${
      list.map(second).join(" ")
    } --help"; return; fi`
  );
  return `# bash completion for metalora. To load it: source <(metalora completions bash)
_metalora_keys="${keys.join(" ")}"

_metalora_words() { mapfile -t COMPREPLY < <(compgen -W "$1" -- "$cur"); }
_metalora_paths() { compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen "$1" -- "$cur"); }
_metalora_setting() {
  compopt -o nospace 2>/dev/null
  mapfile -t COMPREPLY < <(compgen -S = -W "$_metalora_keys" -- "$cur")
}

_metalora() {
  local cur=\${COMP_WORDS[COMP_CWORD]} before=\${COMP_WORDS[COMP_CWORD - 1]} command=\${COMP_WORDS[1]}
  # "=" is a word of its own here: --option=value, and the value of a setting, which only its author knows.
  if [[ $cur == = ]]; then cur=; elif [[ $before == = ]]; then before=\${COMP_WORDS[COMP_CWORD - 2]}; fi
  if ((COMP_CWORD == 1)); then _metalora_words "${firstWords(commands).join(" ")} help --help --version"; return; fi
${seconds.join("\n")}
  case $command in ${[...groups.keys()].join("|")}) command+=" \${COMP_WORDS[2]}" ;; esac
  case "$command $before" in
${values.join("\n")}
  esac
  case $command in
${rest.join("\n")}
    help) _metalora_words "${firstWords(commands).join(" ")}" ;;
  esac
}
complete -F _metalora metalora
`;
}

/** For zsh; to be sourced, or saved as \`_metalora\` in a folder of $fpath. */
export function zshScript(commands: readonly Command[], keys: readonly string[]): string {
  const quoted = (text: string) => `'${text.replaceAll("'", `'\\''`)}'`;
  const plain = (text: string) => text.replace(/[\\[\]:]/g, "\\$&");
  const action = (kind: Kind): string => {
    switch (kind.kind) {
      case "words":
        return `(${kind.words.join(" ")})`;
      case "setting":
        return "_metalora_setting";
      case "key":
        return `(${keys.join(" ")})`;
      case "file":
        return "_files";
      case "folder":
        return "_files -/";
      case "none":
        return " ";
    }
  };
  const specs = (command: Command): string[] => {
    const options = optionsOf(command).map(({ name, value, repeat, description }) =>
      value === undefined
        ? `--${name}[${plain(description)}]`
        : `${repeat ? "*" : ""}--${name}=[${plain(description)}]:${plain(value)}:${action(kindOf(value))}`
    );
    const kind = argumentKind(command);
    const most = command.positional?.[1] ?? 0;
    return [...options, ...(most > 0 ? [`${most > 1 ? "*" : "1"}:argument:${action(kind)}`] : [])].map(quoted);
  };
  const call = (command: Command, indent: string) =>
    `_arguments -S \\\n${specs(command).map((spec) => `${indent}  ${spec}`).join(" \\\n")}`;
  const groups = groupsOf(commands);
  const described = (list: readonly (readonly [string, string])[]) =>
    list.map(([name, text]) => quoted(`${name}:${plain(text)}`)).join(" ");
  const top = firstWords(commands).map((name) =>
    [name, commands.find((command) => command.name === name)?.summary ?? `Commands of ${name}`] as const
  );
  const branches = [
    ...commands.filter(({ name }) => !name.includes(" ")).map((command) =>
      `    ${command.name})\n      ${call(command, "      ")} ;;`
    ),
    ...[...groups].map(([group, list]) =>
      `    ${group})
      if ((CURRENT == 2)); then
        local -a seconds=(${described(list.map((command) => [second(command), command.summary] as const))})
        _describe command seconds
        return
      fi
      shift words
      ((CURRENT--))
      case $words[1] in
${list.map((command) => `        ${second(command)})\n          ${call(command, "          ")} ;;`).join("\n")}
      esac ;;`
    ),
  ];
  return `#compdef metalora
# zsh completion for metalora. To load it: source <(metalora completions zsh)
_metalora_setting() { compadd -S = -- ${keys.join(" ")} }

_metalora() {
  if ((CURRENT == 2)); then
    local -a names=(${described([...top, ["help", "Show the help of a command"]])})
    _describe command names
    return
  fi
  shift words
  ((CURRENT--))
  case $words[1] in
${branches.join("\n")}
    help) _values command ${firstWords(commands).join(" ")} ;;
  esac
}

# Loaded through $fpath this file is the function itself; sourced, it has to be registered.
if [[ $funcstack[1] == _metalora ]]; then _metalora "$@"; else compdef _metalora metalora; fi
`;
}

/** For fish 3 or newer. */
export function fishScript(commands: readonly Command[], keys: readonly string[]): string {
  const quoted = (text: string) => `'${text.replace(/[\\']/g, "\\$&")}'`;
  const value = (kind: Kind): string => {
    switch (kind.kind) {
      case "words":
        return `-x -a ${quoted(kind.words.join(" "))}`;
      case "setting":
        return `-x -a ${quoted(keys.map((key) => `${key}=`).join(" "))}`;
      case "key":
        return `-x -a ${quoted(keys.join(" "))}`;
      case "file":
        return "-r -F";
      case "folder":
        return `-x -a "(__fish_complete_directories)"`;
      case "none":
        return "-x";
    }
  };
  const lines: string[] = [];
  const add = (condition: string, rest: string) => lines.push(`complete -c metalora -n ${quoted(condition)} ${rest}`);
  for (const name of firstWords(commands)) {
    const summary = commands.find((command) => command.name === name)?.summary ?? `Commands of ${name}`;
    add("__metalora_after", `-a ${name} -d ${quoted(summary)}`);
  }
  add("__metalora_after", `-l version -d 'Show the version'`);
  add("__metalora_after", `-l help -s h -d 'Show what there is'`);
  for (const [group, list] of groupsOf(commands)) {
    for (const command of list) add(`__metalora_after ${group}`, `-a ${second(command)} -d ${quoted(command.summary)}`);
  }
  for (const command of commands) {
    const within = `__metalora_within ${command.name}`;
    for (const option of optionsOf(command)) {
      const values = option.value === undefined ? "" : `${value(kindOf(option.value))} `;
      add(within, `-l ${option.name} ${values}-d ${quoted(option.description)}`);
    }
    const kind = argumentKind(command);
    if (kind.kind === "words") add(within, `-a ${quoted(kind.words.join(" "))}`);
    else if (kind.kind !== "none") add(within, "-F");
  }
  return `# fish completion for metalora. To load it: metalora completions fish | source
# Words before the one that is completed: exactly these behind the program's name, or these first.
function __metalora_after
    set -l words (commandline -opc)
    test "$words[2..-1]" = "$argv"
end
function __metalora_within
    set -l words (commandline -opc)
    set -l last (math 1 + (count $argv))
    test (count $words) -ge $last; and test "$words[2..$last]" = "$argv"
end
complete -c metalora -f
${lines.join("\n")}
`;
}
