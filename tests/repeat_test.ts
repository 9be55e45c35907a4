import { assertEquals } from "@std/assert";
import { repeated } from "../lib/repeat.ts";
import { workspace } from "./e2e/harness.ts";

const FAULT = "Cannot download 32 bytes: CUDA says 'an illegal memory access was encountered' (700)";
const unknown = (name: string, why: string) =>
  `${FAULT}; it may stem from an operator before this one, and ${name} could not be repeated to learn which: ${why}. ` +
  "Run again with METALORA_SYNCHRONOUS=1";

Deno.test("repeated() starts nothing where a signal has come before the fault", async () => {
  const signal = AbortSignal.abort(new Error("a signal came"));
  assertEquals(await repeated(FAULT, { kind: "command", args: ["eval"] }, signal), unknown("eval", "a signal came"));
});

Deno.test("repeated() takes the exit code of the other process for more than what it has printed", async () => {
  using space = workspace();
  space.write("run.yaml", "nonsense: 1\n");
  const args = ["config", "check", space.file("run.yaml"), "--json"]; // prints JSON and ends with 2
  assertEquals(
    await repeated(FAULT, { kind: "command", args }),
    unknown("config", "the process for it ended with exit code 2"),
  );
});

Deno.test("repeated() says why a command could not be repeated, and what it means that it met no fault", async () => {
  assertEquals(
    await repeated(FAULT, { kind: "command", args: ["evil"] }),
    unknown("evil", "Cannot run 'evil': there is no such command"),
  );
  assertEquals(
    await repeated(FAULT, { kind: "command", args: ["--version"] }),
    `${FAULT}; --version, repeated one operator at a time, met no fault: the GPU, its driver or a race may be to blame. ` +
      "Look for Xid errors (dmesg, nvidia-smi -q), then run it again (train: with --resume)",
  );
});
