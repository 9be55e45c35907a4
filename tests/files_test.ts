import { assertEquals, assertThrows } from "@std/assert";
import { unreadable } from "../lib/files.ts";

Deno.test("unreadable() says what the system says without Deno's name of the call, and what to do", () => {
  const says = (error: unknown) => unreadable(error, "Check the path");
  assertEquals(says(assertThrows(() => Deno.readFileSync("/nowhere"))), "there is no such file. Check the path");
  assertEquals(says(assertThrows(() => Deno.statSync("/etc/passwd/x"))), "Not a directory (os error 20). Check the path");
  const kept = new Deno.errors.NotCapable('Requires all access to "/dev/stdin", run again with the --allow-all flag');
  assertEquals(says(kept), "Deno keeps programs from opening it. Write it into a regular file");
  for (const call of ["readfile 'my run.yaml'", "open 'it's.jsonl'"]) { // root may read everything
    const denied = new Deno.errors.PermissionDenied(`Permission denied (os error 13): ${call}`);
    assertEquals(says(denied), "Permission denied (os error 13). Check its permissions");
  }
});
