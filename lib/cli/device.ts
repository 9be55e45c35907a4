/** `--device` and `--threads`, for every command that computes. */
import { chooseDevice, type DeviceChoice } from "../devices.ts";
import type { Arguments, Option } from "./command.ts";
import { printNote } from "./output.ts";

/** `--device`. */
export const deviceOption: Option = {
  name: "device",
  value: "cpu|cuda[:N]",
  description: "Where to compute (default: the first GPU that can, else the CPU)",
};

/** `--threads`. */
export const threadsOption: Option = { name: "threads", value: "N", description: "CPU threads (default: all cores)" };

/**
 * The device that the arguments ask for. Says in one line on stderr when the CPU stands in for a GPU.
 * @throws {UserError} exit code 2 when they name none
 */
export function deviceOf(args: Arguments): DeviceChoice {
  const threads = args.number("threads", { min: 1, max: 4096, whole: true }) ?? 0;
  const choice = chooseDevice(args.value("device") ?? null, threads);
  if (choice.note) printNote(choice.note);
  return choice;
}
