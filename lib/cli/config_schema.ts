import { configJsonSchema } from "../config/write.ts";
import type { Command } from "./command.ts";
import { printLine } from "./output.ts";

/** `metalora config schema`: JSON Schema of a configuration file. */
export const command: Command = {
  name: "config schema",
  summary: "Print the JSON Schema of configurations",
  usage: "",
  details: ["Editors that know it complete and check keys while a configuration is written."],
  options: [],
  examples: [["config schema > metalora.schema.json", "Keep it where the editor finds it"]],
  run() {
    printLine(JSON.stringify(configJsonSchema(), null, 2));
    return 0;
  },
};
