import { assertEquals, assertThrows } from "@std/assert";
import { join } from "node:path";
import { UserError } from "../../lib/errors.ts";
import { writeFileAtomic, writeFolderAtomic } from "../../lib/tensor/atomic.ts";

Deno.test("writeFolderAtomic() names what could not be written as it would be called, and leaves nothing behind", () => {
  const folder = Deno.makeTempDirSync();
  try {
    const error = assertThrows(
      () =>
        writeFolderAtomic(join(folder, "step-1"), (outer) => {
          writeFolderAtomic(join(outer, "adapter"), (inner) => writeFileAtomic(join(inner, "nowhere", "weights"), () => {}));
        }),
      UserError,
    );
    assertEquals(
      error.message,
      `Cannot write ${folder}/step-1/adapter/nowhere/weights: No such file or directory (os error 2). ` +
        "Check the folder, its permissions and the free space",
    );
    assertEquals([...Deno.readDirSync(folder)], []);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});
