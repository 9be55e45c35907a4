/**
 * Which of the CPU's instruction sets a test runs on. A module's own variable, not METALORA_ISA: test modules that run beside each
 * other share one environment, and so do the processes that they start.
 */
import { Device } from "../../ffi/device.ts";

const NUMBERS: Readonly<Record<string, number>> = { generic: 1, avx2: 2, avx512: 3, avx512bf16: 4 };
let chosen = 0;

/** Opens the CPU with the kernels of the chosen instruction set. */
export const openCpu = (threads: number): Device => Device.open({ threads, index: chosen });

/** Runs `body` with one instruction set chosen. */
export function withInstructionSet<R>(isa: string, body: () => R): R {
  const before = chosen;
  chosen = NUMBERS[isa]!;
  try {
    return body();
  } finally {
    chosen = before;
  }
}
