import { assertEquals, assertStringIncludes } from "@std/assert";

Deno.test("tests of this project fail when they leave a file open or a timer running (run by make test or deno task test)", async () => {
  const file = await Deno.makeTempFile({ suffix: "_test.ts" });
  try {
    await Deno.writeTextFile(
      file,
      `Deno.test("file", () => { Deno.openSync(${JSON.stringify(file)}); });
       Deno.test("timer", () => { setTimeout(() => {}, 60_000); });`,
    );
    // The settings come from the environment that these tests run in themselves.
    const { code, stdout } = await new Deno.Command(Deno.execPath(), {
      args: ["test", "--no-lock", "--no-check", "--no-config", "--allow-read", file],
      env: { NO_COLOR: "1" },
    }).output();
    const text = new TextDecoder().decode(stdout);
    assertEquals(code, 1);
    assertStringIncludes(text, "0 passed | 2 failed");
    assertStringIncludes(text, "Leaks detected");
  } finally {
    await Deno.remove(file);
  }
});
