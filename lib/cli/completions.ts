import { configKeys } from "../config/keys.ts";
import { UserError } from "../errors.ts";
import { didYouMean } from "../nearest.ts";
import type { Command } from "./command.ts";
import { printLine } from "./output.ts";
import { bashScript, fishScript, zshScript } from "./shells.ts";

const SHELLS = { bash: bashScript, zsh: zshScript, fish: fishScript };

/** `metalora completions`: a script that completes commands, options and keys of the configuration. */
export const command: Command = {
  name: "completions",
  summary: "Print a script that lets a shell complete metalora's commands",
  usage: "bash|zsh|fish",
  details: [
    "The script completes commands, options, their values, and the keys of a configuration behind --set. It is made from the " +
    "program's own tables: print it again after an update.",
  ],
  options: [],
  positional: [1, 1],
  examples: [
    ["completions bash > ~/.local/share/bash-completion/completions/metalora", "bash, in every new shell"],
    ["completions zsh > ~/.zfunc/_metalora", "zsh, where ~/.zfunc is in $fpath before compinit runs"],
    ["completions fish > ~/.config/fish/completions/metalora.fish", "fish"],
  ],
  async run(args) {
    const shell = args.positional[0]!;
    if (!(shell in SHELLS)) {
      const names = Object.keys(SHELLS);
      throw new UserError(
        `Cannot print completions for '${shell}': expected ${names.join(", ")}.${didYouMean(shell, names)}`,
        2,
      );
    }
    // Imported here: the table names this module.
    const { commands } = await import("./commands.ts");
    const all = await Promise.all(commands.map(async ({ load }) => (await load()).command));
    printLine(SHELLS[shell as keyof typeof SHELLS](all, configKeys()).trimEnd());
    return 0;
  },
};
