/** A GPU that cannot be opened or used: one clear line, the right exit code, and nothing left; or the CPU stands in and says so. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { workspace } from "./harness.ts";
import { checksOf, DRIVER, faultTest, freely, oneLine, RUNTIME, STAND_INS, train } from "./stand_ins.ts";

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
    doctor: "– driver   no NVIDIA driver (libcuda.so.1): runs use the CPU. Install one to use a GPU",
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
    says: "the NVIDIA driver shows no GPU while CUDA_VISIBLE_DEVICES is '7'. Correct or unset it, or use --device cpu",
    stands: "Computing on the CPU: the NVIDIA driver shows no GPU while CUDA_VISIBLE_DEVICES is '7'. Correct or unset it",
    doctor: "✗ driver   CUDA 13.0: the NVIDIA driver shows no GPU while CUDA_VISIBLE_DEVICES is '7'. Correct or unset it",
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
    doctor:
      "✗ cuda:0   Stand-in, compute capability 7.5, 16 multiprocessors, 16.00 GiB: at least 8.0 (Ampere) is needed. Use another GPU or the CPU",
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

faultTest(
  "a GPU that cannot be opened: train --device cuda says one line, exits with 1 and leaves nothing behind",
  checksOf(OPENING, async ({ env, says }) => {
    using space = workspace();
    const result = await train(space, env, "--device=cuda");
    assertEquals(oneLine(result), `Cannot open CUDA device 0: ${says}`);
    assertEquals(result.err.trimEnd().split("\n").length, 1);
    assert(!space.exists("out"), "the output folder stayed");
  }),
);

faultTest(
  "a GPU that cannot be used: without --device the CPU stands in and says so in one line; one that is taken ends the run",
  checksOf(OPENING, async ({ env, says, stands }) => {
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
);

faultTest(
  "metalora doctor names what keeps a GPU from being used, and exits with 1 only when a run would fail",
  checksOf(OPENING, async ({ env, says, stands, doctor }) => {
    using space = workspace();
    const [plain, json] = [await freely(space, env, "doctor"), await freely(space, env, "doctor", "--json")];
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
);

faultTest("a cuBLAS that the loader refuses", {
  async "its reason is told"() {
    using space = workspace();
    Deno.mkdirSync(space.file("broken"));
    const library = space.write("broken/libcublas.so.12", "no library\n");
    const result = await train(space, { ...RUNTIME, METALORA_CUDA_DIR: space.file("broken") }, "--device=cuda");
    const says = `Cannot open CUDA device 0: cuBLAS cannot be loaded: ${library}: file too short. ${INSTALL}`;
    assertEquals(oneLine(result), says);
  },
});

faultTest("several GPUs", {
  async "the first that can be used is taken, and a number beyond the last is refused"() {
    using space = workspace();
    const env = { ...RUNTIME, STAND_IN_GPUS: "2", STAND_IN_CAPABILITY: "7.5,8.6" };
    const run = await train(space, env, "--set=train.steps=1");
    assertEquals(run.code, 0, run.err);
    assertMatch(run.err, /^Stand-in, compute capability 8\.6, 16384 MiB; memory planned /m);
    const beyond = await train(space, env, "--device=cuda:2");
    assertEquals(oneLine(beyond), "Cannot open CUDA device 2: this machine has 2 GPUs, numbered from 0");
  },
});
