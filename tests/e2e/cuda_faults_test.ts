/**
 * What a GPU's bad days get: one clear line, the right exit code, and nothing half-written. No GPU is needed: tests/gpu/stand_in
 * has a driver for the real library, and a runtime for the same objects that takes whatever a test wants (`make stand-ins`).
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { command, inTurns, type Result, ROOT, text, type Workspace, workspace } from "./harness.ts";

const STAND_INS = `${ROOT}build/stand_in`;
const available = (() => {
  try {
    return Deno.statSync(`${STAND_INS}/libmetalora_cuda.so`).isFile;
  } catch {
    console.log("skipped: build/stand_in is not here, nvcc makes it (make stand-ins)");
    return false;
  }
})();

/** The library on the stand-in runtime, with the stand-in cuBLAS. */
const RUNTIME = {
  METALORA_LIBRARY_DIR: STAND_INS,
  METALORA_CUDA_DIR: `${STAND_INS}/cublas`,
  METALORA_SYNCHRONOUS: "",
  METALORA_TUNE: "0",
};
/** The library as it is, with the stand-in driver. */
const DRIVER = { LD_LIBRARY_PATH: `${STAND_INS}/driver`, METALORA_CUDA_DIR: `${STAND_INS}/cublas`, CUDA_VISIBLE_DEVICES: "" };

interface Fault {
  env: Record<string, string>;
  /** What `--device cuda` says behind "Cannot open CUDA device 0: ". */
  says: string;
  /** What a run says that chooses for itself and takes the CPU; null: it fails as with `--device cuda`. */
  stands: string | null;
  /** The line of `metalora doctor` that names the fault. */
  doctor: string;
}

const INSTALL =
  "Install it (the CUDA toolkit, or its package libcublas), name its folder in METALORA_CUDA_DIR, or use --device cpu";
const DOCTOR_INSTALL =
  "Install the CUDA toolkit or its package libcublas, or name the folder of libcublas.so in METALORA_CUDA_DIR";

/** The driver answers `says` when it is initialised. */
function initialised(error: number, says: string, remedy: string): Fault {
  return {
    env: { ...DRIVER, STAND_IN_INIT: String(error) },
    says: `the NVIDIA driver answers '${says}' (${error}). ${remedy}, or use --device cpu`,
    stands: `Computing on the CPU: the NVIDIA driver answers '${says}' (${error}). ${remedy}`,
    doctor: `✗ driver   CUDA 13.0: the NVIDIA driver answers '${says}' (${error}). ${remedy}`,
  };
}

/** The GPU is there, and cannot be taken now: a run that chooses for itself fails, too, instead of crawling on the CPU. */
function taken(env: Record<string, string>, says: string): Fault {
  return { env: { ...RUNTIME, ...env }, says, stands: null, doctor: `✗ a run    Cannot open CUDA device 0: ${says}` };
}

const OPENING: Record<string, Fault> = {
  "no driver": {
    env: { ...RUNTIME, STAND_IN_DRIVER: "0" },
    says: "there is no NVIDIA driver (libcuda.so.1). Install one, or use --device cpu",
    stands: "No NVIDIA driver here: computing on the CPU",
    doctor: "– driver   no NVIDIA driver (libcuda.so.1): runs use the CPU",
  },
  "a driver too old": {
    env: { ...DRIVER, STAND_IN_DRIVER: "12020" },
    says: "the NVIDIA driver is too old: it supports CUDA 12.2, this library needs 13.0. Update the driver, or use --device cpu",
    stands:
      "Computing on the CPU: the NVIDIA driver is too old: it supports CUDA 12.2, this library needs 13.0. Update the driver",
    doctor:
      "✗ driver   CUDA 12.2: the NVIDIA driver is too old: it supports CUDA 12.2, this library needs 13.0. Update the driver",
  },
  "no device": {
    env: { ...DRIVER, CUDA_VISIBLE_DEVICES: "7" },
    says: "the NVIDIA driver shows no GPU while CUDA_VISIBLE_DEVICES is '7'. Use --device cpu",
    stands: "Computing on the CPU: the NVIDIA driver shows no GPU while CUDA_VISIBLE_DEVICES is '7'",
    doctor: "✗ driver   CUDA 13.0: the NVIDIA driver shows no GPU while CUDA_VISIBLE_DEVICES is '7'",
  },
  "a driver that was updated under a running system": initialised(
    803,
    "system has unsupported display driver / cuda driver combination",
    "Restart the machine: the driver was updated, and the old one still runs",
  ),
  "a Fabric Manager that does not run": initialised(
    802,
    "system not yet initialized",
    "Start its Fabric Manager (systemctl start nvidia-fabricmanager)",
  ),
  "an unsupported chip": {
    env: { ...RUNTIME, STAND_IN_CAPABILITY: "7.5" },
    says: "Stand-in has compute capability 7.5, at least 8.0 (Ampere) is needed. Use --device cpu",
    stands: "Computing on the CPU: Stand-in has compute capability 7.5, at least 8.0 is needed",
    doctor: "✗ cuda:0   Stand-in, compute capability 7.5, 16 multiprocessors, 16.00 GiB: at least 8.0 (Ampere) is needed",
  },
  "a missing cuBLAS": {
    env: { ...RUNTIME, METALORA_CUDA_DIR: STAND_INS },
    says:
      `cuBLAS was not found: METALORA_CUDA_DIR names ${STAND_INS}, which has neither libcublas.so.13 nor libcublas.so.12. ${INSTALL}`,
    stands:
      `Computing on the CPU, not on Stand-in: cuBLAS was not found: METALORA_CUDA_DIR names ${STAND_INS}, which has neither ` +
      "libcublas.so.13 nor libcublas.so.12. metalora doctor tells more",
    doctor:
      `✗ cuBLAS   not found: METALORA_CUDA_DIR names ${STAND_INS}, which has neither libcublas.so.13 nor libcublas.so.12. ` +
      DOCTOR_INSTALL,
  },
  "a cuBLAS without a function": {
    env: { ...RUNTIME, METALORA_CUDA_DIR: `${STAND_INS}/cublas_incomplete` },
    says: `cuBLAS cannot be used: ${STAND_INS}/cublas_incomplete/libcublas.so.13 has no cublasGemmEx. ${INSTALL}`,
    stands:
      `Computing on the CPU, not on Stand-in: cuBLAS cannot be used: ${STAND_INS}/cublas_incomplete/libcublas.so.13 has no ` +
      "cublasGemmEx. metalora doctor tells more",
    doctor: `✗ cuBLAS   cannot be used: ${STAND_INS}/cublas_incomplete/libcublas.so.13 has no cublasGemmEx. ${DOCTOR_INSTALL}`,
  },
  "a GPU that another process holds": taken(
    { STAND_IN_OPEN: "46" },
    "another process holds it exclusively (nvidia-smi shows it). Wait for it, or use another --device",
  ),
  "a GPU without room for a context": taken(
    { STAND_IN_OPEN: "2" },
    "other processes hold its memory (nvidia-smi shows them). Wait for them, or use another --device",
  ),
  "a GPU without room for the library's own buffers": taken(
    { STAND_IN_FREE_MIB: "20" },
    "11 of 16384 MiB are free, at least 41 are needed; other processes hold the rest (nvidia-smi shows them). Wait for them, or use " +
      "another --device",
  ),
  "a cuBLAS that finds no memory": taken(
    { STAND_IN_CUBLAS: "create:3" },
    `cuBLAS (${STAND_INS}/cublas/libcublas.so.13) answers 'out of memory' (3), with 15319 of 16384 MiB free. Free some memory, or use ` +
      "another cuBLAS",
  ),
};

/** Runs the program under a fault, on the device that the arguments name or that it finds itself. */
async function faulty(space: Workspace, env: Record<string, string>, ...args: string[]): Promise<Result> {
  return text(await command(args, space.path, env, null).output());
}

function train(space: Workspace, env: Record<string, string>, ...more: string[]): Promise<Result> {
  return faulty(space, env, "train", "run.yaml", "--threads=1", "--set=output=out", ...more);
}

/** Asserts that a command has failed with one line, after what a run may have told before. @returns that line */
function oneLine({ code, out, err }: Result): string {
  const lines = err.trimEnd().split("\n");
  assertEquals([code, out, lines.filter((line) => line.startsWith("metalora: ")).length], [1, "", 1], err);
  assertMatch(lines.at(-1)!, /^metalora: /, err);
  assert(lines.at(-1)!.length < 500, err);
  return lines.at(-1)!.slice("metalora: ".length);
}

/** Runs checks two at a time and reports each under its name. */
async function each(t: Deno.TestContext, checks: Record<string, () => Promise<void>>): Promise<void> {
  const run = Object.values(checks).map((check) => () => check().then(() => null, (error: unknown) => error));
  const failures = await inTurns(run);
  for (const [i, name] of Object.keys(checks).entries()) {
    await t.step(name, () => {
      if (failures[i]) throw failures[i];
    });
  }
}

const checksOf = (check: (fault: Fault) => Promise<void>) =>
  Object.fromEntries(Object.entries(OPENING).map(([name, fault]) => [name, () => check(fault)]));

Deno.test({
  name: "a GPU that cannot be opened: train --device cuda says one line, exits with 1 and leaves nothing behind",
  ignore: !available,
  fn: (t) =>
    each(
      t,
      checksOf(async ({ env, says }) => {
        using space = workspace();
        const result = await train(space, env, "--device=cuda");
        assertEquals(oneLine(result), `Cannot open CUDA device 0: ${says}`);
        assertEquals(result.err.trimEnd().split("\n").length, 1);
        assert(!space.exists("out"), "the output folder stayed");
      }),
    ),
});

Deno.test({
  name: "a GPU that cannot be used: without --device the CPU stands in and says so in one line; one that is taken ends the run",
  ignore: !available,
  fn: (t) =>
    each(
      t,
      checksOf(async ({ env, says, stands }) => {
        using space = workspace();
        const result = await train(space, env, "--set=train.steps=1");
        if (stands === null) {
          assertEquals(oneLine(result), `Cannot open CUDA device 0: ${says}`);
          assert(!space.exists("out"), "the output folder stayed");
          return;
        }
        assertEquals(result.code, 0, result.err);
        assertEquals(result.err.split("\n").filter((line) => /CPU|cuda/i.test(line)), [stands]);
        assert(space.exists("out", "adapter", "adapter_model.safetensors"));
      }),
    ),
});

Deno.test({
  name: "metalora doctor names what keeps a GPU from being used, and exits with 1 only when a run would fail",
  ignore: !available,
  fn: (t) =>
    each(
      t,
      checksOf(async ({ env, says, stands, doctor }) => {
        using space = workspace();
        const [plain, json] = [await faulty(space, env, "doctor"), await faulty(space, env, "doctor", "--json")];
        const code = stands === null ? 1 : 0;
        assertEquals([plain.code, plain.err, json.code, json.err], [code, "", code, ""], plain.out);
        const lines = plain.out.trimEnd().split("\n");
        assertEquals(lines.filter((line) => line === doctor), [doctor], plain.out);
        const { cuda, findings } = JSON.parse(json.out);
        const run = findings.at(-1);
        assertEquals(run.what, "a run");
        assertEquals(run.state, code === 0 ? "ok" : "broken");
        if (code === 1) assertEquals(run.text, `Cannot open CUDA device 0: ${says}`);
        const reasons = [cuda.problem, cuda.cublas.problem].filter((text) => text !== "");
        const chip = cuda.gpus.some(({ usable }: { usable: boolean }) => !usable);
        assertEquals(reasons.length + (chip ? 1 : 0), code === 0 ? 1 : 0, json.out);
      }),
    ),
});
