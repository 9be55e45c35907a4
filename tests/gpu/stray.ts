/**
 * Reads far outside a matrix, as only a mistake of ours could: prints what the library says, of the operator and of everything after
 * it, and when the device is closed, the MiB that are free to another process. It must end by itself and with exit code 0, whatever has
 * become of the context.
 */
import { Device, Tensor } from "../../ffi/device.ts";
import type { DeviceError } from "../../ffi/native.ts";
import { gatherRows, upload } from "../../ffi/operators.ts";

const dev = Device.open({ backend: "cuda" });
const memory = dev.alloc(4096), other = dev.alloc(4096), much = dev.alloc(2 ** 31);
const rows = new Tensor(other, 0, 1, 4, "i32");
upload(dev, rows, Int32Array.of(0, 1, 2 ** 30, 3));
const x = new Tensor(memory, 0, 4, 64, "bf16"), out = new Tensor(memory, 2048, 4, 64, "bf16");
for (const work of [() => gatherRows(dev, 4, { x, rows, out }), () => dev.synchronize(), () => dev.memory()]) {
  try {
    work();
    console.log("done");
  } catch (error) {
    const { name, lost, message } = error as DeviceError;
    console.log(`${name}${lost ? ", lost" : ""}: ${message}`);
  }
}
for (const block of [memory, other, much]) block.close();
dev.close();
const args = ["run", "--quiet", "--no-check", "--allow-all", new URL("hold.ts", import.meta.url).href];
Deno.stdout.writeSync(new Deno.Command(Deno.execPath(), { args, stdin: "null" }).outputSync().stdout);
