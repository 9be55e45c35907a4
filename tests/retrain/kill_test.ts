import { assert, assertEquals } from "@std/assert";
import { killNights } from "./kill.ts";

Deno.test("nights that are killed 20 times at random moments publish what nights left alone publish, and current is always valid", async () => {
  const { kills, resumed, late } = await killNights(20, { seed: 1 });
  assertEquals(kills, 20);
  assert(resumed >= 8 && late >= 2, `${resumed} kills left something to go on with, ${late} after the training`);
});
