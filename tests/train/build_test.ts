import { assert, assertEquals } from "@std/assert";
import type { Device } from "../../ffi/device.ts";
import { parseConfig } from "../../lib/config/load.ts";
import { unusedSettings } from "../../lib/train/build.ts";
import { workspace } from "../e2e/harness.ts";

Deno.test("unusedSettings() names what was asked to lie with the host where nothing comes of it", () => {
  const config = (...sets: string[]) => parseConfig("{ model: m, output: o, data: { train: { path: t } } }", "c", sets).config;
  const says = (backend: Device["backend"], tied: boolean, ...sets: string[]) =>
    unusedSettings({ backend } as Device, config(...sets), tied).map((line) => line.slice(0, 45));
  const host = "train.embedding=host";
  assertEquals(says("cpu", false, host), ["train.embedding: host changes nothing on the "]);
  assertEquals(says("cpu", true, host, "optimizer.placement=host"), [
    "train.embedding: host changes nothing on the ",
    "optimizer.placement: host changes nothing on ",
  ]);
  assertEquals(says("cuda", false, "optimizer.placement=host"), []);
  assertEquals(says("cuda", true, host), ["train.embedding: host changes nothing: this m"]);
  assertEquals([says("cuda", false, host), says("cpu", true), says("cuda", true, "train.embedding=device")], [[], [], []]);
});

Deno.test("train and its dry run say so in one line", async () => {
  using space = workspace();
  const line = "train.embedding: host changes nothing on the CPU, where all memory is the host's\n";
  for (const args of [[], ["--dry-run"]]) {
    const { err } = await space.ok("train", "run.yaml", "--threads=1", "--set", "train.embedding=host", ...args);
    assert(err.startsWith(line) && err.split(line).length === 2, err);
  }
});
