import { assertEquals } from "@std/assert";
import { workspace } from "./harness.ts";

Deno.test("the demo replaces its own files only, says no AUC where there is none, and checks its last seed first", async () => {
  using space = workspace();
  const run = (...args: string[]) => space.run("demo", "--threads=1", "--set=train.steps=1", "--output=demo", ...args);
  const refused = async (args: string[], says: string) => {
    const { code, err } = await run(...args);
    assertEquals([code, err], [2, `metalora: ${says}\n`]);
  };
  await refused(
    ["--seed=4294967295", "--seeds=2"],
    "Cannot use --seed: expected a whole number of at least 0 and at most 4294967294, found '4294967295'",
  );
  for (const name of ["summary.json", "data-0/train.jsonl"]) {
    Deno.mkdirSync(space.file("demo/data-0"), { recursive: true });
    space.write(`demo/${name}`, "mine\n");
    await refused(["--seeds=1"], `Cannot use the output demo: its ${name} is none that a demo wrote. Choose another output`);
    assertEquals(Deno.readTextFileSync(space.file(`demo/${name}`)), "mine\n");
    Deno.removeSync(space.file("demo"), { recursive: true });
  }
  for (let time = 0; time < 2; time++) {
    const { code, out } = await run("--seeds=1", "--json");
    assertEquals([code, JSON.parse(out).auc], [0, null]);
  }
});
