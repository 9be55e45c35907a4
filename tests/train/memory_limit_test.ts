import { assert, assertEquals } from "@std/assert";
import { Device } from "../../ffi/device.ts";
import { parseConfig } from "../../lib/config/load.ts";
import { modelShape } from "../../lib/model/shapes.ts";
import { adapterOf } from "../../lib/train/adapters.ts";
import { buildTraining } from "../../lib/train/build.ts";
import { allowedBytes, roomBytes } from "../../lib/train/fit.ts";
import { memoryPlan } from "../../lib/train/memory.ts";
import "./harness.ts";

const BASE = `
model: random
output: none
data: { train: { path: random } }
`;

/** Rung and activations of stories260K's shape with 8 × 4096 tokens under a limit; nothing of it is allocated. */
function layOut(memory: string): { total: number; activations: number; rung: string } {
  const { config } = parseConfig(BASE, "test", [`train.memory=${memory}`]);
  using dev = Device.open({ threads: 1 });
  const limits = { tokens: 32768, rows: 2048, segments: 8, positions: 4096 };
  const model = modelShape("stories260k");
  const inputs = { model, limits, sumsPasses: false, adapterOf: adapterOf(config.adapter, model), padId: 0 };
  const training = buildTraining(dev, config, inputs, { saves: "nothing" });
  const { total_bytes: total, activations } = memoryPlan(dev, training, { saves: "nothing" });
  return { total, activations, rung: training.engine.options.recompute!.rung };
}

Deno.test("under train.memory a run recomputes as little as fits, and as much as it can when nothing fits", () => {
  const all = layOut("100 GiB");
  assertEquals(all.rung, "none");
  // Half of the activations is far more than what a plan moves by when other tests of this process take memory.
  const some = layOut(String(Math.round(all.total - all.activations / 2)));
  assert(some.rung !== "none", some.rung);
  assert(some.activations < 0.7 * all.activations, `${some.activations} of ${all.activations} bytes are kept`);
  const least = layOut("1");
  assertEquals(least.rung, "block");
  assert(least.activations < some.activations, `${least.activations} bytes, with more memory ${some.activations}`);
});

Deno.test("allowedBytes() is train.memory, and no more than there is", () => {
  using dev = Device.open({ threads: 1 });
  const allowed = (memory: string) => allowedBytes(dev, parseConfig(BASE, "test", [`train.memory=${memory}`]).config);
  assertEquals(allowed("1"), 1);
  assert(allowed("100000 GiB") <= 1.1 * roomBytes(dev));
});
