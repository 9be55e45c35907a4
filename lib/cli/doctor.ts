import { Device } from "../../ffi/device.ts";
import { NativeError } from "../../ffi/native.ts";
import { type CpuReport, type CudaReport, report } from "../../ffi/report.ts";
import { chooseDevice } from "../devices.ts";
import { formatBytes } from "../train/memory.ts";
import { VERSION } from "../version.ts";
import { type Command, jsonOption } from "./command.ts";
import { printJson, printLine } from "./output.ts";

/** One thing that was looked at. */
interface Finding {
  readonly what: string;
  readonly state: "ok" | "missing" | "broken";
  /** What was found, or what is wrong and what to do. */
  readonly text: string;
}

/** `metalora doctor`: what this machine has, what is missing, and what to do about it. */
export const command: Command = {
  name: "doctor",
  summary: "Show what this machine has for training and what is missing",
  usage: "[--json]",
  details: [
    "Looks at the processor, the NVIDIA driver, every GPU and the libraries that are found at run time, and opens the device that a " +
    "run would use. Exit code 0 when a device can be used, 1 when none can.",
  ],
  options: [jsonOption],
  examples: [["doctor", "What a run would use here"]],
  run(args) {
    const cpu = attempt(() => report("cpu"));
    const cuda = attempt(() => report("cuda"));
    const findings = [describeCpu(cpu), ...describeCuda(cuda)];
    const use = chooseDevice(null);
    const opened = attempt(() => {
      using dev = Device.open(use);
      return { name: dev.name, memory: dev.memory() };
    });
    findings.push(
      typeof opened === "string"
        ? { what: "a run", state: "broken", text: opened }
        : { what: "a run", state: "ok", text: `uses ${opened.name} (${formatBytes(opened.memory.free)} free)` },
    );
    if (args.flag("json")) printJson({ version: VERSION, cpu, cuda, findings });
    else {
      printLine(`metalora ${VERSION}, Deno ${Deno.version.deno}, ${Deno.build.target}`);
      for (const { what, state, text } of findings) printLine(`${MARK[state]} ${what.padEnd(8)} ${text}`);
    }
    return typeof opened === "string" ? 1 : 0;
  },
};

const MARK: Record<Finding["state"], string> = { ok: "✓", missing: "–", broken: "✗" };

/** The result, or the message of the native error. */
function attempt<T>(action: () => T): T | string {
  try {
    return action();
  } catch (error) {
    if (error instanceof NativeError) return error.message;
    throw error;
  }
}

function describeCpu(cpu: CpuReport | string): Finding {
  if (typeof cpu === "string") return { what: "CPU", state: "broken", text: cpu };
  return { what: "CPU", state: "ok", text: `${cpu.processor}, ${cpu.instructions}, ${cpu.threads} threads` };
}

function describeCuda(cuda: CudaReport | string): Finding[] {
  if (typeof cuda === "string") {
    return [{ what: "CUDA", state: "missing", text: cuda }];
  }
  const { driver, built_for, problem, gpus, cublas } = cuda;
  const findings: Finding[] = [];
  if (driver === "") {
    findings.push({
      what: "driver",
      state: "missing",
      text: "no NVIDIA driver (libcuda.so.1): runs use the CPU. Install one to use a GPU",
    });
  } else if (problem !== "") findings.push({ what: "driver", state: "broken", text: `CUDA ${driver}: ${problem}` });
  else findings.push({ what: "driver", state: "ok", text: `CUDA ${driver} (this program was built with ${built_for})` });
  for (const { index, name, compute_capability, multiprocessors, memory_bytes, usable } of gpus) {
    const text = `${name}, compute capability ${compute_capability}, ${multiprocessors} multiprocessors, ${
      formatBytes(memory_bytes)
    }`;
    findings.push({
      what: `cuda:${index}`,
      state: usable ? "ok" : "broken",
      text: usable ? text : `${text}: at least 8.0 (Ampere) is needed. Use another GPU or the CPU`,
    });
  }
  if (cublas.found) findings.push({ what: "cuBLAS", state: "ok", text: `${cublas.version} (${cublas.path})` });
  else {
    const remedy = "Install the CUDA toolkit or its package libcublas, or name the folder of libcublas.so in METALORA_CUDA_DIR";
    const text = `${cublas.problem.replace(/^cuBLAS (was )?/, "")}. ${remedy}`;
    findings.push({ what: "cuBLAS", state: driver === "" ? "missing" : "broken", text });
  }
  return findings;
}
