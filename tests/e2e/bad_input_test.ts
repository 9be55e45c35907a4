/** What bad input gets: one clear line, the right exit code, and nothing half-written. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { type Case, configuration, data, models, other, outputs, useAdapterOf } from "./bad_input_cases.ts";
import { inTurns, type Workspace, workspace } from "./harness.ts";

async function check({ name, prepare = () => {}, args, sets = [], fileLimit, code, says }: Case): Promise<void> {
  using space = workspace();
  prepare(space);
  const before = space.tree(".");
  const settings = ["output=out/deep", ...sets].flatMap((set) => ["--set", set]);
  const all = args ?? ["train", "run.yaml", "--threads=1", ...settings];
  const result = fileLimit === undefined ? await space.run(...all) : await space.runLimited(fileLimit, ...all);
  // Progress may stand in front of a failure; the error is the last line.
  const lines = result.err.trimEnd().split("\n");
  const errors = lines.filter((line) => line.startsWith("metalora: "));
  const shown = `${name}: ${JSON.stringify(result)}`;
  assertEquals([errors.length, lines.at(-1), result.code, result.out], [1, errors[0], code, ""], shown);
  assertMatch(errors[0]!.slice("metalora: ".length), says, shown);
  assert(errors[0]!.length < 400, shown);
  if (code === 2) assertEquals(lines.length, 1, shown); // refused before anything began
  const left = space.tree(".").filter((path) => !before.includes(path));
  const allowed = code === 2
    ? []
    : ["out/", "out/deep/", "out/deep/config.yaml", "out/deep/metrics.jsonl", "out/deep/weights.jsonl"];
  assertEquals(left.filter((path) => !allowed.includes(path)), [], `${name} left files behind`);
}

for (const [group, cases] of Object.entries({ configuration, models, data, outputs, other })) {
  Deno.test(`bad input gets one clear line, the right exit code and leaves nothing behind: ${group}`, async (t) => {
    let space: Workspace | undefined;
    if (group === "other") {
      space = workspace();
      await space.train("out", ["train.steps=1"]);
      useAdapterOf(space);
    }
    try {
      // Started together, two at a time; reported one by one.
      const failures = await inTurns(cases.map((each) => () => check(each).then(() => null, (error: unknown) => error)));
      for (const [i, { name }] of cases.entries()) {
        await t.step(name, () => {
          if (failures[i]) throw failures[i];
        });
      }
    } finally {
      useAdapterOf(undefined);
      space?.[Symbol.dispose]();
    }
  });
}
