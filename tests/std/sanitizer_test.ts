import { assertEquals, assertStringIncludes } from "@std/assert";

Deno.test("the project's settings make a test fail that leaves a file open or a timer running", async () => {
  const folder = await Deno.makeTempDir({ prefix: "leak_" });
  try {
    const leaks = `${folder}/leak_test.ts`;
    await Deno.writeTextFile(
      leaks,
      `Deno.test("file", () => { Deno.openSync(${JSON.stringify(leaks)}); });
       Deno.test("timer", () => { setTimeout(() => {}, 60_000); });`,
    );
    const config = `${folder}/deno.json`;
    const { test } = JSON.parse(await Deno.readTextFile(new URL("../../deno.json", import.meta.url)));
    await Deno.writeTextFile(config, JSON.stringify({ test: { ...test, include: ["."], exclude: [] } }));
    const { code, stdout } = await new Deno.Command(Deno.execPath(), {
      args: ["test", "--no-lock", "--no-check", "--allow-read", "--config", config, leaks],
      env: { NO_COLOR: "1" },
    }).output();
    const text = new TextDecoder().decode(stdout);
    assertEquals(code, 1);
    assertStringIncludes(text, "0 passed | 2 failed");
    assertStringIncludes(text, "Leaks detected");
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
