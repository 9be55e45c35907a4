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

/** A run of 12 steps with a checkpoint every 4, whose passes are replayed from the third of a shape on. */
const LONG = ["--device=cuda", "--set=train.steps=12", "--set=checkpoints={ every: 4, keep: 8 }"];
const ILLEGAL = "CUDA says 'an illegal memory access was encountered' (700)";
const EARLIER = "; it may stem from an operator before this one: run again with METALORA_SYNCHRONOUS=1 to learn which";

Deno.test({
  name: "memory that is taken between the plan and the allocation: one line with what is needed and free, and nothing left",
  ignore: !available,
  fn: (t) => {
    const allocations = (count: number) => ({ ...RUNTIME, STAND_IN_ALLOCATIONS: String(count) });
    const cases: Record<string, [env: Record<string, string>, says: RegExp]> = {
      "none for the run": [
        { ...RUNTIME, STAND_IN_FREE_MIB: "50" },
        /^Cannot train: it takes 66\d MiB of memory, and 645 MiB is free or allowed \(other processes hold 15\.\d+ GiB of the GPU; nvidia-smi shows them\)\. /,
      ],
      "the library's buffers": [
        allocations(1),
        /^Cannot open CUDA device 0: 0 of 16384 MiB are free, at least 41 are needed; other processes hold the rest /,
      ],
      "the run's block": [
        allocations(3),
        /^Cannot allocate \d{6} bytes: that is 1 MiB, the GPU has 0 of 16384 MiB free \(this process holds 0; nvidia-smi shows the others\)$/,
      ],
      "the upload's buffer": [
        allocations(4),
        /^Cannot upload \[260,32\]: the GPU's memory is exhausted: 0 of 16384 MiB are free \(nvidia-smi shows who holds the rest\)$/,
      ],
    };
    return each(
      t,
      Object.fromEntries(
        Object.entries(cases).map(([name, [env, says]]) => [name, async () => {
          using space = workspace();
          const result = await train(space, env, "--device=cuda");
          assertMatch(oneLine(result), says);
          assertEquals(result.err.trimEnd().split("\n").length, 1);
          assert(!space.exists("out"), "the output folder stayed");
        }]),
      ),
    );
  },
});

Deno.test({
  name: "a fault in a kernel ends the run with one line; checkpoints stay whole, no adapter appears, and --resume goes on",
  ignore: !available,
  fn: (t) => {
    const cases: Record<string, [env: Record<string, string>, says: string, checkpoints: string[]]> = {
      "at the first batch": [
        { STAND_IN_FAULT: "700 5embed 1" },
        `Cannot download 32 bytes: ${ILLEGAL}${EARLIER}`,
        [],
      ],
      "in a pass that is replayed": [
        { STAND_IN_FAULT: "700 5embed 11" },
        `Cannot download 32 bytes: ${ILLEGAL}${EARLIER}`,
        ["step-4", "step-8"],
      ],
      "in the optimizer, before a checkpoint": [
        { STAND_IN_FAULT: "700 6update 8" },
        `Cannot download 14848 bytes: ${ILLEGAL}${EARLIER}`,
        ["step-4"],
      ],
      "a kernel that cannot be started": [
        { STAND_IN_LAUNCH: "98 6update" },
        "Cannot update 3712 parameters: CUDA says 'invalid device function' (98)",
        [],
      ],
      "a product that cuBLAS refuses": [
        { STAND_IN_CUBLAS: "gemm:13" },
        "Cannot apply a linear layer of 32 inputs to 128 rows: cuBLAS answers 'execution failed' (13) to a product [128,32] by " +
        `[32,12]${EARLIER}`,
        [],
      ],
    };
    return each(
      t,
      Object.fromEntries(
        Object.entries(cases).map(([name, [env, says, checkpoints]]) => [name, async () => {
          using space = workspace();
          assertEquals(oneLine(await train(space, { ...RUNTIME, ...env }, ...LONG)), says);
          assertEquals(space.checkpoints("out").toSorted(), checkpoints);
          const files = space.tree("out").filter((path) => !path.startsWith("checkpoints/"));
          const saved = checkpoints.length > 0 ? ["weights.jsonl"] : [];
          assertEquals(files, ["config.yaml", "metrics.jsonl", ...saved]);
          assertEquals(space.tree("out").filter((path) => path.includes(".tmp")), [], "unfinished files stayed");
          const { code, err } = await train(space, RUNTIME, ...LONG, "--resume");
          assertEquals(code, 0, err);
          const last = checkpoints.at(-1);
          assertEquals(/continuing from step \d+/.exec(err)?.[0], last && `continuing from step ${last.slice("step-".length)}`);
          assert(space.exists("out", "adapter", "adapter_model.safetensors"));
        }]),
      ),
    );
  },
});

/** Kernels by a part of their names, and what is said of the twentieth that runs: recorded passes would have been replayed by then. */
const KERNELS: Record<string, string> = {
  "5embed": "look up 128 ids in an embedding [260,32]",
  "7forwardILi8ELi1E": "normalise [128,32]",
  "6rotate": "rotate 128 rows of 6 heads of 8",
  "7forwardILi8EEEvli": "gate [128,48]",
  "6gather": "gather 64 rows of 32",
  "8long_row": "compute the loss of 64 rows with a head [260,32]",
  "7scatter": "scatter 64 rows of 32 into 128",
  "8backwardILi8EEEvli": "differentiate the gating of [128,48]",
  "8backwardILi8ELi1E": "differentiate the norm of [128,32]",
  "12delta_kernel": "differentiate attention to 128 rows in 4 segments (4 query heads, 2 key heads of 8)",
  "12outer_kernel": "form 1 outer products [32,4]",
  "10sum_kernel": "sum the rows of 4 segments",
  "10chunk_dots": "take 4 inner products of 960 numbers",
  "12combine_rows": "combine 4 vectors of 896 numbers",
  "7refresh": "refresh 1 adapters of a linear layer with 32 inputs",
  "6update": "update 3712 parameters",
};

Deno.test({
  name: "with METALORA_SYNCHRONOUS=1 the line names the operator whose kernel ran into a fault, and its shapes",
  ignore: !available,
  fn: (t) =>
    each(
      t,
      Object.fromEntries(
        Object.entries(KERNELS).map(([kernel, action]) => [action, async () => {
          using space = workspace();
          const env = { ...RUNTIME, METALORA_SYNCHRONOUS: "1", STAND_IN_FAULT: `700 ${kernel} 20` };
          const settings = ["--set=train.steps=30", "--set=reweight.method=meta-lora"];
          assertEquals(oneLine(await train(space, env, "--device=cuda", ...settings)), `Cannot ${action}: ${ILLEGAL}`);
        }]),
      ),
    ),
});

Deno.test({
  name: "eval, score and bench tell a GPU's fault in one line, too",
  ignore: !available,
  fn: (t) => {
    const full = { STAND_IN_FREE_MIB: "20" }, fault = { STAND_IN_FAULT: "700 5embed 1" };
    const room = /^Cannot open CUDA device 0: 11 of 16384 MiB are free, at least 41 are needed/;
    const model = ["--model-shape=smollm2-135m", "--batch=1", "--length=16", "--steps=2"];
    const cases: [string[], Record<string, string>, RegExp][] = [
      [["eval", "run.yaml"], full, room],
      [
        ["eval", "run.yaml"],
        fault,
        /^Cannot download \d+ bytes: CUDA says 'an illegal memory access was encountered' \(700\); it may /,
      ],
      [["score", "run.yaml"], full, room],
      [
        ["score", "run.yaml"],
        fault,
        /^Cannot download \d+ bytes: CUDA says 'an illegal memory access was encountered' \(700\); it may /,
      ],
      [["bench", ...model], full, room],
      [
        ["bench", ...model],
        { STAND_IN_FREE_MIB: "300" },
        /^Cannot run this: it takes 1\.\d+ GiB of memory, and 895 MiB is free or allowed/,
      ],
    ];
    return each(
      t,
      Object.fromEntries(cases.map(([args, env, says]) => [`${args[0]} ${Object.keys(env)}`, async () => {
        using space = workspace();
        assertMatch(oneLine(await faulty(space, { ...RUNTIME, ...env }, ...args, "--device=cuda")), says);
      }])),
    );
  },
});

Deno.test({
  name: "the first GPU that can be used is taken, and a number beyond the last is refused",
  ignore: !available,
  async fn() {
    using space = workspace();
    const env = { ...RUNTIME, STAND_IN_GPUS: "2", STAND_IN_CAPABILITY: "7.5,8.6" };
    const run = await train(space, env, "--set=train.steps=1");
    assertEquals(run.code, 0, run.err);
    assertMatch(run.err, /^Stand-in, compute capability 8\.6, 16384 MiB; memory planned /m);
    const beyond = await train(space, env, "--device=cuda:2");
    assertEquals(oneLine(beyond), "Cannot open CUDA device 2: this machine has 2 GPUs, numbered from 0");
  },
});

Deno.test({
  name: "the tests of a real card's faults pass on the stand-ins: memory that processes share, two runs at once",
  ignore: !available,
  async fn() {
    using space = workspace();
    const env = {
      ...RUNTIME,
      STAND_IN_POOL: space.file("pool"),
      METALORA_TEST_ALONE: "1",
      METALORA_TEST_BACKEND: "",
      NO_COLOR: "1",
    };
    const args = ["test", "--quiet", "--no-check", "--allow-all", `--config=${ROOT}deno.json`, `${ROOT}tests/gpu/faults_test.ts`];
    const { code, out, err } = text(await new Deno.Command(Deno.execPath(), { args, env, cwd: ROOT }).output());
    assertEquals(code, 0, out + err);
    assertMatch(out, /^ok \| 5 passed \| 0 failed/m);
  },
});
