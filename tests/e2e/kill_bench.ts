/**
 * kill -9 at 200 random moments of short runs that save after every step: resuming always works and ends in the same adapter.
 * The tests do the same with 24 kills; this takes some minutes.
 *
 *   deno run -A tests/e2e/kill_bench.ts [KILLS] [SEED]
 */
import { workspace } from "./harness.ts";
import { killAtRandom } from "./kills.ts";

const kills = Number(Deno.args[0] ?? 200), seed = Number(Deno.args[1] ?? Date.now() % 2 ** 32);
using space = workspace();
const start = performance.now();
const count = await killAtRandom(space, kills, { seed, width: 2 });
const seconds = (performance.now() - start) / 1000;
console.log(
  `seed ${seed}: ${count.kills} kills of ${count.runs} runs in ${seconds.toFixed(0)} s, each complete in the end with the same`,
);
console.log(`adapter, metrics and weights as the run that nobody killed; of the kills`);
console.log(`  ${String(count.early).padStart(4)} came before the first checkpoint`);
console.log(`  ${String(count.saving).padStart(4)} hit the middle of a save`);
console.log(`  ${String(count.publishing).padStart(4)} came behind the last checkpoint, before the adapter was published`);
