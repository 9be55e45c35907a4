/**
 * Another process on the GPU: takes memory with plain allocations until as many MiB are left as a line of its input says, answers with
 * a line that tells what is free, and gives everything back when its input ends.
 */
import { Device } from "../../ffi/device.ts";

const MIB = 2 ** 20;
using dev = Device.open({ backend: "cuda" });
console.log(Math.floor(dev.memory().free / MIB));
for await (const text of Deno.stdin.readable.pipeThrough(new TextDecoderStream())) {
  for (const line of text.trim().split("\n")) {
    // What is free is not all to be had: a driver hands out pieces of 2 MiB.
    for (let want = dev.memory().free - Number(line) * MIB; want >= 2 * MIB; want -= 2 * MIB) {
      try {
        dev.alloc(want);
        break;
      } catch { // a little less then
      }
    }
    console.log(Math.floor(dev.memory().free / MIB));
  }
}
