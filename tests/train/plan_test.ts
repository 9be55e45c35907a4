import { assertEquals } from "@std/assert";
import fc from "fast-check";
import { passesAt, plannedSteps } from "../../lib/train/plan.ts";

Deno.test("plannedSteps() is what counting through the passes gives", () => {
  const options = fc.record({
    method: fc.constantFrom("none" as const, "mix" as const, "meta-lora" as const),
    every: fc.integer({ min: 1, max: 12 }),
    plainStart: fc.constantFrom("never" as const, "first" as const, "epoch" as const),
    trainOn: fc.boolean(),
  });
  const whole = (max: number) => fc.integer({ min: 1, max });
  fc.assert(fc.property(whole(60), whole(25), options, (batches, perEpoch, options) => {
    let steps = 0;
    for (let consumed = 0; consumed < batches; consumed++) {
      const passes = passesAt({ consumed, inEpoch: consumed % perEpoch }, options);
      steps += passes.filter((pass) => pass !== "refresh" || options.trainOn).length;
    }
    assertEquals(plannedSteps(batches, perEpoch, options), steps);
  }));
});

Deno.test("a run of a billion epochs is planned at once", () => {
  const options = { method: "meta-lora", every: 10, plainStart: "epoch", trainOn: true } as const;
  assertEquals(plannedSteps(1e9 * 1000, 1000, options), 1e9 * (1000 + 100));
});
