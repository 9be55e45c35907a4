/** The memory plan as a person reads it. */
import { counted } from "../counted.ts";
import { RUNGS } from "../model/activations.ts";
import { formatBytes, type MemoryPlan } from "../train/memory.ts";
import type { EngineLayout } from "../train/engine.ts";

const MEANING: readonly (readonly [keyof MemoryPlan, string])[] = [
  ["weights", "frozen weights, with room for the adapters behind each row"],
  ["adapter", "adapters and their gradient"],
  ["optimizer", "Adam's moments"],
  ["reweighting", "per-sample gradients and validation gradient"],
  ["activations", "kept from forward to backward"],
  ["workspace", "scratch, logits of one chunk"],
  ["driver", "CUDA's context, cuBLAS"],
  ["host", "program, runtime, data set, perhaps the embedding"],
  ["total_bytes", "total"],
];

/** One line a purpose, total last. */
export function memoryTable(plan: MemoryPlan): string {
  const shown = MEANING.filter(([key]) => key !== "driver" || plan.driver > 0);
  return shown.map(([key, meaning]) => {
    const name = key === "total_bytes" ? plan.driver > 0 ? "total (GPU)" : "total" : key;
    return `${name.padEnd(12)} ${formatBytes(plan[key]).padStart(10)}${key === "total_bytes" ? "" : `   ${meaning}`}`;
  }).join("\n");
}

/** What is done to take less memory, a line each; the layers that are not named stand one rung lower. */
export function savings({ recompute: { rung, layers }, layers: L, embedding }: EngineLayout): string[] {
  const lower = RUNGS[RUNGS.indexOf(rung) - 1];
  const others = layers < L && lower !== undefined && lower !== "none" ? `, ${lower} in the others` : "";
  return [
    ...rung === "none" ? [] : [`recompute    ${rung} in ${layers} of ${counted(L, "layer")}${others}`],
    ...embedding === "host" ? ["embedding    in the host's memory"] : [],
  ];
}
