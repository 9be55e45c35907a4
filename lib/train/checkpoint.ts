/** Checkpoints: `checkpoints/step-N/`, complete or absent, with a manifest of sizes and hashes. */
import { createHash } from "node:crypto";
import { join } from "node:path";
import { writePeftAdapter } from "../export/peft.ts";
import { writeAll, writeFileAtomic, writeFolderAtomic } from "../tensor/atomic.ts";
import { writeSafetensors } from "../tensor/safetensors.ts";
import { VERSION } from "../version.ts";
import { toPeft } from "./adapters.ts";
import type { PreparedRun } from "./run.ts";
import type { Trainer } from "./trainer.ts";

/** Writes the state of a run after its current step and removes all but the newest `keep` checkpoints. */
export function writeCheckpoint(
  output: string,
  { prepared, trainer, keep }: { prepared: PreparedRun; trainer: Trainer; keep: number },
): void {
  const { engine, adam, config } = prepared;
  const folder = join(output, "checkpoints", `step-${trainer.step}`);
  const theta = engine.getAdapters();
  const { m, v } = adam.state();
  writeFolderAtomic(folder, (dir) => {
    writePeftAdapter(join(dir, "adapter"), toPeft(theta, engine.adapters, config));
    const flat = (name: string, values: Float32Array<ArrayBuffer>) => ({
      name,
      dtype: "F32" as const,
      shape: [values.length],
      data: new Uint8Array(values.buffer, values.byteOffset, values.byteLength),
    });
    writeSafetensors(join(dir, "optimizer.safetensors"), [flat("theta", theta), flat("m", m), flat("v", v)]);
    writeText(join(dir, "state.json"), JSON.stringify({ version: VERSION, seed: config.seed, ...trainer.state }, null, 2) + "\n");
    const files = ["adapter/adapter_config.json", "adapter/adapter_model.safetensors", "optimizer.safetensors", "state.json"];
    const manifest = Object.fromEntries(files.map((name) => {
      const bytes = Deno.readFileSync(join(dir, name));
      return [name, { bytes: bytes.length, sha256: createHash("sha256").update(bytes).digest("hex") }];
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
