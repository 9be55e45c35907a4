import { assert, assertEquals } from "@std/assert";
import { Device } from "../../ffi/device.ts";
import { Native } from "../../ffi/native.ts";
import { download } from "../../ffi/operators.ts";
import { loadModelConfig } from "../../lib/model/config.ts";
import { loadWeights } from "../../lib/model/load.ts";
import { openCheckpoint } from "../../lib/tensor/checkpoint.ts";
import { noAdapters } from "../../lib/train/adapters.ts";
import { Engine } from "../../lib/train/engine.ts";

Native.load("cpu"); // before any test, whose sanitizer would take the library for a leak

/** Biases of q, k and v, bias of o, positions. */
const SHAPES = { mistral: [false, false, 48], qwen2: [true, false, 64], opt: [true, true, 64] };

for (const [family, shape] of Object.entries(SHAPES)) {
  Deno.test(`a checkpoint of ${family} gives the losses that transformers gives`, () => {
    const dir = new URL(`../fixtures/families/${family}`, import.meta.url).pathname;
    const { ids, losses } = JSON.parse(Deno.readTextFileSync(`${dir}/expected.json`)) as { ids: number[]; losses: number[] };
    const config = loadModelConfig(dir);
    assertEquals([config.qkvBias, config.outputBias, config.maxPositions], shape);
    using dev = Device.open({ threads: 2 });
    using engine = new Engine(dev, config, {
      adapterOf: noAdapters,
      weightDtype: "f32",
      limits: { tokens: ids.length, rows: ids.length, segments: 1, positions: ids.length },
      purpose: "evaluate",
      staged: 0,
    });
    using checkpoint = openCheckpoint(dir);
    engine.allocate();
    loadWeights(dev, engine.model, checkpoint);
    engine.setAdapters(new Float32Array(0));
    const sample = { ids: Int32Array.from(ids), labels: Int32Array.from(ids) };
    engine.evaluate([sample]);
    const rows = new Float32Array(losses.length);
    download(dev, rows, engine.model.losses);
    losses.forEach((loss, row) => assert(Math.abs(rows[row]! - loss) < 2e-5, `row ${row}: ${rows[row]}, expected ${loss}`));
  });
}
