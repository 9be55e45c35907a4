/** `--device` and `--threads`, for every command that computes. */
import { UserError } from "../errors.ts";
import type { Arguments, Option } from "./command.ts";

/** `--device`. */
export const deviceOption: Option = { name: "device", value: "cpu", description: "Where to compute; this version has the CPU" };

/** `--threads`. */
export const threadsOption: Option = { name: "threads", value: "N", description: "CPU threads (default: all cores)" };

/** @throws {UserError} exit code 2, when another device than the CPU is asked for */
export function requireCpu(args: Arguments): void {
  const device = args.value("device") ?? "cpu";
  if (device !== "cpu") {
    throw new UserError(
      `Cannot use --device ${device}: this version computes on the CPU only. Leave the option out, or give cpu`,
      2,
    );
  }
}
