/** Refuses what the machine's memory cannot hold, and names the nearest setting that it can. */
import type { Config } from "../config/schema.ts";
import { counted } from "../counted.ts";
import { UserError } from "../errors.ts";
import { CONTEXT_BYTES, formatBytes, residentBytes } from "./memory.ts";
import type { Device } from "../../ffi/device.ts";

/** A display takes less. */
const WORTH_TELLING = 2 ** 30;

/** Bytes that this process may come to hold on a device: what it has and what is still free. */
export function roomBytes(dev?: Device): number {
  if (dev?.backend !== "cuda") return residentBytes() + Deno.systemMemoryInfo().available;
  return dev.memory().free + CONTEXT_BYTES;
}

/** Bytes that a run may take: `train.memory`, and no more than the device has. */
export function allowedBytes(dev: Device, { train }: Config): number {
  return Math.min(train.memory ?? Infinity, roomBytes(dev));
}

/** What limits a run, and what to say to it. */
export interface Limit {
  /** Where it runs; on a GPU the memory of other processes is told. */
  readonly dev?: Device;
  /** `train.memory` in bytes. */
  readonly memory?: number | null;
  /** What to do when no other setting fits. */
  readonly last?: string;
}

/**
 * @param what "train", "score", …: what cannot be done.
 * @param bytes What it takes.
 * @param alternatives Settings that take less, nearest first; only computed as far as needed.
 * @throws {UserError} when it does not fit
 */
export function requireRoom(
  what: string,
  bytes: number,
  alternatives: Iterable<{ settings: string; bytes: number }>,
  {
    dev,
    memory,
    last = "lower adapter.rank, shorten the samples (data.max_length), or use a smaller model or a larger machine",
  }: Limit = {},
): void {
  const free = roomBytes(dev), capped = (memory ?? Infinity) < free, room = capped ? memory! : free;
  if (bytes <= room) return;
  let advice = `Nothing near it fits: ${capped ? "raise train.memory, " : ""}${last}`;
  for (const { settings, bytes: less } of alternatives) {
    if (less > room) continue;
    advice = `Set ${settings}, which takes ${formatBytes(less)}`;
    break;
  }
  const alike = formatBytes(bytes) === formatBytes(room);
  const [takes, has] = [bytes, room].map((bytes) => alike ? counted(bytes, "byte") : formatBytes(bytes));
  const limit = capped ? `train.memory allows ${has}` : `${has} is free${crowd(dev)}`;
  throw new UserError(`Cannot ${what}: it takes ${takes} of memory, and ${limit}. ${advice}`);
}

/** Says that a GPU is short of memory because other processes hold it. */
function crowd(dev: Device | undefined): string {
  if (dev?.backend !== "cuda") return "";
  const { free, total } = dev.memory();
  const others = total - free - CONTEXT_BYTES - dev.allocatedBytes;
  if (others < WORTH_TELLING) return "";
  return ` (other processes hold ${formatBytes(others)} of the GPU; nvidia-smi shows them)`;
}

/**
 * Configurations that train on the same number of samples a step with less memory: what is kept computed again, Adam's moments with the
 * host, smaller micro-batches, then frozen weights in bf16 as well.
 */
export function* smallerConfigs(config: Config): Generator<{ settings: string; config: Config }> {
  const { train, reweight, optimizer } = config;
  if (train.recompute !== "auto") {
    yield { settings: "train.recompute: auto", config: { ...config, train: { ...train, recompute: "auto" } } };
  }
  if (optimizer.placement === "device") {
    yield { settings: "optimizer.placement: host", config: { ...config, optimizer: { ...optimizer, placement: "host" } } };
  }
  const samples = train.batch_size * train.accumulate;
  const halved = halves(train.batch_size);
  const batch = (batch_size: number) => {
    // The authors' code does not accumulate.
    const accumulate = reweight.preset === "reference" ? 1 : Math.ceil(samples / batch_size);
    return { values: { batch_size, accumulate }, text: `train.batch_size: ${batch_size} and train.accumulate: ${accumulate}` };
  };
  for (const { values, text } of halved.map(batch)) {
    yield { settings: text, config: { ...config, train: { ...train, ...values } } };
  }
  if (train.precision === "bf16") return;
  const half = { precision: "bf16" as const };
  yield { settings: "train.precision: bf16", config: { ...config, train: { ...train, ...half } } };
  for (const { values, text } of halved.map(batch)) {
    yield { settings: `train.precision: bf16, ${text}`, config: { ...config, train: { ...train, ...values, ...half } } };
  }
}

/** Configurations that train something else with less memory, where it is these numbers that take it: shorter steps, lower ranks. */
export function* lesserConfigs(config: Config): Generator<{ settings: string; config: Config }> {
  const { train, adapter, reweight } = config;
  // Gradients of single samples are kept for a whole step.
  for (const accumulate of reweight.method === "meta-lora" ? halves(train.accumulate) : []) {
    yield { settings: `train.accumulate: ${accumulate}`, config: { ...config, train: { ...train, accumulate } } };
  }
  for (const rank of halves(adapter.rank)) {
    yield { settings: `adapter.rank: ${rank}`, config: { ...config, adapter: { ...adapter, rank } } };
  }
}

/** Half of a number, a quarter, and so on to 1. */
function halves(number: number): number[] {
  const list: number[] = [];
  for (let half = Math.floor(number / 2); half >= 1; half = Math.floor(half / 2)) list.push(half);
  return list;
}
