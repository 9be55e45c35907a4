import { assert, assertEquals } from "@std/assert";
import { Device } from "../../ffi/device.ts";
import { parseConfig } from "../../lib/config/load.ts";
import { RUNGS } from "../../lib/model/activations.ts";
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

/** Plan and rung of stories260K's shape with 8 × 256 tokens under a limit. */
function layOut(memory: string): { total: number; rung: string; layers: number } {
  const { config } = parseConfig(BASE, "test", [`train.memory=${memory}`]);
  using dev = Device.open({ threads: 1 });
  const limits = { tokens: 2048, rows: 2048, segments: 8, positions: 256 };
  const inputs = { model: modelShape("stories260k"), limits, adapterOf: adapterOf(config.adapter), padId: 0 };
  const training = buildTraining(dev, config, inputs, { saves: "nothing" });
  const { rung, layers } = training.engine.options.recompute!;
  return { total: memoryPlan(dev, training, { saves: "nothing" }).total_bytes, rung, layers };
}

Deno.test("under train.memory a run recomputes as little as fits, and as much as it can when nothing fits", () => {
  const most = layOut("100 GiB");
  assertEquals(most.rung, "none");
  let last = -1;
  for (const less of [2, 6, 10, 14, 18]) {
    const memory = most.total - less * 2 ** 20;
    const { total, rung, layers } = layOut(String(memory));
    assert(total <= memory + 2 ** 20, `${rung} of ${layers} layers takes ${total}, allowed ${memory}`); // the heap breathes
    const height = RUNGS.indexOf(rung as typeof RUNGS[number]) * 5 + layers;
    assert(height >= last, `${less} MiB less: ${rung} of ${layers} layers`);
    last = height;
  }
  assertEquals(layOut("1").rung, "block");
});

Deno.test("allowedBytes() is train.memory, and no more than there is", () => {
  using dev = Device.open({ threads: 1 });
  const allowed = (memory: string) => allowedBytes(dev, parseConfig(BASE, "test", [`train.memory=${memory}`]).config);
  assertEquals(allowed("1"), 1);
  assert(allowed("100000 GiB") <= 1.1 * roomBytes(dev));
});
