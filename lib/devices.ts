/** Which device computes: what `--device` says, or the best that there is. */
import { Device } from "../ffi/device.ts";
import { NativeError } from "../ffi/native.ts";
import { type CudaReport, report } from "../ffi/report.ts";
import { UserError } from "./errors.ts";

/** What `Device.open` takes. */
export type DeviceOptions = NonNullable<Parameters<typeof Device.open>[0]>;

/** A device, and why it is that one if nobody asked for it. */
export interface DeviceChoice {
  readonly backend: "cpu" | "cuda";
  readonly index: number;
  readonly threads: number;
  /** One line for the person: why the CPU computes although nobody asked for it. */
  readonly note: string | null;
}

/**
 * Turns "cpu", "cuda" or "cuda:1" into a device; null takes the first GPU that can be used, else the CPU.
 * @param threads CPU threads, 0 for all cores
 * @throws {UserError} exit code 2 when the text names no device
 */
export function chooseDevice(text: string | null, threads = 0): DeviceChoice {
  const cpu = { backend: "cpu", index: 0, threads } as const;
  if (text === "cpu") return { ...cpu, note: null };
  const match = /^cuda(?::(\d{1,9}))?$/.exec(text ?? "cuda");
  if (!match) {
    throw new UserError(`Cannot use --device ${text}: expected cpu, cuda or cuda:N (metalora doctor tells which there are)`, 2);
  }
  if (text !== null) return { backend: "cuda", index: Number(match[1] ?? 0), threads, note: null };
  const { index, reason } = firstGpu();
  return index === null ? { ...cpu, note: reason } : { backend: "cuda", index, threads, note: null };
}

/**
 * Opens a device.
 * @throws {UserError} when the library or the device cannot be opened
 */
export function openDevice(options: DeviceOptions): Device {
  try {
    return Device.open(options);
  } catch (error) {
    throw error instanceof NativeError ? new UserError(error.message) : error;
  }
}

/** The first GPU that can be used, or why there is none. */
function firstGpu(): { index: number | null; reason: string | null } {
  let cuda: CudaReport;
  try {
    cuda = report("cuda");
  } catch (error) {
    if (error instanceof NativeError) return { index: null, reason: null }; // a build without CUDA: nothing to tell
    throw error;
  }
  if (cuda.driver === "") return { index: null, reason: "No NVIDIA driver here: computing on the CPU" };
  if (cuda.problem !== "") return { index: null, reason: `Computing on the CPU: ${cuda.problem}` };
  const gpu = cuda.gpus.find(({ usable }) => usable);
  if (!gpu) {
    const first = cuda.gpus[0];
    const why = first
      ? `${first.name} has compute capability ${first.compute_capability}, at least 8.0 is needed`
      : "the NVIDIA driver tells nothing about its GPUs. See nvidia-smi";
    return { index: null, reason: `Computing on the CPU: ${why}` };
  }
  if (!cuda.cublas.found) {
    return {
      index: null,
      reason: `Computing on the CPU, not on ${gpu.name}: ${cuda.cublas.problem}. metalora doctor tells more`,
    };
  }
  return { index: gpu.index, reason: null };
}
