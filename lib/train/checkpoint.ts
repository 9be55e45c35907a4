/** Checkpoints: `checkpoints/step-N/`, complete or absent, with a manifest of sizes and hashes. */
import { join } from "node:path";
import { sha256OfFile } from "../data/readers.ts";
import { writePeftAdapter } from "../export/peft.ts";
import { writeAll, writeFileAtomic, writeFolderAtomic } from "../tensor/atomic.ts";
import { writeSafetensors } from "../tensor/safetensors.ts";
import { VERSION } from "../version.ts";
import { toPeft } from "./adapters.ts";
import { release } from "./memory.ts";
import type { PreparedRun } from "./run.ts";
import type { Trainer } from "./trainer.ts";

/** Writes the state of a run after its current step and removes all but the newest `keep` checkpoints. */
export function writeCheckpoint(
  output: string,
  { prepared, trainer, keep }: { prepared: PreparedRun; trainer: Trainer; keep: number },
): void {
  const { engine, adam, config } = prepared;
  const folder = join(output, "checkpoints", `step-${trainer.step}`);
  writeFolderAtomic(folder, (dir) => {
    const theta = engine.getAdapters(); // in the adapter bit for bit, so that they need not stand elsewhere, too
    writePeftAdapter(join(dir, "adapter"), toPeft(theta, engine.adapters, config));
    release(theta);
    const { m, v } = adam.state();
    const flat = (name: string, values: Float32Array<ArrayBuffer>) => ({
      name,
      dtype: "F32" as const,
      shape: [values.length],
      data: new Uint8Array(values.buffer, values.byteOffset, values.byteLength),
    });
    writeSafetensors(join(dir, "optimizer.safetensors"), [flat("m", m), flat("v", v)]);
    release(m, v);
    writeText(join(dir, "state.json"), JSON.stringify({ version: VERSION, seed: config.seed, ...trainer.state }, null, 2) + "\n");
    const files = ["adapter/adapter_config.json", "adapter/adapter_model.safetensors", "optimizer.safetensors", "state.json"];
    const manifest = Object.fromEntries(files.map((name) => {
      const path = join(dir, name);
      return [name, { bytes: Deno.statSync(path).size, sha256: sha256OfFile(path) }];
    }));
    writeText(join(dir, "manifest.json"), JSON.stringify(manifest, null, 2) + "\n");
  });
  for (const step of checkpointSteps(output).slice(0, -keep)) {
    Deno.removeSync(join(output, "checkpoints", `step-${step}`), { recursive: true });
  }
}

/** Steps of the checkpoints in an output folder, oldest first. */
export function checkpointSteps(output: string): number[] {
  try {
    return [...Deno.readDirSync(join(output, "checkpoints"))]
      .flatMap(({ name }) => /^step-(\d+)$/.exec(name)?.[1] ?? [])
      .map(Number)
      .sort((a, b) => a - b);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return [];
    throw error;
  }
}

function writeText(path: string, text: string): void {
  writeFileAtomic(path, (file) => writeAll(file, new TextEncoder().encode(text)));
}
