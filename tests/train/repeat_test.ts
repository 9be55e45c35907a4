import { Device } from "../../ffi/device.ts";
import { Native } from "../../ffi/native.ts";
import { loadConfig } from "../../lib/config/load.ts";
import { loadRunInputs } from "../../lib/train/inputs.ts";
import { repeatTraining } from "../../lib/train/repeat.ts";
import { makeTrainer, prepareRun } from "../../lib/train/run.ts";
import { assertEquals } from "@std/assert";
import { workspace } from "../e2e/harness.ts";

Native.load("cpu"); // before any test, whose sanitizer would take the library for a leak

Deno.test("repeatTraining() takes no loss of fresh adapters for a faulty batch, and writes nothing", () => {
  using space = workspace();
  const { config } = loadConfig(space.file("run.yaml"), ["train.steps=20", "faults={ spike: 0.001, give_up: 1 }"]);
  const before = (() => {
    using dev = Device.open({ threads: 1 });
    const prepared = prepareRun(dev, config, loadRunInputs(config));
    using _engine = prepared.engine;
    return { ...makeTrainer(prepared).state, faults: { losses: Array<number>(50).fill(0), row: 0, first: null } };
  })();
  const files = space.tree(".");
  repeatTraining({ kind: "train", config, device: { threads: 1 }, position: { before, evaluating: true } });
  assertEquals(space.tree("."), files);
});
