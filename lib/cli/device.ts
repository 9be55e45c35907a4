/** `--device` and `--threads`, for every command that computes. */
import type { Device } from "../../ffi/device.ts";
import { chooseDevice, type DeviceChoice, openDevice as open } from "../devices.ts";
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
 * The device that the arguments ask for, or the best that there is.
 * @throws {UserError} exit code 2 when they name none
 */
export function deviceOf(args: Arguments): DeviceChoice {
  const threads = args.number("threads", { min: 1, max: 4096, whole: true }) ?? 0;
  return chooseDevice(args.value("device") ?? null, threads);
}

/**
 * Opens it. Says in one line on stderr when the CPU stands in for a GPU.
 * @throws {UserError} when it cannot be opened
 */
export function openDevice(args: Arguments): Device {
  const choice = deviceOf(args);
  const device = open(choice);
  if (choice.note) printNote(choice.note);
  return device;
}
