/** What memory a run will take, by purpose, and what it took. */
import type { Device } from "../../ffi/device.ts";
import type { Purpose } from "../tensor/arena.ts";
import type { Training } from "./build.ts";

/** The plan that `--dry-run` prints; all in bytes. */
export interface MemoryPlan extends Record<Purpose, number> {
  /** Program, runtime and data set, read off this process before the arena is taken. */
  readonly host: number;
  readonly total_bytes: number;
}

/**
 * Measured on the SmolLM2-135M shape, r = 32, 4 × 128 tokens: what a run adds to the process besides its arena once it is
 * under way — the runtime's heap and compiled code, and each thread's packing buffers inside the native library.
 */
const RUNTIME_GROWTH = 24 * 2 ** 20;
const THREAD_GROWTH = 3 * 2 ** 20;

/** The plan of a run whose buffers are laid out. Call it before `allocate`. */
export function memoryPlan(dev: Device, { engine }: Pick<Training, "engine">): MemoryPlan {
  const plan = engine.arena.plan();
  const host = residentBytes() + RUNTIME_GROWTH + dev.units * THREAD_GROWTH;
  return { ...plan, host, total_bytes: engine.arena.bytes + host };
}

/** Resident bytes of this process now. */
export function residentBytes(): number {
  return statusLine("VmRSS") ?? Deno.memoryUsage().rss;
}

/** Most resident bytes of this process so far. */
export function peakMemoryBytes(): number {
  return statusLine("VmHWM") ?? Deno.memoryUsage().rss;
}

function statusLine(key: string): number | null {
  try {
    const match = new RegExp(`^${key}:\\s*(\\d+) kB`, "m").exec(Deno.readTextFileSync("/proc/self/status"));
    return match ? Number(match[1]) * 1024 : null;
  } catch { // no /proc: the runtime's own figure serves
    return null;
  }
}

/** "1.23 GiB", "512 MiB". */
export function formatBytes(bytes: number): string {
  const mib = bytes / 2 ** 20;
  return mib >= 1024 ? `${(mib / 1024).toFixed(2)} GiB` : mib >= 10 ? `${mib.toFixed(0)} MiB` : `${mib.toFixed(1)} MiB`;
}
