import { missingFiles } from "../config/files.ts";
import { ConfigError, loadConfig } from "../config/load.ts";
import { writeConfig } from "../config/write.ts";
import { type Command, jsonOption, setOption } from "./command.ts";
import { printJson, printLine, printNote } from "./output.ts";

/** `metalora config check`: every problem of a configuration, or the configuration with every default. */
export const command: Command = {
  name: "config check",
  summary: "Check a configuration and show it with every default",
  usage: "CONFIG [--set KEY=VALUE]… [--json]",
  details: [
    "Prints the configuration as a run will use it: presets applied, every default spelled out. When something is wrong, prints " +
    "every problem as FILE:LINE:COLUMN and what to do, and exits with 2.",
    "The model's folder and the files with data must be there; what is in them is not read. 'metalora train CONFIG --dry-run' does.",
  ],
  options: [setOption, jsonOption],
  positional: [1, 1],
  examples: [
    ["config check run.yaml", "Is the file right, and what will be used?"],
    ["config check run.yaml --set reweight.preset=reference", "The same with another key"],
  ],
  run(args) {
    const json = args.flag("json");
    try {
      const loaded = loadConfig(args.positional[0]!, [...args.values("set")]);
      const { config } = loaded;
      const problems = missingFiles(loaded);
      if (json) printJson(problems.length === 0 ? { ok: true, config } : { ok: false, problems, config });
      else printLine(writeConfig(config).trimEnd());
      for (const problem of problems) printNote(`metalora: ${problem}`);
      return problems.length === 0 ? 0 : 2;
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      if (json) printJson({ ok: false, problems: error.problems });
      for (const problem of error.problems) printNote(`metalora: ${problem}`);
      return error.exitCode;
    }
  },
};
