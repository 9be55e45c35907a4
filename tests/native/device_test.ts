import { assert, assertEquals, assertThrows } from "@std/assert";
import { Device } from "../../ffi/device.ts";
import { loaderReason, Native, NativeError, readText } from "../../ffi/native.ts";
import {
  adam,
  attentionBackward,
  attentionForward,
  combine,
  copy,
  copy2d,
  download,
  embeddingForward,
  gatherRows,
  gemm,
  headCrossEntropy,
  linearForward,
  loraRefresh,
  rope,
  rowDots,
  scatterRows,
  segmentOuter,
  segmentSum,
  swigluForward,
  upload2d,
  zero,
} from "../../ffi/operators.ts";
import { assertSameBits, makeGroups, normals, Workbench } from "./harness.ts";
import { openCpu, withInstructionSet } from "./instructions.ts";
import { INSTRUCTION_SETS, testEach, toBf16 } from "./reference.ts";

/** Asserts that a call fails with exactly this message. */
function assertMessage(body: () => void, message: string): void {
  const error = assertThrows(body, NativeError);
  assertEquals(error.message, message);
}

Deno.test("Device.open() names the processor, the instruction set and the threads", () => {
  for (const isa of INSTRUCTION_SETS) {
    withInstructionSet(isa, () => {
      using dev = openCpu(3);
      assert(dev.name.endsWith(`, ${isa}, 3 threads`), dev.name);
      assertEquals([dev.units, dev.activationDtype], [3, "f32"]);
    });
  }
  using dev = Device.open();
  assert(dev.units >= 1 && dev.units <= navigator.hardwareConcurrency);
});

Deno.test("METALORA_ISA that names no instruction set is refused in one line", () => {
  const main = new URL("../../main.ts", import.meta.url).pathname;
  const { code, stdout } = new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "--no-check", "--allow-ffi", "--allow-read", "--allow-env", "--allow-sys", main, "doctor"],
    env: { METALORA_ISA: "sse9", NO_COLOR: "1" },
    stdin: "null",
  }).outputSync();
  assertEquals(code, 1);
  const text = new TextDecoder().decode(stdout);
  assert(text.includes("Cannot open the CPU: METALORA_ISA is sse9. Set it to one of "), text);
});

Deno.test("Device.open() says what is wrong with the number of threads and of the instruction set", () => {
  assertMessage(() => Device.open({ index: 9 }), "Cannot open the CPU: its instruction sets are numbered 0..4, not 9");
  assertMessage(() => Device.open({ threads: 100000 }), "Cannot open the CPU with 100000 threads: at most 4096");
});

Deno.test("every operator refuses a NULL context instead of crashing", () => {
  const { symbols } = Native.load("cpu");
  const lastError = () => readText((text, capacity) => symbols.ml_last_error(null, text, capacity));
  assertEquals(symbols.ml_synchronize(null), 1);
  assertEquals(lastError(), "Cannot wait for the device: the context is NULL");
  assertEquals(symbols.ml_gemm(null, 0, 0, 2, 3, 4, 1, null, 0, 4, null, 0, 3, 0, null, 0, 3), 1);
  assertEquals(lastError(), "Cannot multiply [2,4] by [4,3]: the context is NULL");
  assertEquals(symbols.ml_alloc(null, 8n, 0, new BigUint64Array(1)), 1);
  assertEquals(symbols.ml_combine(null, 1, 1, null, null, null, 0, null), 1);
  assertEquals(symbols.ml_rope(null, 1, 1, 2, null, 2, null, null, null, 1, 0, 0), 1);
  assertEquals(symbols.ml_layernorm_forward(null, 1, 2, 1, null, null, null, null, 2, null, 0), 1);
  assertEquals(symbols.ml_relu_backward(null, 1, 2, null, 2, null, 2, 0), 1);
  assertEquals(symbols.ml_segment_sum(null, 1, null, null, null), 1);
  assertEquals([symbols.ml_allocated_bytes(null), symbols.ml_device_units(null)], [0n, 0]);
  symbols.ml_destroy(null);
});

Deno.test("alloc() gives zeros on 256-byte boundaries and counts what is held", () => {
  using dev = Device.open({ threads: 1 });
  const sizes = [1, 300, 4096, 5_000_000, 17];
  const blocks = sizes.map((bytes) => dev.alloc(bytes));
  assertEquals(dev.allocatedBytes, sizes.reduce((a, b) => a + b));
  for (const [i, block] of blocks.entries()) {
    assertEquals(block.address % 256n, 0n);
    const bytes = new Uint8Array(sizes[i]!).fill(7);
    download(dev, bytes, { pointer: Deno.UnsafePointer.create(block.address) } as never);
    assert(bytes.every((byte) => byte === 0));
  }
  blocks[3]!.close();
  assertEquals(dev.allocatedBytes, 4414);
  blocks.forEach((block) => block.close());
  assertEquals(dev.allocatedBytes, 0);
  assertMessage(() => dev.alloc(0), "Cannot allocate 0 bytes: the size must be positive");
  const error = assertThrows(() => dev.alloc(2 ** 60), NativeError);
  assert(error.message.includes("the machine's memory is exhausted"), error.message);
});

Deno.test("ml_free() refuses an address twice and one it never gave", () => {
  using dev = Device.open({ threads: 1 });
  const block = dev.alloc(1000), pointer = Deno.UnsafePointer.create(block.address + 256n);
  const refused = "Cannot free memory: the address is not one that ml_alloc gave, or is free already";
  assertMessage(() => dev.check(dev.symbols.ml_free(dev.ctx, pointer)), refused);
  const start = Deno.UnsafePointer.create(block.address);
  block.close();
  assertMessage(() => dev.check(dev.symbols.ml_free(dev.ctx, start)), refused);
});

testEach("upload2d() converts f16, bf16 and f32 exactly, and rounds to bf16 to nearest, ties to even", () => {
  using bench = new Workbench();
  const bytes = (array: Uint16Array | Float32Array) => new Uint8Array(array.buffer as ArrayBuffer);
  // every f16 bit pattern
  const patterns = Uint16Array.from({ length: 65536 }, (_, i) => i);
  const wide = bench.out(256, 256, 259);
  upload2d(bench.dev, 256, 256, bytes(patterns), "f16", wide);
  const fromHalf = (h: number) => {
    const sign = h & 0x8000 ? -1 : 1, exponent = (h >> 10) & 31, fraction = h & 1023;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15));
  };
  const found = bench.read(wide);
  patterns.forEach((h) => assert(Object.is(found[h], fromHalf(h)), `f16 ${h.toString(16)}: ${found[h]}`));
  bench.paddingUntouched(wide);
  upload2d(bench.dev, 256, 256, bytes(patterns), "bf16", wide);
  const raw = new Uint32Array(bench.read(wide).buffer);
  patterns.forEach((h) => assertEquals(raw[h], h << 16 >>> 0));
  // f32 → bf16 → f32, read back through a product with 1
  const values = normals(400, 5);
  values.set([1 + 2 ** -8, 1 + 3 * 2 ** -8, -1 - 2 ** -8, 3.4e38, 0, 1e-40], 0);
  const half = bench.put(values, 1, 400, { dtype: "bf16" }), out = bench.out(1, 400);
  gemm(bench.dev, { M: 1, N: 400, K: 1, a: bench.put([1], 1, 1), b: half, c: out });
  bench.read(out).forEach((x, i) => i === 3 || i === 5 || assert(x === toBf16(values[i]!), `${values[i]} became ${x}`));
});

Deno.test("copies and fills move what they say and nothing else", () => {
  using bench = new Workbench();
  const x = normals(7 * 5, 1), from = bench.put(x, 7, 5, { ld: 8 }), to = bench.out(7, 5, 6);
  copy2d(bench.dev, 7, 5, from, to);
  assertSameBits(bench.read(to), x, "copy2d");
  bench.paddingUntouched(to);
  const big = normals(700_000, 2), source = bench.put(big, 1, big.length), target = bench.out(1, big.length);
  copy(bench.dev, target, source);
  assertSameBits(bench.read(target), big, "copy");
  zero(bench.dev, target);
  assert(bench.read(target).every((value) => Object.is(value, 0)));
});

Deno.test("gatherRows() and scatterRows() move labelled rows out and back between zeros", () => {
  using bench = new Workbench();
  const T = 9, d = 11, rows = [8, 0, 3], x = normals(T * d, 4);
  const index = bench.ints(rows), few = bench.out(3, d, d + 1), back = bench.out(T, d, d + 2);
  gatherRows(bench.dev, 3, { x: bench.put(x, T, d, { ld: d + 3 }), rows: index, out: few });
  const wanted = Float32Array.from(rows.flatMap((row) => [...x.slice(row * d, (row + 1) * d)]));
  assertSameBits(bench.read(few), wanted, "gathered");
  scatterRows(bench.dev, 3, T, { x: few, rows: index, out: back });
  const placed = new Float32Array(T * d);
  rows.forEach((row) => placed.set(x.subarray(row * d, (row + 1) * d), row * d));
  assertSameBits(bench.read(back), placed, "scattered");
  bench.paddingUntouched(back);
});

Deno.test("segmentSum() adds the rows of each segment in double precision", () => {
  using bench = new Workbench();
  const values = Float32Array.from([1e8, 1, -1e8, 0.5, 2, 3]), out = bench.doubles(3);
  segmentSum(bench.dev, 3, { rowOffsets: bench.ints([0, 3, 3, 6]), values: bench.put(values, 1, 6), out });
  assertEquals([...bench.readDoubles(out)], [1, 0, 5.5]);
});

Deno.test("errors say what was attempted on which shapes, the value found and what it must be", () => {
  using bench = new Workbench(1);
  const { dev } = bench;
  const x = bench.put(normals(1600 * 8, 1), 1600, 8), w = bench.put(normals(8 * 4, 2), 8, 4), y = bench.out(1600, 4);
  const ids = bench.ints([0, 3, 8]), bf16 = bench.put(normals(16, 1), 2, 8, { dtype: "bf16" });

  assertMessage(
    () => gemm(dev, { M: 1600, N: 4, K: 9, a: x, b: w, c: y }),
    "Cannot multiply [1600,9] by [9,4]: the rows of a are 8 elements apart, must be at least 9",
  );
  assertMessage(
    () => gemm(dev, { M: 1600, N: 4, K: 8, a: x, b: w, c: bench.out(1599, 4) }),
    "Cannot multiply [1600,8] by [8,4]: c needs 25600 bytes, its memory ends after 25584",
  );
  assertMessage(
    () => gemm(dev, { M: 0, N: 4, K: 8, a: x, b: w, c: y }),
    "Cannot multiply [0,8] by [8,4]: M is 0, must be positive",
  );
  assertMessage(
    () => gemm(dev, { M: 2, N: 8, K: 4, a: x, b: w, c: bf16 }),
    "Cannot multiply [2,4] by [4,8]: the rows of b are 4 elements apart, must be at least 8",
  );
  assertMessage(
    () => gemm(dev, { M: 2, N: 4, K: 8, a: x, b: w, c: bf16 }),
    "Cannot multiply [2,8] by [8,4]: the dtype of c is 1, must be 0 (f32) on the CPU",
  );
  assertMessage(
    () => embeddingForward(dev, 3, { table: w, ids, out: bench.out(3, 4) }),
    "Cannot look up 3 ids in an embedding [8,4]: ids[2] is 8, must be in 0..7",
  );
  assertMessage(
    () => swigluForward(dev, 2, { f: 4, gateUp: bf16, y: bf16 }),
    "Cannot gate [2,4]: the activations' dtype is 1, must be 0 (f32) on the CPU",
  );
  const groups = makeGroups([[8, 0], [0, 4]], [1, 1]);
  assertMessage(
    () => linearForward(dev, 5, { dIn: 8, groups, xh: x, A: null, W: w, bias: null, y }),
    "Cannot apply a linear layer of 8 inputs to 5 rows: d_out of matrix 1 is 0, must be positive",
  );
  assertMessage(
    () => loraRefresh(dev, [{ dIn: 8, groups: makeGroups([[8, 4]], [1]), theta: w, W: w, aCast: null }], "f32"),
    "Cannot refresh 1 adapters of a linear layer with 8 inputs: the rows of W are 4 elements apart, must be at least 12",
  );
  assertMessage(
    () => segmentOuter(dev, 2, { cu: bench.ints([0, 5, 3]), p: 4, q: 4, a: y, b: y, out: y, stride: 16 }),
    "Cannot form 2 outer products [4,4]: cu_seqlens falls from 5 to 3 at 2",
  );
  assertMessage(
    () =>
      rope(dev, 3, {
        heads: 1,
        D: 4,
        x,
        cos: bench.put([1, 1], 1, 2),
        sin: bench.put([1, 1], 1, 2),
        positions: bench.ints([0, 0, 1]),
      }),
    "Cannot rotate 3 rows of 1 heads of 4: positions[2] is 1, must be in 0..0",
  );
  const segments = { count: 1, maxLength: 3, cu: bench.ints([0, 4]), kvLens: null };
  assertMessage(
    () => attentionForward(dev, 4, segments, { H: 2, K: 1, D: 2, scale: 1, q: x, k: x, v: x, out: x, lse: x }),
    "Cannot attend to 4 rows in 1 segments (2 query heads, 1 key heads of 2): segment 0 has 4 rows, max_length is 3",
  );
  assertMessage(
    () => attentionForward(dev, 4, segments, { H: 3, K: 2, D: 2, scale: 1, q: x, k: x, v: x, out: x, lse: x }),
    "Cannot attend to 4 rows in 1 segments (3 query heads, 2 key heads of 2): 3 query heads cannot share 2 key heads evenly",
  );
  const backward = { H: 2, K: 1, scale: 1, q: x, k: x, v: x, out: x, lse: x, dout: x, dq: y, dk: y, dv: y, work: y };
  const angles = { cos: bench.put([1, 1], 1, 2), sin: bench.put([1, 1], 1, 2), positions: bench.ints([0, 0, 0, 1]) };
  const four = { ...segments, maxLength: 4 };
  const differentiate = "Cannot differentiate attention to 4 rows in 1 segments (2 query heads, 1 key heads of";
  assertMessage(
    () => attentionBackward(dev, 4, four, { ...backward, D: 2, rope: angles }),
    `${differentiate} 2): positions[3] is 1, must be in 0..0`,
  );
  assertMessage(
    () => attentionBackward(dev, 4, four, { ...backward, D: 1, rope: angles }),
    `${differentiate} 1): D is odd, must be even`,
  );
  assertMessage(
    () => attentionBackward(dev, 4, four, { ...backward, D: 2, rope: { ...angles, cos: angles.cos.part(0, 0, 2) } }),
    `${differentiate} 2): n_positions is 0, must be positive`,
  );
  assertMessage(
    () =>
      attentionBackward(dev, 4, four, {
        ...backward,
        D: 2,
        rope: { ...angles, cos: bench.put([1, 1], 2, 1), sin: bench.put([1], 1, 1) },
      }),
    `${differentiate} 2): sin needs 8 bytes, its memory ends after 4`,
  );
  assertMessage(
    () => attentionBackward(dev, 4, four, { ...backward, D: 2, rope: { ...angles, positions: bench.ints([0, 0, 0]) } }),
    `${differentiate} 2): positions needs 16 bytes, its memory ends after 12`,
  );
  const head = { x, W: w, seeds: y, losses: y, argmax: null, dx: null, work: bench.out(1, 7) };
  assertMessage(
    () => headCrossEntropy(dev, 2, { ...head, labels: bench.ints([1, -100]) }),
    "Cannot compute the loss of 2 rows with a head [8,4]: labels[1] is -100, must be in 0..7",
  );
  assertMessage(
    () => headCrossEntropy(dev, 2, { ...head, labels: bench.ints([1, 1]) }),
    "Cannot compute the loss of 2 rows with a head [8,4]: work has 28 bytes, one row of logits needs 32",
  );
  assertMessage(
    () => combine(dev, 3, { weights: bench.put([1, 1], 1, 2), x, y: y.part(0, 1, 8) }),
    "Cannot combine 3 vectors of 8 numbers: weights needs 12 bytes, its memory ends after 8",
  );
  assertMessage(
    () => combine(dev, 1, { weights: x.part(0, 1, 1), x: y.part(0, 1, 8), y: null, beta: 0.5 }),
    "Cannot combine 1 vectors of 8 numbers: beta is 0.5, must be 0 where x's first row takes the sum",
  );
  const [theta, m, v] = [bench.put([1, 1], 1, 2), bench.put([0, 0], 1, 2), bench.put([0, 0], 1, 2)];
  const rates = { lr: 1, beta1: 0.9, beta2: 0.9, eps: 1e-8, weightDecay: 0, bias1: 1, bias2: 1, gradScale: 1 };
  assertMessage(
    () => adam(dev, { theta, grad: bench.put([1, 1, 1], 1, 3), m, v }, rates),
    "Cannot update 2 parameters: the pieces of g hold 3 numbers, must hold 2",
  );
  assertMessage(
    () => rowDots(dev, 2, { a: x, b: w.rowRange(0, 1), out: bench.doubles(1) }),
    "Cannot take 2 inner products of 8 numbers: out needs 16 bytes, its memory ends after 8",
  );
  assertMessage(
    () => gatherRows(dev, 1, { x: w, rows: bench.ints([8]), out: bench.out(1, 4) }),
    "Cannot gather 1 rows of 4: rows[0] is 8, must be in 0..7",
  );
  const freed = dev.alloc(64), gone = { ...w, pointer: Deno.UnsafePointer.create(freed.address)! };
  freed.close();
  assertMessage(() => copy2d(dev, 1, 1, gone as never, y), "Cannot copy [1,1]: the source is no address from ml_alloc");
});

Deno.test("loaderReason() says once what the loader says of a library, without its path", () => {
  const path = "/nowhere/libmetalora_cuda.so";
  const error = assertThrows(() => Deno.dlopen(path, {}));
  assertEquals(loaderReason(path, error), "cannot open shared object file: No such file or directory");
});
