import { assert, assertEquals } from "@std/assert";
import { loadConfig } from "../../lib/config/load.ts";

const files = [...Deno.readDirSync("configs")].map(({ name }) => name).filter((name) => name.endsWith(".yaml")).sort();

Deno.test("every configuration in configs/ is right, short and writes into runs/", () => {
  assert(files.includes("mawps.yaml") && files.includes("mawps-metalora.yaml") && files.includes("mawps-reference.yaml"));
  for (const file of files) {
    const { config } = loadConfig(`configs/${file}`);
    assertEquals(config.output, `runs/${file.replace(".yaml", "")}`);
    const text = Deno.readTextFileSync(`configs/${file}`);
    assert(text.startsWith("# "), `${file} does not say what it is`);
    assert(text.split("\n").length <= 25, `${file} is long`);
  }
});

Deno.test("the three mawps configurations differ in the method only as far as a fair comparison allows", () => {
  const [plain, metalora, reference] = ["mawps", "mawps-metalora", "mawps-reference"].map((name) =>
    loadConfig(`configs/${name}.yaml`).config
  );
  assertEquals([plain!.reweight.method, metalora!.reweight.method, reference!.reweight.preset], [
    "none",
    "meta-lora",
    "reference",
  ]);
  assertEquals(plain!.adapter, metalora!.adapter);
  assertEquals(plain!.data, metalora!.data);
  assertEquals([metalora!.train.steps, reference!.train.steps], [plain!.train.steps, plain!.train.steps]);
  assertEquals(plain!.optimizer.lr, reference!.optimizer.lr);
});
