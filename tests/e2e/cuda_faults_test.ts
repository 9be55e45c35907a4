/**
 * A GPU that fails in the middle of a run: memory that somebody takes, kernels that run into something. One clear line each; an error in
 * a kernel names its operator and shapes; checkpoints stay whole, and the run goes on from them.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { ROOT, text, workspace } from "./harness.ts";
import { checksOf, faultTest, found, freely, ILLEGAL, oneLine, RUNTIME, train } from "./stand_ins.ts";

/** A run of 12 steps with a checkpoint every 4, whose passes are replayed from the third of a shape on. */
const LONG = ["--device=cuda", "--set=train.steps=12", "--set=checkpoints={ every: 4, keep: 8 }"];

/** What happens, and what is said. */
interface Scarcity {
  env: Record<string, string>;
  says: RegExp;
}

const SCARCITY: Record<string, Scarcity> = {
  "none for the run": {
    env: { STAND_IN_FREE_MIB: "50" },
    says:
      /^Cannot train: it takes 66\d MiB of memory, and 645 MiB is free \(other processes hold 15\.\d+ GiB of the GPU; nvidia-smi shows them\)\. /,
  },
  "the library's buffers": {
    env: { STAND_IN_ALLOCATIONS: "1" },
    says: /^Cannot open CUDA device 0: 0 of 16384 MiB are free, at least 41 are needed; other processes hold the rest /,
  },
  "the run's block": {
    env: { STAND_IN_ALLOCATIONS: "3" },
    says:
      /^Cannot allocate \d{6} bytes: that is 1 MiB, the GPU has 0 of 16384 MiB free \(this process holds 0; nvidia-smi shows the others\)$/,
  },
  "the upload's buffer": {
    env: { STAND_IN_ALLOCATIONS: "4" },
    says:
      /^Cannot upload \[260,32\]: the GPU's memory is exhausted: 0 of 16384 MiB are free \(nvidia-smi shows who holds the rest\)$/,
  },
};

faultTest(
  "memory that is taken before the run or between its plan and the allocation: what is needed and free, and nothing left",
  checksOf(SCARCITY, async ({ env, says }) => {
    using space = workspace();
    const result = await train(space, { ...RUNTIME, ...env }, "--device=cuda");
    assertMatch(oneLine(result), says);
    assertEquals(result.err.trimEnd().split("\n").length, 1);
    assert(!space.exists("out"), "the output folder stayed");
  }),
);

/** What happens, what is said, and the checkpoints that stand. */
interface KernelFault {
  env: Record<string, string>;
  settings?: string[];
  says: string;
  checkpoints: string[];
}

const KERNEL_FAULTS: Record<string, KernelFault> = {
  "at the first batch": {
    env: { STAND_IN_FAULT: "700 5embed 1" },
    says: found("look up 128 ids in an embedding [260,32]", "step 1"),
    checkpoints: [],
  },
  "in a pass that is replayed": {
    env: { STAND_IN_FAULT: "700 5embed 11", STAND_IN_FAULT_AGAIN: "700 7forwardILi8EEEvli 1" },
    says: found("gate [128,48]", "step 11"),
    checkpoints: ["step-4", "step-8"],
  },
  "in the optimizer, before a checkpoint": {
    env: { STAND_IN_FAULT: "700 6update 8", STAND_IN_FAULT_AGAIN: "700 6update 1" },
    says: found("update 3712 parameters", "step 8"),
    checkpoints: ["step-4"],
  },
  "in an evaluation": { // the repetition makes two passes before
    env: { STAND_IN_FAULT: "700 5embed 5", STAND_IN_FAULT_AGAIN: "700 5embed 3" },
    settings: ["train.eval_every=4"],
    says: found("look up 128 ids in an embedding [260,32]", "the evaluation behind step 4"),
    checkpoints: [],
  },
  "in the evaluation at the end": { // there it can make one
    env: { STAND_IN_FAULT: "700 5embed 13", STAND_IN_FAULT_AGAIN: "700 5embed 2" },
    says: found("look up 128 ids in an embedding [260,32]", "the evaluation behind step 12"),
    checkpoints: ["step-4", "step-8"],
  },
  "in the last update": {
    env: { STAND_IN_FAULT: "700 6update 12", STAND_IN_FAULT_AGAIN: "700 6update 1" },
    says: found("update 3712 parameters", "step 12"),
    checkpoints: ["step-4", "step-8"],
  },
  "in a weighted pass": { // the repetition makes a gradient to compare with before
    env: { STAND_IN_FAULT: "700 12combine_rows 5", STAND_IN_FAULT_AGAIN: "700 12combine_rows 2" },
    settings: ["reweight.method=meta-lora"],
    says: found("combine 4 vectors of 3712 numbers", "step 5"),
    checkpoints: ["step-4"],
  },
  "that does not recur": {
    env: { STAND_IN_FAULT: "700 5embed 11" },
    says:
      `Cannot download 32 bytes: ${ILLEGAL}; step 11, repeated one operator at a time, met no fault: the GPU, its driver or a race ` +
      "may be to blame. Look for Xid errors (dmesg, nvidia-smi -q), then run it again (train: with --resume)",
    checkpoints: ["step-4", "step-8"],
  },
  "a kernel that cannot be started": {
    env: { STAND_IN_LAUNCH: "98 6update" },
    says: "Cannot update 3712 parameters: CUDA says 'invalid device function' (98)",
    checkpoints: [],
  },
  "a product that cuBLAS refuses": {
    env: { STAND_IN_CUBLAS: "gemm:13" },
    says:
      "Cannot apply a linear layer of 32 inputs to 128 rows: cuBLAS answers 'execution failed' (13) to a product [128,32] by " +
      "[32,12] (found by repeating step 1 one operator at a time)",
    checkpoints: [],
  },
};

faultTest(
  "a fault in a kernel ends the run with one line that names it; checkpoints stay whole, no adapter appears, and --resume goes on",
  checksOf(KERNEL_FAULTS, async ({ env, settings = [], says, checkpoints }) => {
    using space = workspace();
    const args = [...LONG, ...settings.map((setting) => `--set=${setting}`)];
    assertEquals(oneLine(await train(space, { ...RUNTIME, ...env }, ...args)), says);
    assertEquals(space.checkpoints("out").toSorted(), checkpoints);
    const paths = space.tree("out");
    const saved = checkpoints.length > 0 ? ["weights.jsonl"] : [];
    assertEquals(paths.filter((path) => !path.startsWith("checkpoints/")), ["config.yaml", "metrics.jsonl", ...saved]);
    assertEquals(paths.filter((path) => path.includes(".tmp")), [], "unfinished files stayed");
    const { code, err } = await train(space, RUNTIME, ...args, "--resume");
    assertEquals(code, 0, err);
    const last = checkpoints.at(-1);
    assertEquals(/continuing from step \d+/.exec(err)?.[0], last && `continuing from step ${last.slice("step-".length)}`);
    assert(space.exists("out", "adapter", "adapter_model.safetensors"));
  }),
);

/** Kernels by a part of their names, and what is said of the twentieth that runs: recorded passes would have been replayed by then. */
const KERNELS: Record<string, string> = {
  "5embed": "look up 128 ids in an embedding [260,32]",
  "7forwardILi8ELi1E": "normalise [128,32]",
  "6rotate": "rotate 128 rows of 6 heads of 8",
  "7forwardILi8EEEvli": "gate [128,48]",
  "6gather": "gather 64 rows of 32",
  "8long_row": "compute the loss of 64 rows with a head [260,32]",
  "7scatter": "scatter 64 rows of 32 into 128",
  "8backwardILi8EEEvli": "differentiate the gating of [128,48] and form 1 gradients of its adapters",
  "8backwardILi8ELi1E": "differentiate the norm of [128,32]",
  "12delta_kernel": "differentiate attention to 128 rows in 4 segments (4 query heads, 2 key heads of 8)",
  "12outer_kernel": "form 4 gradients of the adapters of a linear layer with 32 inputs",
  "10sum_kernel": "sum the rows of 4 segments",
  "10chunk_dots": "take 1 inner products of 3712 numbers",
  "12combine_rows": "combine 4 vectors of 3712 numbers",
  "7refresh": "refresh the adapters of 8 linear layers",
  "6update": "update 3712 parameters",
};

faultTest(
  "with METALORA_SYNCHRONOUS=1 the line names the operator whose kernel ran into a fault, and its shapes",
  checksOf(KERNELS, async (action, kernel) => {
    using space = workspace();
    const env = { ...RUNTIME, METALORA_SYNCHRONOUS: "1", STAND_IN_FAULT: `700 ${kernel} 20` };
    const settings = ["--set=train.steps=30", "--set=reweight.method=meta-lora"];
    assertEquals(oneLine(await train(space, env, "--device=cuda", ...settings)), `Cannot ${action}: ${ILLEGAL}`);
  }),
);

const FULL = {
  env: { STAND_IN_FREE_MIB: "20" },
  says: /^Cannot open CUDA device 0: 11 of 16384 MiB are free, at least 41 are needed/,
};
const faultOf = (what: string, ids = 128, shape = "[260,32]") => ({
  env: { STAND_IN_FAULT: "700 5embed 1" },
  says: found(`look up ${ids} ids in an embedding ${shape}`, what),
});
const SHAPE = ["--model-shape=smollm2-135m", "--batch=1", "--length=16", "--steps=2"];

const COMMANDS: Record<string, { args: string[]; env: Record<string, string>; says: RegExp | string }> = {
  "eval on a full GPU": { ...FULL, args: ["eval", "run.yaml"] },
  "eval and a fault": { ...faultOf("eval"), args: ["eval", "run.yaml"] },
  "score on a full GPU": { ...FULL, args: ["score", "run.yaml"] },
  "score and a fault": { ...faultOf("score"), args: ["score", "run.yaml"] },
  "retrain on a full GPU": { ...FULL, args: ["retrain", "run.yaml"] },
  "retrain and a fault": { ...faultOf("step 1"), args: ["retrain", "run.yaml"] },
  "bench and a fault": { ...faultOf("bench", 64, "[49152,576]"), args: ["bench", ...SHAPE] },
  "bench on a full GPU": { ...FULL, args: ["bench", ...SHAPE] },
  "bench of too large a shape": {
    args: ["bench", ...SHAPE],
    env: { STAND_IN_FREE_MIB: "300" },
    says: /^Cannot run this: it takes 1\.\d+ GiB of memory, and 895 MiB is free/,
  },
};

faultTest(
  "eval, score, retrain and bench tell a GPU's fault in one line, too",
  checksOf(COMMANDS, async ({ args, env, says }) => {
    using space = workspace();
    const line = oneLine(await freely(space, { ...RUNTIME, ...env }, ...args, "--device=cuda"));
    if (typeof says === "string") assertEquals(line, says);
    else assertMatch(line, says);
  }),
);

faultTest("several processes on one GPU", {
  async "the tests of a real card's faults pass on the stand-ins"() {
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
    assertMatch(out, /^ok \| 6 passed \| 0 failed/m);
  },
});

faultTest("memory as it is told", {
  "bench tells a step's time though the matrix product that it compares with finds no memory": async () => {
    using space = workspace();
    const args = ["--model-shape=stories260k", "--batch=1", "--length=16", "--steps=1", "--json"];
    const { code, out, err } = await freely(space, { ...RUNTIME, STAND_IN_FREE_MIB: "300" }, "bench", ...args, "--device=cuda");
    const { step_ms, mfu, gemm_gflops } = JSON.parse(out);
    assertEquals([code, mfu, gemm_gflops, step_ms > 0], [0, null, null, true]);
    assertMatch(err, /^No mfu: the matrix product that it compares with did not run\. Cannot allocate 402653184 bytes: .+\n$/);
  },
  "a run tells the GPU's memory, beside what was planned of it": async () => {
    using space = workspace();
    const planned = await train(space, RUNTIME, "--device=cuda", "--dry-run", "--json");
    const { code, out } = await train(space, RUNTIME, "--device=cuda", "--json");
    const { total_bytes: plan } = JSON.parse(planned.out), { peak_memory_bytes: peak } = JSON.parse(out);
    assertEquals(code, 0);
    assert(Math.abs(peak / plan - 1) < 0.05, `${peak} bytes, planned ${plan}`);
  },
});
