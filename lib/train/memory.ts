/** What memory a run will take, by purpose, and what it took. */
import process from "node:process";
import type { Device } from "../../ffi/device.ts";
import { counted } from "../counted.ts";
import { Adam } from "../optim/adam.ts";
import type { Purpose } from "../tensor/arena.ts";
import type { Training } from "./build.ts";
import type { Engine } from "./engine.ts";

/** The plan that `--dry-run` prints; all in bytes. On CUDA all but `host` lie on the GPU, and the total is the GPU's. */
export interface MemoryPlan extends Record<Purpose, number> {
  /** CUDA only: the driver's context, cuBLAS and its workspace, recorded graphs. */
  readonly driver: number;
  /** Program, runtime and data set, read off this process before the arena is taken. */
  readonly host: number;
  readonly total_bytes: number;
}

/** What a run does beside its steps, as far as that takes host memory. */
export interface HostWork {
  /** "checkpoints": adapters and Adam's moments are written on the way; "adapter": the adapters at the end. */
  readonly saves: "nothing" | "adapter" | "checkpoints";
  /** Bytes of data that is not read yet; 0 unless told. */
  readonly data?: number;
  /** What the process takes before the arena is there; unless told, what it takes now. */
  readonly before?: ProcessMemory;
}

/** Bytes of this process: now, and the most so far, such as while it was reading data. */
export interface ProcessMemory {
  readonly resident: number;
  readonly peak: number;
}

/** What this process takes. Plans that shall be comparable start with the same numbers. */
export function processMemory(): ProcessMemory {
  return { resident: residentBytes(), peak: peakMemoryBytes() };
}

/**
 * What a run adds to the process beside its arena: heap and compiled code, its report included. V8's young generation would take
 * up to 30 MiB more in a long run; `--max-semi-space-size` (deno.json, bootstrap/dist.ts) keeps it at 1 MiB a thread.
 * tests/e2e/memory_test.ts holds the plan to 5 % of the peak in a run of 20M parameters, to 12 % in 20,000 steps of a tiny model.
 */
const RUNTIME_GROWTH = 24 * 2 ** 20;
/**
 * What CUDA takes of a GPU beside the arena: 657 to 665 MiB in the runs of tests/bench/gpu (peak less arena), on an H100 and an H200
 * with CUDA 13.
 */
const DRIVER_BYTES = 660 * 2 ** 20;
/** The part of it that an open device has taken already: 0.62 GiB by `metalora doctor` on the same card. */
export const CONTEXT_BYTES = 635 * 2 ** 20;
const THREAD_GROWTH = 2 ** 20; // stack and attention's tiles of one thread
const PACKED_MOST = 8 * 2 ** 20; // of each operand that a matrix product copies into panels (PACKED in kernels/cpu/gemm.cpp)

/** The plan of a run whose buffers are laid out. Call it before `allocate`. */
export function memoryPlan(
  dev: Device,
  { engine, adam }: Pick<Training, "engine" | "adam">,
  { saves, data = 0, before = { resident: residentBytes(), peak: 0 } }: HostWork,
): MemoryPlan {
  const plan = engine.arena.plan();
  const { parameters: P } = engine;
  const moments = Adam.hostBytes(P, adam.options.placement);
  // One copy of θ, or one of m and one of v.
  const saved = { nothing: 0, adapter: 4 * P, checkpoints: 8 * P }[saves];
  if (dev.backend === "cuda") {
    const host = before.resident + RUNTIME_GROWTH + moments + saved + data + engine.hostArena.bytes;
    return { ...plan, driver: DRIVER_BYTES, host, total_bytes: engine.arena.bytes + DRIVER_BYTES };
  }
  const growth = RUNTIME_GROWTH + dev.units * (THREAD_GROWTH + scaledBytes(engine)) + packedBytes(engine);
  const host = Math.max(before.resident + growth + moments + saved + data, before.peak - engine.arena.bytes);
  return { ...plan, driver: 0, host, total_bytes: engine.arena.bytes + host };
}

/** What an engine takes that is laid out to evaluate or score. Call it before `allocate`. */
export function evaluationBytes(dev: Device, { arena }: Engine): number {
  return arena.bytes + (dev.backend === "cuda" ? DRIVER_BYTES : residentBytes());
}

/**
 * dL/dh [T, ranks] of q/k/v or of gate/up times the factors of the RMSNorm before them, a copy a thread (ROWS in
 * kernels/cpu/segment.cpp).
 */
function scaledBytes({ model, options }: Engine): number {
  if (model.config.family !== "llama") return 0;
  const ranks = Math.max(...model.layers.map(({ qkv, gateUp }) => Math.max(qkv.rank, gateUp.rank)));
  return options.purpose === "train" ? 4 * options.limits.tokens * Math.min(ranks, 168) : 0;
}

/** Panels of the largest product: activations [T, width] times a frozen matrix. */
function packedBytes({ model, options }: Engine): number {
  const { V, d } = model.config;
  let width = d, matrix = V * d;
  for (const { dIn, rank, dOut } of model.linears()) {
    width = Math.max(width, dIn + rank, dOut);
    matrix = Math.max(matrix, (dIn + rank) * dOut);
  }
  return Math.min(PACKED_MOST, 4 * options.limits.tokens * width) + Math.min(PACKED_MOST, 4 * matrix);
}

/**
 * Gives the memory of an array back now instead of at some later collection, so that a peak is what the plan says.
 * The array is empty afterwards.
 */
export function release(...arrays: readonly { readonly buffer: ArrayBuffer }[]): void {
  for (const { buffer } of arrays) buffer.transfer(0);
}

/** Resident bytes of this process now. */
export function residentBytes(): number {
  return Deno.memoryUsage().rss;
}

/** The most that getrusage tells: it starts with what the process that started this one had. */
const inherited = mostResident();
let sampled = 0;

/** What a run has taken so far: on CUDA of the GPU (other processes on it count, too), else resident bytes of this process. */
export function takenBytes(dev: Device): number {
  if (dev.backend === "cpu") return peakMemoryBytes();
  const { free, total } = dev.memory();
  return total - free;
}

/**
 * Measures what a run takes: on CUDA of the GPU, counted from now on (what other processes take or give back meanwhile blurs it), else
 * resident bytes of this process. Call it before the arena is taken.
 * @returns what tells the most bytes so far
 */
export function memoryMeter(dev: Device): () => number {
  if (dev.backend === "cpu") return peakMemoryBytes;
  const { free } = dev.memory();
  let most = 0, next = 0;
  return () => {
    if (performance.now() < next) return most;
    next = performance.now() + METER_MS;
    return most = Math.max(most, free - dev.memory().free + CONTEXT_BYTES);
  };
}

/** The driver is asked no more often: a step of a small model takes 11 ms. */
const METER_MS = 100;

/** Most resident bytes of this process so far. */
export function peakMemoryBytes(): number {
  const known = highWater();
  if (known !== null) return known;
  sampled = Math.max(sampled, residentBytes());
  const most = mostResident();
  return most > inherited ? most : sampled;
}

/** Where Deno lets us read it (before 2.9, or with --allow-all), the kernel's own number. */
function highWater(): number | null {
  try {
    const match = /^VmHWM:\s*(\d+) kB/m.exec(Deno.readTextFileSync("/proc/self/status"));
    return match ? Number(match[1]) * 1024 : null;
  } catch {
    return null;
  }
}

function mostResident(): number {
  try {
    return process.resourceUsage().maxRSS * 1024;
  } catch { // before Deno 2.9
    return 0;
  }
}

/** "1.23 GiB", "512 MiB", "1.5 MiB", "64 KiB", "12 bytes". */
export function formatBytes(bytes: number): string {
  if (bytes < 2 ** 10) return counted(bytes, "byte");
  if (bytes < 2 ** 20) return `${Math.floor(bytes / 2 ** 10)} KiB`;
  const mib = bytes / 2 ** 20;
  return mib >= 1024 ? `${(mib / 1024).toFixed(2)} GiB` : mib >= 10 ? `${mib.toFixed(0)} MiB` : `${mib.toFixed(1)} MiB`;
}
