import { assertEquals } from "@std/assert";
import { firstError } from "../lib/errors.ts";

Deno.test("firstError() is what ended something, not what failed behind it while it was cleared up", () => {
  const resource = (name: string) => ({
    [Symbol.dispose]() {
      throw new Error(name);
    },
  });
  let thrown: unknown;
  try {
    using _outer = resource("outer");
    using _inner = resource("inner");
    throw new Error("first");
  } catch (error) {
    thrown = error;
  }
  assertEquals((firstError(thrown) as Error).message, "first");
  assertEquals(firstError("text"), "text");
});
