/** The other side of `lib/repeat.ts`: the process that repeats what a fault of a GPU has ended. Nobody is to type it. */
import { DeviceError } from "../../ffi/native.ts";
import { endWithParent } from "../../ffi/signals.ts";
import { firstError } from "../errors.ts";
import type { Met, Work } from "../repeat.ts";
import { StopFlag } from "../train/interrupt.ts";
import { measure } from "../train/measure.ts";
import { repeatTraining } from "../train/repeat.ts";
import { printJson } from "./output.ts";
import { respectNohup } from "./signals.ts";

/**
 * Reads work from stdin, repeats it and prints what it met as the last line.
 * @param parent Number of the process that asks for it.
 * @param run Runs a command.
 * @returns the exit code; 0: the last line has the answer
 */
export async function repeat(parent: number, run: (args: readonly string[]) => Promise<number>): Promise<number> {
  respectNohup();
  if (!endWithParent(parent)) return 1;
  const work = await new Response(Deno.stdin.readable).json() as Work;
  let met: Met = { message: null, fault: false };
  try {
    if (work.kind === "command") {
      const code = await run(work.args);
      if (code !== 0) return code;
    } else if (work.kind === "train") repeatTraining(work);
    else measure(work.config, { device: work.device }, work.adapters, new StopFlag());
  } catch (thrown) {
    const error = firstError(thrown);
    met = {
      message: error instanceof Error ? error.message : String(error),
      fault: error instanceof DeviceError && error.lost,
    };
  }
  printJson(met);
  return 0;
}
