/**
 * Kills retrainings many times; takes some seconds a kill, hence no part of the tests.
 *
 *   deno run -A tests/retrain/kill_many.ts [KILLS] [SEED]
 */
import { killNights } from "./kill.ts";

const [kills = "100", seed = "7"] = Deno.args;
const start = performance.now();
const tally = await killNights(Number(kills), { seed: Number(seed), say: console.log });
console.log(
  `${tally.kills} kills in ${tally.nights} nights: ${tally.resumed} left an attempt to go on with, ${tally.late} came after the training; ` +
    `current was valid behind each, every night ended in the release of a night left alone (${
      ((performance.now() - start) / 1000).toFixed(0)
    } s)`,
);
