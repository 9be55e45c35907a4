/**
 * What tests of a GPU's faults share. No GPU is needed: tests/gpu/stand_in has a driver for the real library, and a runtime for the
 * same objects that takes whatever a test wants (`make stand-ins`).
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { command, inTurns, type Result, ROOT, text, type Workspace } from "./harness.ts";

/** Where the stand-ins lie. */
export const STAND_INS = `${ROOT}build/stand_in`;
/** Whether they were built. */
export const standInsBuilt: boolean = (() => {
  try {
    return Deno.statSync(`${STAND_INS}/libmetalora_cuda.so`).isFile;
  } catch {
    return false;
  }
})();

/** The library on the stand-in runtime, with the stand-in cuBLAS. */
export const RUNTIME = {
  METALORA_LIBRARY_DIR: STAND_INS,
  METALORA_CUDA_DIR: `${STAND_INS}/cublas`,
  METALORA_SYNCHRONOUS: "",
  METALORA_TUNE: "0",
};
/** What CUDA says of the stand-in's faults. */
export const ILLEGAL = "CUDA says 'an illegal memory access was encountered' (700)";

/** The line of a fault whose operator a repetition has found. */
export function found(action: string, repeated: string): string {
  return `Cannot ${action}: ${ILLEGAL} (found by repeating ${repeated} one operator at a time)`;
}

/** Command lines that hold a text, of the processes that work in a folder. Deno lets only those read /proc who may do everything. */
export function processesIn(folder: string, text = ""): string[] {
  const list =
    'for each in /proc/[0-9]*; do [ "$(readlink "$each/cwd")" = "$1" ] && tr "\\0" " " <"$each/cmdline" && echo; done; true';
  const { stdout } = new Deno.Command("sh", { args: ["-c", list, "sh", folder], stderr: "null" }).outputSync();
  return new TextDecoder().decode(stdout).split("\n").filter((line) => line !== "" && line.includes(text));
}

/** The library as it is, with the stand-in driver. */
export const DRIVER = {
  LD_LIBRARY_PATH: `${STAND_INS}/driver`,
  METALORA_CUDA_DIR: `${STAND_INS}/cublas`,
  CUDA_VISIBLE_DEVICES: "",
};

/** Runs the program on the device that the arguments name or that it finds itself. */
export async function freely(space: Workspace, env: Record<string, string>, ...args: string[]): Promise<Result> {
  return text(await command(args, space.path, env, null).output());
}

/** The same for `train`, into `out`. */
export function train(space: Workspace, env: Record<string, string>, ...more: string[]): Promise<Result> {
  return freely(space, env, "train", "run.yaml", "--threads=1", "--set=output=out", ...more);
}

/** Asserts that a command has failed with one line, after what a run may have told before. @returns that line */
export function oneLine({ code, out, err }: Result): string {
  const lines = err.trimEnd().split("\n");
  assertEquals([code, out, lines.filter((line) => line.startsWith("metalora: ")).length], [1, "", 1], err);
  assertMatch(lines.at(-1)!, /^metalora: /, err);
  assert(lines.at(-1)!.length < 500, err);
  return lines.at(-1)!.slice("metalora: ".length);
}

/** A test that needs the stand-ins: its checks run two at a time, and each is reported under its name. */
export function faultTest(name: string, checks: Record<string, () => Promise<void>>): void {
  if (!standInsBuilt) console.log(`skipped: ${name}: build/stand_in is not here, nvcc makes it (make stand-ins)`);
  Deno.test({
    name,
    ignore: !standInsBuilt,
    async fn(t) {
      const run = Object.values(checks).map((check) => () => check().then(() => null, (error: unknown) => error));
      const failures = await inTurns(run);
      for (const [i, step] of Object.keys(checks).entries()) {
        await t.step(step, () => {
          if (failures[i]) throw failures[i];
        });
      }
    },
  });
}

/** A check for every entry of a table. */
export function checksOf<T>(
  table: Record<string, T>,
  check: (entry: T, name: string) => Promise<void>,
): Record<string, () => Promise<void>> {
  return Object.fromEntries(Object.entries(table).map(([name, entry]) => [name, () => check(entry, name)]));
}
