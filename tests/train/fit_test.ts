import { assertEquals, assertThrows } from "@std/assert";
import { parseConfig } from "../../lib/config/load.ts";
import { UserError } from "../../lib/errors.ts";
import { lesserConfigs, requireRoom, roomBytes, smallerConfigs } from "../../lib/train/fit.ts";

const GIB = 2 ** 30;
const config = (...sets: string[]) => parseConfig("{ model: m, output: o, data: { train: { path: t } } }", "c", sets).config;
const settings = (...sets: string[]) => [...smallerConfigs(config(...sets))].map((each) => each.settings);

Deno.test("requireRoom() lets pass what fits and names the nearest setting for what does not", () => {
  requireRoom("train", 3 * GIB, [], { memory: 3 * GIB });
  let asked = 0;
  function* alternatives() {
    for (const [name, bytes] of [["a: 1", 5 * GIB], ["b: 2", 2 * GIB], ["c: 3", GIB]] as const) {
      asked++;
      yield { settings: name, bytes };
    }
  }
  assertThrows(
    () => requireRoom("train", 6 * GIB, alternatives(), { memory: 3 * GIB }),
    UserError,
    "Cannot train: it takes 6.00 GiB of memory, and train.memory allows 3.00 GiB. Set b: 2, which takes 2.00 GiB",
  );
  assertEquals(asked, 2);
  assertThrows(
    () => requireRoom("train", 6 * GIB, alternatives(), { memory: GIB / 2 }),
    UserError,
    "Nothing near it fits: raise train.memory, lower adapter.rank",
  );
  assertThrows(
    () => requireRoom("train", GIB + 1, [], { memory: GIB }),
    UserError,
    "it takes 1,073,741,825 bytes of memory, and train.memory allows 1,073,741,824 bytes",
  );
  assertThrows(
    () => requireRoom("train", 1e18, [], { memory: 1e19 }),
    UserError,
    "GiB is free. Nothing near it fits: lower adapter.rank",
  );
});

Deno.test("roomBytes() lies between nothing and what the machine has", () => {
  const room = roomBytes();
  assertEquals([room > 10e6, room <= Deno.systemMemoryInfo().total * 1.01], [true, true]);
});

Deno.test("smallerConfigs() keeps the samples of a step", () => {
  assertEquals(settings("train.batch_size=6", "train.accumulate=2"), [
    "optimizer.placement: host",
    "train.batch_size: 3 and train.accumulate: 4",
    "train.batch_size: 1 and train.accumulate: 12",
    "train.precision: bf16",
    "train.precision: bf16, train.batch_size: 3 and train.accumulate: 4",
    "train.precision: bf16, train.batch_size: 1 and train.accumulate: 12",
  ]);
  const host = "optimizer.placement=host";
  assertEquals(settings("train.batch_size=2", "train.precision=bf16", host), ["train.batch_size: 1 and train.accumulate: 2"]);
  assertEquals(settings("train.batch_size=1", "train.precision=bf16", host), []);
  assertEquals(settings("train.batch_size=1", "train.precision=bf16", "train.recompute=none", host), ["train.recompute: auto"]);
  for (const { config: { train } } of smallerConfigs(config("train.batch_size=8"))) {
    assertEquals(train.batch_size * train.accumulate, 8);
  }
});

Deno.test("lesserConfigs() lowers what can take memory without end: the rank, and what META-LORA keeps of a step", () => {
  const settings = (...sets: string[]) => [...lesserConfigs(config("train.batch_size=1", ...sets))].map((each) => each.settings);
  assertEquals(settings("adapter.rank=5", "train.accumulate=4"), ["adapter.rank: 2", "adapter.rank: 1"]);
  const guided = ["reweight.method=meta-lora", "data.validation_split=2"];
  assertEquals(settings("adapter.rank=2", "train.accumulate=4", ...guided), [
    "train.accumulate: 2",
    "train.accumulate: 1",
    "adapter.rank: 1",
  ]);
});
