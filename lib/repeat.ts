/**
 * Finds the operator that a fault of a GPU stems from. Kernels run asynchronously: a call that waits, operators later, is told of the
 * fault, and the context is lost to this process then. So another process of this program repeats what was being done, waits after
 * every operator (METALORA_SYNCHRONOUS=1), and ends with the line that names it. A healthy run pays nothing.
 */
import { DeviceError, synchronous } from "../ffi/native.ts";
import type { DeviceOptions } from "./devices.ts";
import type { Config } from "./config/schema.ts";
import type { Position } from "./train/session.ts";

/** Something to be done once more. Plain data. */
export type Work =
  /** A whole command; what it prints is thrown away. */
  | { readonly kind: "command"; readonly args: readonly string[] }
  /** The newest pass of a run, and the evaluation behind it. */
  | { readonly kind: "train"; readonly config: Config; readonly device: DeviceOptions; readonly position: Position }
  /** A measurement of adapters. */
  | {
    readonly kind: "measure";
    readonly config: Config;
    readonly device: DeviceOptions;
    readonly adapters: readonly (string | null)[];
  };

/** What the other process met, printed as its last line. */
export interface Met {
  /** Why the work failed; null: it did not. */
  readonly message: string | null;
  /** Whether that was a fault in an operator, which the message names then. */
  readonly fault: boolean;
}

/** Whether a repetition could name the operator that an error stems from, and the error cannot. */
export function isWorthRepeating(error: unknown): error is DeviceError {
  return error instanceof DeviceError && error.lost && !synchronous();
}

/** Says that something is being repeated. */
export function repeatingNote(work: Work): string {
  return `a kernel failed: repeating ${nameOf(work)} one operator at a time, to learn which`;
}

/**
 * Repeats work that a fault has ended; the device that was lost must be closed.
 * @param message What was said of the fault.
 * @param signal Ends the repetition, or keeps it from beginning.
 * @returns one line that names the operator, or says why it is not known
 */
export async function repeated(message: string, work: Work, signal?: AbortSignal): Promise<string> {
  const name = nameOf(work);
  let met: Met;
  try {
    met = await inAnotherProcess(work, signal);
  } catch (error) {
    met = { message: error instanceof Error ? error.message : String(error), fault: false };
  }
  if (met.message === null) {
    return `${message}; ${name}, repeated one operator at a time, met no fault: the GPU, its driver or a race may be to blame. ` +
      "Look for Xid errors (dmesg, nvidia-smi -q), then run it again (train: with --resume)";
  }
  if (met.fault) return `${met.message} (found by repeating ${name} one operator at a time)`;
  return `${message}; it may stem from an operator before this one, and ${name} could not be repeated to learn which: ` +
    `${met.message.split(". ")[0]}. Run again with METALORA_SYNCHRONOUS=1`;
}

/** What the reader knows the work as. */
function nameOf(work: Work): string {
  if (work.kind === "command") return work.args[0]!;
  if (work.kind === "measure") return "the measurement";
  const { before, evaluating } = work.position;
  if (before === null) return evaluating ? "the evaluation" : "the start of the run";
  return evaluating ? `the evaluation behind step ${before.step + 1}` : `step ${before.step + 1}`;
}

/** @throws {Error} when there is no answer */
async function inAnotherProcess(work: Work, signal: AbortSignal | undefined): Promise<Met> {
  signal?.throwIfAborted(); // Deno would start it all the same
  const program = Deno.execPath();
  if (program.endsWith(" (deleted)")) throw new Error("the program's file was replaced or removed while it ran");
  const rights = ["ffi", "read", "env", "sys"].map((name) => `--allow-${name}`); // it has nothing to write
  const source = ["run", "--quiet", "--no-prompt", ...rights, new URL("../main.ts", import.meta.url).href];
  const child = new Deno.Command(program, {
    args: [...Deno.build.standalone ? [] : source, "--repeat", String(Deno.pid)], // lib/cli/repeat.ts
    env: { METALORA_SYNCHRONOUS: "1" },
    stdin: "piped",
    stdout: "piped",
    stderr: "null",
    ...signal ? { signal } : {},
  }).spawn();
  const output = child.output();
  await new Blob([JSON.stringify(work)]).stream().pipeTo(child.stdin).catch(() => {}); // it has ended: the output tells
  const { stdout, code, signal: ended } = await output;
  if (code !== 0) {
    signal?.throwIfAborted();
    throw new Error(ended !== null ? `${ended} ended the process for it` : `the process for it ended with exit code ${code}`);
  }
  return JSON.parse(new TextDecoder().decode(stdout).trimEnd().split("\n").at(-1)!);
}
