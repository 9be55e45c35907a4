/**
 * A GPU's bad days on a real card: memory that other processes hold or take in the last moment, two runs at once, a kernel that reads
 * outside its matrix, no cuBLAS, no GPU to be seen. One clear line each, exit code 1, nothing half-written.
 *
 * What no test may do to a card (another compute mode, another driver) is tested on stand-ins, tests/e2e/cuda_*_test.ts; this
 * file runs on them, too.
 */
import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { Device } from "../../ffi/device.ts";
import { DeviceError } from "../../ffi/native.ts";
import { loadConfig } from "../../lib/config/load.ts";
import { loadRunInputs } from "../../lib/train/inputs.ts";
import { loadRun, prepareRun } from "../../lib/train/run.ts";
import { inTurns, ROOT, rows, workspace, writeTinyModel } from "../e2e/harness.ts";
import { freely, oneLine, train } from "../e2e/stand_ins.ts";
import { available, standIn } from "./subject.ts";

/** A test that needs a GPU; the CPU cannot stand in. */
function gpuTest(name: string, fn: () => Promise<void>): void {
  Deno.test({ name, ignore: !available || standIn, fn });
}

/** Nobody else tests on this GPU meanwhile, so that its memory may be taken (run.sh runs this file alone). */
const alone = Deno.env.get("METALORA_TEST_ALONE") === "1";
const takingTest = alone ? gpuTest : (name: string, fn: () => Promise<void>) => Deno.test({ name, ignore: true, fn });
if (available && !standIn && !alone) console.log("skipped what takes a GPU's whole memory: tests/gpu/run.sh has it");

const MIB = 2 ** 20;

/** A script of this folder in a process of its own. */
function script(name: string, stdin: "piped" | "null", env: Record<string, string> = {}): Deno.Command {
  const args = ["run", "--quiet", "--no-check", "--allow-all", `--config=${ROOT}deno.json`, `${ROOT}tests/gpu/${name}`];
  return new Deno.Command(Deno.execPath(), { args, stdin, stdout: "piped", stderr: "inherit", env });
}

/** Lines of a script's output. */
function lines({ stdout }: Deno.CommandOutput): string[] {
  return new TextDecoder().decode(stdout).trimEnd().split("\n");
}

/** Another process that holds memory of the GPU. */
class Holder implements AsyncDisposable {
  readonly #child = script("hold.ts", "piped").spawn();
  readonly #input = this.#child.stdin.getWriter();
  readonly #output = this.#child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  #said = "";

  async #line(): Promise<number> {
    while (!this.#said.includes("\n")) {
      const { value, done } = await this.#output.read();
      assert(!done, "the process that holds memory has ended");
      this.#said += value;
    }
    const end = this.#said.indexOf("\n");
    const line = this.#said.slice(0, end);
    this.#said = this.#said.slice(end + 1);
    return Number(line);
  }

  /** MiB that are free when it has opened the GPU. */
  opened(): Promise<number> {
    return this.#line();
  }

  /** Takes what is free but for some MiB. @returns the MiB that are free now */
  async leave(mib: number): Promise<number> {
    await this.#input.write(new TextEncoder().encode(`${mib}\n`));
    return await this.#line();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#input.close();
    await this.#child.status;
    await this.#output.cancel();
  }
}

takingTest("however little memory other processes leave, a run trains, or says one line and leaves no adapter", async () => {
  await using holder = new Holder();
  assert(await holder.opened() > 2500, "the GPU is taken by others: the test tells nothing");
  const codes: number[] = [];
  for (const left of [2000, 800, 700, 640, 500, 250, 100, 0]) {
    using space = workspace();
    const free = await holder.leave(left);
    const result = await train(space, {}, "--device=cuda");
    codes.push(result.code);
    if (result.code === 0) {
      console.log(`  ${free} MiB free: trained`);
      continue;
    }
    const line = oneLine(result);
    console.log(`  ${free} MiB free: ${line}`);
    assertMatch(line, /memory|MiB (are )?free/);
    assertEquals(space.tree("out").filter((path) => !["config.yaml", "metrics.jsonl"].includes(path)), []);
  }
  assertEquals([codes[0], codes.at(-1)], [0, 1]);
});

takingTest(
  "memory that is taken between the plan and the allocation: what is needed and what is free, and the device goes on",
  async () => {
    using space = workspace();
    writeTinyModel(space.file("model"), { maxPositions: 2048 });
    space.write("train.jsonl", rows(0, 20).map((row) => ({ ...row, completion: row.completion.repeat(200) })));
    const { config } = loadConfig(space.file("run.yaml"), ["train.batch_size=20", "data.max_length=1536"]);
    const inputs = loadRunInputs(config);
    using dev = Device.open({ backend: "cuda" });
    const prepared = prepareRun(dev, config, inputs);
    using engine = prepared.engine;
    const needed = Math.ceil(engine.arena.bytes / MIB);
    assert(needed > 32, `${needed} MiB would fit into what the driver has in reserve`);
    {
      await using holder = new Holder();
      await holder.opened();
      await holder.leave(8);
      const { message } = assertThrows(() => loadRun(dev, prepared), DeviceError);
      assertMatch(
        message,
        new RegExp(
          `^Cannot allocate ${engine.arena.bytes} bytes: that is ${needed} MiB, the GPU has \\d+ of \\d+ MiB free ` +
            String.raw`\(this process holds 0; nvidia-smi shows the others\)$`,
        ),
      );
    }
    loadRun(dev, prepared);
    assertEquals(dev.allocatedBytes, engine.arena.bytes);
  },
);

gpuTest("two runs at once on one GPU end with the bytes of a run alone", async () => {
  using space = workspace();
  const sets = ["train.steps=60", "reweight.method=meta-lora"];
  await inTurns(["first", "second"].map((output) => () => space.train(output, sets, ["--device=cuda", "--threads=1"])));
  await space.train("alone", sets, ["--device=cuda", "--threads=1"]);
  const alone = await space.adapterHash("alone");
  for (const output of ["first", "second"]) {
    assertEquals(await space.adapterHash(output), alone);
    assertEquals(space.read(output, "weights.jsonl"), space.read("alone", "weights.jsonl"));
  }
});

gpuTest(
  "a kernel that reads outside its matrix: the next call that waits tells it, with METALORA_SYNCHRONOUS=1 its own",
  async () => {
    const fault = "CUDA says 'an illegal memory access was encountered' (700)";
    // A stand-in executes nothing: it is told which kernel fails.
    const stray = (synchronous: string) =>
      script("stray.ts", "null", { METALORA_SYNCHRONOUS: synchronous, STAND_IN_FAULT: "700 6gather 1" }).output();
    const [late, early] = await inTurns(["", "1"].map((synchronous) => () => stray(synchronous)));
    assertEquals([late!.code, early!.code], [0, 0]);
    assertEquals(lines(late!).slice(0, 2), ["done", `DeviceError, lost: Cannot wait for the device: ${fault}`]);
    assertEquals(lines(early!)[0], `DeviceError, lost: Cannot gather 4 rows of 64: ${fault}`);
    for (const output of [late!, early!]) {
      for (const line of lines(output).slice(1, 3)) {
        assertMatch(line, /^DeviceError, lost: Cannot [^:]+: CUDA says '.+' \(700\)$/);
      }
    }
  },
);

takingTest("memory of a lost context is free for others once its device is closed, while its process goes on", async () => {
  const before = Number(lines(await script("hold.ts", "null").output()).at(-1));
  const stray = await script("stray.ts", "null", { STAND_IN_FAULT: "700 6gather 1" }).output();
  assertEquals(stray.code, 0);
  const after = Number(lines(stray).at(-1));
  console.log(`  ${before} MiB free before, ${after} when a process that held 2 GiB has lost its context and closed its device`);
  assert(before - after < 256, `${before - after} MiB are missing`);
});

gpuTest("without cuBLAS, and without a GPU to be seen, the CPU stands in; --device cuda says one line", async () => {
  using space = workspace();
  Deno.mkdirSync(space.file("empty"));
  const named = `cuBLAS was not found: METALORA_CUDA_DIR names ${
    space.file("empty")
  }, which has neither libcublas.so.13 nor libcublas.so.12`;
  const hidden = "the NVIDIA driver shows no GPU while CUDA_VISIBLE_DEVICES is ''";
  for (
    const [env, reason] of [[{ METALORA_CUDA_DIR: space.file("empty") }, named], [{ CUDA_VISIBLE_DEVICES: "" }, hidden]] as const
  ) {
    const line = oneLine(await train(space, env, "--device=cuda"));
    assert(line.startsWith(`Cannot open CUDA device 0: ${reason}. `), line);
    assert(line.endsWith("use --device cpu") || line.endsWith("Use --device cpu"), line);
    assert(!space.exists("out"), "the output folder stayed");
    const doctor = await freely(space, env, "doctor");
    assertEquals(doctor.code, 0, doctor.out);
    assert(doctor.out.includes(reason.replace(/^cuBLAS was /, "")), doctor.out);
    const { code, err } = await train(space, env, "--set=train.steps=1");
    assertEquals(code, 0, err);
    const told = err.split("\n").filter((text) => text.startsWith("Computing on the CPU"));
    assertEquals(told.length, 1, err);
    assert(told[0]!.includes(reason), err);
    Deno.removeSync(space.file("out"), { recursive: true });
  }
});
