/** From the arguments of the program to a command and an exit code. */
import { firstError, UserError } from "../errors.ts";
import { didYouMean } from "../nearest.ts";
import { VERSION } from "../version.ts";
import { Arguments } from "./command.ts";
import { type CommandEntry, commands as allCommands } from "./commands.ts";
import { commandHelp, emphasise, groupHelp, programHelp } from "./help.ts";
import { OutputClosed, printFailure, printLine, printNote } from "./output.ts";
import { respectNohup } from "./signals.ts";

/**
 * Runs the command that the arguments name. Errors become one line on stderr, and with `--json` an object on stdout; `--debug` adds where they
 * arose.
 *
 * @param args Arguments of the program.
 * @returns Exit code: 0 done, 1 failed, 2 wrong usage; commands may return others.
 */
export async function runCli(args: readonly string[], commands: readonly CommandEntry[] = allCommands): Promise<number> {
  try {
    return await dispatch(args, commands);
  } catch (thrown) {
    const error = firstError(thrown);
    if (error instanceof OutputClosed) return 0;
    const own = error instanceof UserError;
    // A library that cannot be loaded and a device that cannot go on are nobody's defect; their classes would load all of ffi/ here.
    const complete = own || (error instanceof Error && ["LibraryError", "DeviceError"].includes(error.name));
    const message = await messageOf(error, args);
    const exit_code = own ? error.exitCode : 1;
    printFailure({ error: `metalora: ${message}`, exit_code }, args.includes("--json"));
    if (args.includes("--debug")) printNote(error instanceof Error && error.stack ? error.stack : Deno.inspect(error));
    else if (!complete) printNote("Run the same command with --debug to see where this arose.");
    return exit_code;
  }
}

/** One line for the reader; of a fault on a GPU with the operator that it stems from. */
async function messageOf(error: unknown, args: readonly string[]): Promise<string> {
  if (!(error instanceof Error)) return String(error);
  if (error.name === "DeviceError") {
    const { isWorthRepeating, repeated, repeatingNote } = await import("../repeat.ts");
    const work = { kind: "command", args } as const;
    if (isWorthRepeating(error)) {
      printNote(repeatingNote(work));
      return await repeated(error.message, work);
    }
  }
  return error.message || error.name;
}

async function dispatch(args: readonly string[], commands: readonly CommandEntry[]): Promise<number> {
  const [first] = args;
  if (first === undefined) {
    printNote(programHelp(commands));
    return 2;
  }
  if (first === "--version" || first === "-V") {
    printLine(`metalora ${VERSION}`);
    return 0;
  }
  if (first === "--help" || first === "-h" || (first === "help" && args.length === 1)) {
    printHelp(programHelp(commands));
    return 0;
  }
  if (first === "--licences" || first === "--licenses") {
    printLine(licences());
    return 0;
  }
  if (first === "--repeat") {
    const { repeat } = await import("./repeat.ts");
    return await repeat(Number(args[1]), (args) => dispatch(args, commands));
  }
  if (first === "help") return await dispatch([...args.slice(1), "--help"], commands);

  const entry = commands.find(({ name }) => name === args.slice(0, name.split(" ").length).join(" "));
  if (entry === undefined) return unknown(args, commands);
  respectNohup();
  const { command } = await entry.load();
  const parsed = new Arguments(command, args.slice(entry.name.split(" ").length));
  if (parsed.flag("help")) {
    printHelp(commandHelp(command));
    return 0;
  }
  return await command.run(parsed);
}

/** Licences of the program, and in the single binary of what is built into it (bootstrap/dist.ts). */
function licences(): string {
  const name = Deno.build.standalone ? "licences.txt" : "LICENSE";
  return Deno.readTextFileSync(new URL(`../../${name}`, import.meta.url)).trimEnd();
}

function printHelp(help: string): void {
  printLine(Deno.stdout.isTerminal() && !Deno.noColor ? emphasise(help) : help);
}

/** Groups such as `config` show their commands; anything else is an error with the nearest name. */
function unknown(args: readonly string[], commands: readonly CommandEntry[]): number {
  const [first, second] = args as readonly [string, ...string[]];
  const group = commands.filter(({ name }) => name.startsWith(`${first} `));
  if (group.length > 0 && (second === "--help" || second === "-h")) {
    printHelp(groupHelp(first, group));
    return 0;
  }
  if (group.length > 0) {
    const names = group.map(({ name }) => name.slice(first.length + 1));
    const what = second === undefined || second.startsWith("-")
      ? "a command is missing behind it"
      : `there is no '${first} ${second}'.`;
    const help = (second && didYouMean(second, names)) || ` Commands: ${names.join(", ")}`;
    throw new UserError(`Cannot run '${first}': ${what}${what.endsWith(".") ? "" : "."}${help}`, 2);
  }
  const names = [...new Set(commands.map(({ name }) => name.split(" ")[0]!))];
  if (first.startsWith("-")) {
    throw new UserError(`Cannot run metalora: there is no option '${first}' in front of a command. See 'metalora --help'`, 2);
  }
  throw new UserError(
    `Cannot run '${first}': there is no such command.${didYouMean(first, names) || " See 'metalora --help'"}`,
    2,
  );
}
