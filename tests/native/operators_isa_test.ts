/** The kernels are compiled once per instruction set; each set that this processor has must pass the operators' tests. */
import { assert } from "@std/assert";
import { Device } from "../../ffi/device.ts";
import "./harness.ts";

const all = ["generic", "avx2", "avx512", "avx512bf16"];

function best(): string {
  using dev = Device.open({ threads: 1 });
  const isa = dev.name.split(", ").at(-2)!;
  assert(all.includes(isa), `unknown instruction set in "${dev.name}"`);
  return isa;
}

// A better set includes the ones before it. The best runs in the test files themselves.
const others = Deno.env.has("METALORA_ISA") ? [] : all.slice(0, all.indexOf(best()));
const tests = new URL(".", import.meta.url).pathname;
const files = [...Deno.readDirSync(tests)].map((entry) => entry.name).filter((name) =>
  /^operators_(?!isa).*test\.ts$/.test(name)
);

for (const isa of others) {
  Deno.test(`the operators' tests pass with the ${isa} kernels`, () => {
    const permissions = ["ffi", "read", "write", "env"].map((name) => `--allow-${name}`);
    const { success, stdout, stderr } = new Deno.Command(Deno.execPath(), {
      args: ["test", "--quiet", "--no-check", ...permissions, ...files.map((name) => tests + name)],
      env: { METALORA_ISA: isa, NO_COLOR: "1" },
      stdin: "null",
    }).outputSync();
    const text = new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr);
    assert(success && /\b\d{2,} passed/.test(text), text);
  });
}
