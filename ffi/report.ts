/** What the native libraries find on this machine, without opening a device. */
import { type Backend, Native, NativeError, readText } from "./native.ts";

/** The CPU as its library sees it. */
export interface CpuReport {
  readonly processor: string;
  readonly instructions: string;
  readonly threads: number;
}

/** A GPU. */
export interface GpuReport {
  readonly index: number;
  readonly name: string;
  readonly compute_capability: string;
  readonly multiprocessors: number;
  readonly memory_bytes: number;
  /** Whether the chip is new enough. */
  readonly usable: boolean;
}

/** Driver, GPUs and libraries. */
export interface CudaReport {
  /** CUDA version that the driver supports, "" without a driver. */
  readonly driver: string;
  /** CUDA version that the library was built with. */
  readonly built_for: string;
  /** Why there is no GPU to use, "" when there is one. */
  readonly problem: string;
  readonly gpus: readonly GpuReport[];
  /** `problem`: why it cannot be used, "" when it can. */
  readonly cublas: { readonly found: boolean; readonly path: string; readonly version: string; readonly problem: string };
}

/**
 * The report of a library.
 * @throws {NativeError} when the library is not there
 */
export function report(backend: "cpu"): CpuReport;
export function report(backend: "cuda"): CudaReport;
export function report(backend: Backend): CpuReport | CudaReport {
  const { symbols, path } = Native.load(backend);
  const text = readText((buffer, capacity) => symbols.ml_report(buffer, capacity), 32768);
  try {
    return JSON.parse(text);
  } catch {
    throw new NativeError(`Cannot read what ${path} reports: it is no JSON`);
  }
}
