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
  ],
  options: [setOption, jsonOption],
  positional: [1, 1],
  examples: [
    ["config check configs/mawps.yaml", "Is the file right, and what will be used?"],
    ["config check configs/mawps.yaml --set reweight.preset=reference", "The same with another key"],
  ],
  run(args) {
    const json = args.flag("json");
    try {
      const { config } = loadConfig(args.positional[0]!, [...args.values("set")]);
      if (json) printJson({ ok: true, config });
      else printLine(writeConfig(config).trimEnd());
      return 0;
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      if (json) printJson({ ok: false, problems: error.problems });
      for (const problem of error.problems) printNote(`metalora: ${problem}`);
      return error.exitCode;
    }
  },
};
