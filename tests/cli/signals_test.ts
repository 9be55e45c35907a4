import { assertEquals, assertMatch } from "@std/assert";
import { commandHelp } from "../../lib/cli/help.ts";
import { command as retrain } from "../../lib/cli/retrain.ts";
import { command as train } from "../../lib/cli/train.ts";
import { ROOT } from "../e2e/harness.ts";

/** Runs lines of a program that listens to signals; `send(signal)` sends one to itself. */
async function listening(...lines: string[]): Promise<{ code: number; out: string[] }> {
  const source = [
    `import { onSignal } from "${new URL("lib/cli/signals.ts", `file://${ROOT}`)}";`,
    `onSignal(() => (console.log("asked"), "wait"));`,
    `const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));`,
    `const send = (signal, ms = 100) => (Deno.kill(Deno.pid, signal), sleep(ms));`,
    ...lines,
    `console.log("alive");`,
    `Deno.exit(0);`,
  ].join("\n");
  const args = ["run", "--quiet", "--no-check", `--config=${ROOT}deno.json`, "--allow-all", "-"];
  const child = new Deno.Command(Deno.execPath(), { args, stdin: "piped", stdout: "piped", stderr: "inherit" }).spawn();
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(source));
  await writer.close();
  const { code, stdout } = await child.output();
  return { code, out: new TextDecoder().decode(stdout).trimEnd().split("\n") };
}

Deno.test("the first signal asks, the second one ends; a SIGHUP asks only", async () => {
  const cases: [lines: string[], code: number, out: string[]][] = [
    [[`await send("SIGTERM");`], 0, ["asked", "alive"]],
    [[`await send("SIGTERM");`, `await send("SIGINT");`], 130, ["asked"]],
    [[`await send("SIGHUP");`, `await send("SIGHUP");`, `await send("SIGTERM");`], 0, ["asked", "alive"]],
    [[`await send("SIGTERM");`, `await send("SIGHUP");`], 0, ["asked", "alive"]],
    [[`await send("SIGHUP");`, `await send("SIGTERM");`, `await send("SIGINT");`], 130, ["asked"]],
  ];
  for (const [lines, code, out] of cases) assertEquals(await listening(...lines), { code, out }, lines.join(" "));
});

Deno.test("a Ctrl-C that arrives twice, from the terminal and from deno task, is one; pressed again it ends", async () => {
  assertEquals(await listening(`await send("SIGINT", 5);`, `await send("SIGINT");`), { code: 0, out: ["asked", "alive"] });
  const again = await listening(`await send("SIGINT");`, `await sleep(400);`, `await send("SIGINT");`);
  assertEquals(again, { code: 130, out: ["asked"] });
});

Deno.test("the help of train and retrain says that a SIGHUP is none of the two signals that end at once", () => {
  for (const command of [train, retrain]) {
    assertMatch(commandHelp(command).replace(/\s+/g, " "), / second SIGTERM or SIGINT.*SIGHUP does not count/);
  }
});
