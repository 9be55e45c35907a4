import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../../lib/errors.ts";
import { requireFinite } from "../../lib/train/evaluation.ts";
import { RunFiles, RunFolder } from "../../lib/train/folder.ts";

Deno.test("a run does not replace what no run has written", () => {
  const path = Deno.makeTempDirSync();
  try {
    Deno.mkdirSync(`${path}/adapter`);
    Deno.writeTextFileSync(`${path}/adapter/my.txt`, "mine");
    Deno.writeTextFileSync(`${path}/config.yaml`, "model: mine\n");
    {
      using folder = RunFolder.open(path);
      assertThrows(
        () => folder.requireOwn("model"),
        UserError,
        "it holds 'config.yaml', but no configuration that a run of metalora wrote",
      );
    }
    assertEquals(Deno.readTextFileSync(`${path}/adapter/my.txt`), "mine");
    Deno.writeTextFileSync(`${path}/config.yaml`, "# metalora 0.1.0: the configuration of this run with every default\n");
    using folder = RunFolder.open(path);
    folder.requireOwn("model");
  } finally {
    Deno.removeSync(path, { recursive: true });
  }
});

Deno.test("other files in an output folder are nobody's business", () => {
  const path = Deno.makeTempDirSync();
  try {
    Deno.writeTextFileSync(`${path}/notes.txt`, "mine");
    using folder = RunFolder.open(path);
    folder.requireOwn("model");
    using files = new RunFiles(path);
    files.remove(["checkpoints"]);
    assertEquals(Deno.readTextFileSync(`${path}/notes.txt`), "mine");
  } finally {
    Deno.removeSync(path, { recursive: true });
  }
});

Deno.test("an evaluation whose loss is no number names the sample", () => {
  const samples = [{ id: "a" }, { id: "b" }];
  requireFinite({ sums: Float64Array.of(1, 2) }, samples, "evaluate");
  assertThrows(
    () => requireFinite({ sums: Float64Array.of(1, NaN) }, samples, "evaluate"),
    UserError,
    "Cannot evaluate: the loss of the sample b is NaN. Check the weights",
  );
});
