import { assert, assertEquals } from "@std/assert";
import { Device } from "../../ffi/device.ts";
import { parseConfig } from "../../lib/config/load.ts";
import { modelShape } from "../../lib/model/shapes.ts";
import { adapterOf } from "../../lib/train/adapters.ts";
import { buildTraining } from "../../lib/train/build.ts";
import { allowedBytes, roomBytes } from "../../lib/train/fit.ts";
import { memoryPlan, type ProcessMemory } from "../../lib/train/memory.ts";
import "./harness.ts";

const BASE = `
model: random
output: none
data: { train: { path: random } }
`;

const GUIDED = `
model: random
output: none
data: { train: { path: random }, validation: { path: random } }
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

Deno.test("a plan is no less than what the process has taken already, and starts with what it is told that that takes", () => {
  const { config } = parseConfig(BASE, "test", []);
  using dev = Device.open({ threads: 1 });
  const model = modelShape("stories260k"), limits = { tokens: 64, rows: 64, segments: 1, positions: 64 };
  const inputs = { model, limits, sumsPasses: false, adapterOf: adapterOf(config.adapter, model), padId: 0 };
  const training = buildTraining(dev, config, inputs, { saves: "nothing" });
  const plan = (before: ProcessMemory) => memoryPlan(dev, training, { saves: "nothing", before });
  const { total_bytes: total, host } = plan({ resident: 10e6, peak: 10e6 });
  assertEquals(plan({ resident: 30e6, peak: 30e6 }).total_bytes, total + 20e6);
  assertEquals(plan({ resident: 10e6, peak: 500e6 }).total_bytes, 500e6);
  assertEquals(plan({ resident: 10e6, peak: 500e6 }).host, host + 500e6 - total);
});

/** A device of which only layouts are asked, as a GPU would be. */
function paperGpu(cpu: Device): Device {
  const memory = () => ({ free: 2 ** 40, total: 2 ** 40 });
  const { symbols, ctx, units } = cpu;
  return { backend: "cuda", activationDtype: "bf16", replays: false, memory, symbols, ctx, units } as unknown as Device;
}

Deno.test("a run is laid out under every limit that one of its rungs fits, also where a further layer takes more memory", () => {
  using cpu = Device.open({ threads: 1 });
  const dev = paperGpu(cpu);
  const shapes = [
    // Gradients of 16 samples fit over the activations of a layer that keeps them, but not over what `qkv` and `block` leave.
    ["smollm2-135m", 16, 128, 16, "meta-lora"],
    ["llama2-7b", 8, 400, 64, "meta-lora"],
    ["llama2-7b", 4, 400, 128, "none"],
  ] as const;
  for (const [shape, batch, length, rank, method] of shapes) {
    const model = modelShape(shape);
    const limits = { tokens: batch * length, rows: batch * (length - 1), segments: batch, positions: length };
    const total = (setting: string) => {
      const sets = [setting, `adapter.rank=${rank}`, `train.batch_size=${batch}`, `reweight.method=${method}`];
      const { config } = parseConfig(GUIDED, "test", sets);
      const inputs = { model, limits, sumsPasses: false, adapterOf: adapterOf(config.adapter, model), padId: 0 };
      return memoryPlan(dev, buildTraining(dev, config, inputs, { saves: "nothing" }), { saves: "nothing" }).total_bytes;
    };
    const all = total("train.recompute=none"), rungs = ["mlp", "qkv", "block"].map((rung) => total(`train.recompute=${rung}`));
    const least = Math.min(...rungs);
    for (let i = 0; i <= 40; i++) {
      const limit = Math.round(least + (all - least) * i / 40);
      const taken = total(`train.memory=${limit}`);
      assert(taken <= limit, `${shape}, rank ${rank}: ${taken} bytes, ${limit} are allowed, whole rungs take ${rungs}`);
    }
    assert(total("train.memory=1") <= least, `${shape}: with no room the smallest`);
  }
});
