/** The completion scripts, loaded into the real shells. */
import { assertEquals } from "@std/assert";
import { commands } from "../../lib/cli/commands.ts";
import { bashScript, fishScript, kindOf, zshScript } from "../../lib/cli/shells.ts";
import { configKeys } from "../../lib/config/keys.ts";

const all = await Promise.all(commands.map(async ({ load }) => (await load()).command));
const keys = configKeys();

/** Standard output of a shell command, null where that shell is not installed. */
async function shell(program: string, args: readonly string[]): Promise<string | null> {
  try {
    const { stdout, stderr, success } = await new Deno.Command(program, { args: [...args], stdin: "null" }).output();
    assertEquals([success, new TextDecoder().decode(stderr)], [true, ""], args.join(" "));
    return new TextDecoder().decode(stdout);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    console.log(`skipped: ${program} is not installed`);
    return null;
  }
}

/** Runs with the script and an empty folder with the files run.yaml and data/ in it. */
async function withScript(text: string, use: (script: string, folder: string) => Promise<void>): Promise<void> {
  const folder = Deno.makeTempDirSync({ prefix: "metalora-completions-" });
  try {
    Deno.writeTextFileSync(`${folder}/script`, text);
    Deno.mkdirSync(`${folder}/here/data`, { recursive: true });
    Deno.writeTextFileSync(`${folder}/here/run.yaml`, "");
    await use(`${folder}/script`, `${folder}/here`);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

/** Words of a command line, the last one incomplete, and what must be offered for it. */
const LINES: readonly (readonly [words: string[], offered: string[]])[] = [
  [["tr"], ["train"]],
  [["conf"], ["config"]],
  [["config", "s"], ["schema"]],
  [["train", "--dry"], ["--dry-run"]],
  [["train", "--device", ""], ["cpu", "cuda"]],
  [["train", "run.yaml", "--set", "train.st"], ["train.steps="]],
  [["config", "check", "--js"], ["--json"]],
  [["completions", ""], ["bash", "fish", "zsh"]],
  [["train", "ru"], ["run.yaml"]],
  [["eval", "--model", "da"], ["data"]],
];

Deno.test("bash completes commands, options, values, keys and files", async () => {
  await withScript(bashScript(all, keys), async (script, folder) => {
    for (const [words, offered] of LINES) {
      const line = `source "$0"; complete -p metalora >/dev/null; cd "$1"; shift; COMP_WORDS=(metalora "$@"); COMP_CWORD=$#; ` +
        `_metalora; printf '%s\\n' "\${COMPREPLY[@]}"`;
      const out = await shell("bash", ["--norc", "-c", line, script, folder, ...words]);
      if (out === null) return;
      assertEquals(out.trim().split("\n").sort(), offered, words.join(" "));
    }
    // Behind "=", which bash makes a word of its own.
    const line = `source "$0"; COMP_WORDS=(metalora train --device = cu); COMP_CWORD=4; _metalora; echo "\${COMPREPLY[@]}"`;
    assertEquals(await shell("bash", ["--norc", "-c", line, script]), "cuda\n");
  });
});

Deno.test("fish completes commands, options, values, keys and files", async () => {
  await withScript(fishScript(all, keys), async (script, folder) => {
    for (const [words, offered] of LINES) {
      const line = `source ${script}; cd ${folder}; complete -C "metalora ${words.join(" ")}"`;
      const out = await shell("fish", ["--no-config", "-c", line]);
      if (out === null) return;
      const found = out.trim().split("\n").map((each) => each.split("\t")[0]!.replace(/\/$/, ""));
      assertEquals(found.sort(), offered, words.join(" "));
    }
  });
});

/** A terminal of its own in which a person types a line, presses Tab, and Ctrl-X, which prints the line. */
const ZSH = `
zmodload zsh/zpty
zpty terminal zsh -f -i
zpty -w terminal "PROMPT= RPROMPT= ; cd $2; autoload -Uz compinit; compinit -u -D; source $1; unsetopt auto_list"
zpty -w terminal 'show() { print -r -- "<<$BUFFER>>"; BUFFER= }; zle -N show; bindkey "^X" show; echo "rea""dy"'
zpty -r terminal text '*ready*'
zpty -w -n terminal "$3"$'\\t\\x18'
zpty -r terminal text '*>>*'
text=\${text##*<<}
print -r -- "\${text%%>>*}"
zpty -d terminal
`;

Deno.test("zsh completes commands, options, values, keys and files", async () => {
  await withScript(zshScript(all, keys), async (script, folder) => {
    for (const [words, offered] of LINES) {
      if (offered.length > 1) continue; // the line stays as it is
      const typed = `metalora ${words.join(" ")}`;
      const out = await shell("zsh", ["-f", "-c", ZSH, "zsh", script, folder, typed]);
      if (out === null) return;
      assertEquals(out.trim().replace(/\/$/, ""), `metalora ${[...words.slice(0, -1), ...offered].join(" ")}`, typed);
    }
  });
});

Deno.test("kindOf() tells words, files, folders and keys from placeholders", () => {
  assertEquals(kindOf("cpu|cuda[:N]"), { kind: "words", words: ["cpu", "cuda"] });
  assertEquals(kindOf("NAME|DIR"), { kind: "folder" });
  assertEquals(["FILE", "CONFIG", "KEY", "KEY=VALUE", "N", "TEXT"].map((name) => kindOf(name).kind), [
    "file",
    "file",
    "key",
    "setting",
    "none",
    "none",
  ]);
});

Deno.test("configKeys() has every key that --set takes, and no groups", () => {
  for (const key of ["model", "train.steps", "data.train.path", "data.validation.path", "reweight.validation.every"]) {
    assertEquals(keys.includes(key), true, key);
  }
  for (const key of ["train", "data.validation", "reweight"]) assertEquals(keys.includes(key), false, key);
});
