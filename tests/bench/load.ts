/**
 * How fast a checkpoint's weights reach the device, and what host memory that takes.
 *
 *     python tests/bench/make_checkpoint.py FOLDER
 *     deno run -A tests/bench/load.ts FOLDER [cpu|cuda]
 */
import { Device } from "../../ffi/device.ts";
import { chooseDevice } from "../../lib/devices.ts";
import { loadModelConfig } from "../../lib/model/config.ts";
import { loadWeights } from "../../lib/model/load.ts";
import { openCheckpoint } from "../../lib/tensor/checkpoint.ts";
import { noAdapters } from "../../lib/train/adapters.ts";
import { Engine } from "../../lib/train/engine.ts";
import { formatBytes, peakMemoryBytes } from "../../lib/train/memory.ts";

const [folder, device = null] = Deno.args;
if (!folder) throw new Error("give a model folder");
using dev = Device.open(chooseDevice(device));
using engine = new Engine(dev, loadModelConfig(folder), {
  adapterOf: noAdapters,
  weightDtype: "bf16",
  limits: { tokens: 64, rows: 64, segments: 1, positions: 64 },
  purpose: "evaluate",
  staged: 0,
});
engine.allocate();
dev.synchronize();
const { weights } = engine.arena.plan();
for (const pass of ["first", "again"]) {
  using checkpoint = openCheckpoint(folder);
  const start = performance.now();
  loadWeights(dev, engine.model, checkpoint);
  dev.synchronize();
  const seconds = (performance.now() - start) / 1000;
  const rate = `${(weights / seconds / 1e9).toFixed(2)} GB/s`;
  console.log(
    `${pass}: ${formatBytes(weights)} in ${seconds.toFixed(2)} s, ${rate}, host peak ${formatBytes(peakMemoryBytes())}`,
  );
}
