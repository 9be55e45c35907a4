import { join } from "node:path";
import { loadConfig } from "../config/load.ts";
import { UserError } from "../errors.ts";
import { exists, isFolder, requireParent } from "../files.ts";
import { gatherFromFolder } from "../report/gather.ts";
import { renderReport } from "../report/report.ts";
import { writeAll, writeFileAtomic } from "../tensor/atomic.ts";
import { runFolder } from "../train/folder.ts";
import { type Command, jsonOption, setOption } from "./command.ts";
import { printJson, printLine, printNote } from "./output.ts";

/** `metalora report`: report.html anew. */
export const command: Command = {
  name: "report",
  summary: "Make the page of a run again from its folder",
  usage: "FOLDER|CONFIG [--output FILE] [--json]",
  details: [
    "Draws report.html from what a run wrote: metrics.jsonl, weights.jsonl, config.yaml. Works while the run goes on, and for one that " +
    "was stopped. Texts of samples come from the data files, as long as they are where the run read them.",
    "With a configuration: of its output folder. Of a folder of metalora retrain it is the current release's.",
  ],
  options: [
    { name: "output", value: "FILE", description: "Write the page there (default: report.html in the folder)" },
    setOption,
    jsonOption,
  ],
  positional: [1, 1],
  files: [["<folder>/report.html", "the page; it needs neither network nor script"]],
  examples: [
    ["report runs/math", "The page of a run"],
    ["report run.yaml --output /tmp/now.html", "How the run of a configuration is doing"],
  ],
  run(args) {
    const [name] = args.positional as [string];
    const sets = [...args.values("set")];
    if (!exists(name)) {
      const advice = "Name the output folder of a run, or its configuration";
      throw new UserError(`Cannot make a report of ${name}: there is no such folder or file. ${advice}`, 2);
    }
    const folder = runFolder(isFolder(name) ? name : loadConfig(name, sets).config.output);
    if (isFolder(name) && sets.length > 0) {
      throw new UserError("Cannot make a report: --set goes with a configuration, not with a folder. Leave it out", 2);
    }
    const elsewhere = args.value("output");
    if (elsewhere !== undefined) requirePlace(elsewhere);
    const input = gatherFromFolder(folder);
    const path = elsewhere ?? join(folder, "report.html");
    writeFileAtomic(path, (file) => writeAll(file, new TextEncoder().encode(renderReport(input))));
    const notes = input.facts.flatMap(([key, value]) => key === "Note" ? [value] : []);
    for (const note of notes) printNote(note);
    if (args.flag("json")) printJson({ report: path, samples: input.samples.length, lines: input.metrics.length, notes });
    else printLine(`wrote ${path}`);
    return 0;
  },
};

/** @throws {UserError} exit code 2, where no file can be written by that name */
function requirePlace(path: string): void {
  requireParent(path);
  if (isFolder(path)) throw new UserError(`Cannot write ${path}: it is a folder. Name a file with --output`, 2);
}
