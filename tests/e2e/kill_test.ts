import { assert } from "@std/assert";
import { workspace } from "./harness.ts";
import { killAtRandom } from "./kills.ts";

// 200 kills take minutes: tests/e2e/kill_bench.ts does them.
Deno.test("kill -9 at 24 random moments, saving included: resuming always ends in the same adapter, metrics and weights", async () => {
  using space = workspace();
  const { kills, runs } = await killAtRandom(space, 24, { seed: 11, width: 2 });
  assert(kills >= 24 && runs >= 1, `${kills} kills of ${runs} runs`);
});
