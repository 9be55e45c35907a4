/**
 * Reads far outside a matrix, as only a mistake of ours could: prints what the library says, of the operator and of everything after
 * it. It must end by itself and with exit code 0, whatever has become of the context.
 */
import { Device, Tensor } from "../../ffi/device.ts";
import { gatherRows, upload } from "../../ffi/operators.ts";

const dev = Device.open({ backend: "cuda" });
const memory = dev.alloc(4096), other = dev.alloc(4096);
const rows = new Tensor(other, 0, 1, 4, "i32");
upload(dev, rows, Int32Array.of(0, 1, 2 ** 30, 3));
const x = new Tensor(memory, 0, 4, 64, "bf16"), out = new Tensor(memory, 2048, 4, 64, "bf16");
for (const work of [() => gatherRows(dev, 4, { x, rows, out }), () => dev.synchronize(), () => dev.memory()]) {
  try {
    work();
    console.log("done");
  } catch (error) {
    console.log(`${(error as Error).name}: ${(error as Error).message}`);
  }
}
memory.close();
other.close();
dev.close();
