/** The GPU as a device: uploads and copies, time, memory, recorded graphs, impossible inputs, and what its errors say. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { Device, DTYPE_BYTES, Tensor } from "../../ffi/device.ts";
import { Graph } from "../../ffi/graph.ts";
import { NativeError } from "../../ffi/native.ts";
import * as ops from "../../ffi/operators.ts";
import { toFloat32 } from "../../lib/tensor/dtypes.ts";
import { assertSameBits, makeGroups, normals } from "../native/harness.ts";
import { asBf16, BACKEND, gpuTest, standIn, Subject } from "./subject.ts";

/** Asserts that a call fails with exactly this message. */
function assertMessage(body: () => void, message: string): void {
  assertEquals(assertThrows(body, NativeError).message, message);
}

/** Zeros, infinities, ties of bf16, and what rounds to infinity. */
const SPECIAL = [0, -0, Infinity, -Infinity, 1, 1.00390625, 1.01171875, -1.00390626, 3.4e38, -3.4e38, 65504, 2 ** -24, 1e-30];

gpuTest("upload_2d() converts f32, f16 and bf16 into f32 and bf16 exactly", () => {
  using on = Subject.underTest();
  // The last does not fit into one staging buffer (16 MiB) in f32.
  for (const [rows, cols, pad] of [[1, 13, 0], [37, 65, 7], [40, 128, 8], [4500, 1024, 8]] as const) {
    const n = rows * cols;
    const values = normals(n, rows).map((value, i) => SPECIAL[i] ?? value);
    const halves = Uint16Array.from({ length: n }, (_, i) => {
      const bits = i * 40503 & 0xffff;
      return (bits >> 10 & 31) === 31 ? bits & 0x83ff : bits; // neither NaN nor infinity
    });
    const sources = {
      f32: new Uint8Array(values.buffer),
      bf16: new Uint8Array(Uint16Array.from(new Uint32Array(asBf16(values).buffer), (bits) => bits >>> 16).buffer),
      f16: new Uint8Array(halves.buffer),
    };
    for (const [from, bytes] of Object.entries(sources) as ["f32" | "bf16" | "f16", Uint8Array<ArrayBuffer>][]) {
      const wide = from === "f32" ? values : toFloat32(from === "f16" ? "F16" : "BF16", bytes);
      for (const to of ["f32", "bf16"] as const) {
        const dst = to === "f32" ? on.f32(null, rows, cols, cols + pad) : on.weight(null, rows, cols, cols + pad);
        ops.upload2d(on.dev, rows, cols, bytes, from, dst);
        assertSameBits(on.read(dst), to === "f32" ? wide : asBf16(wide), `${from} to ${to}, [${rows},${cols}]`);
      }
    }
  }
  on.requirePaddings();
});

gpuTest("upload(), copy(), copy2d() and zero() move bytes, and no others", () => {
  using on = Subject.underTest();
  const [rows, cols] = [37, 40], values = asBf16(normals(rows * cols, 1));
  for (const type of ["f32", "bf16"] as const) {
    const put = (from: Float32Array | null, width: number, ld: number) =>
      type === "f32" ? on.f32(from, rows, width, ld) : on.weight(from, rows, width, ld);
    const src = put(values, cols, cols + 3),
      part = put(null, 11, 16),
      dense = put(values, cols, cols),
      twin = put(null, cols, cols);
    ops.copy2d(on.dev, rows, 11, src.columns(5, 11), part);
    const expected = Float32Array.from({ length: rows * 11 }, (_, i) => values[Math.floor(i / 11) * cols + 5 + i % 11]!);
    assertSameBits(on.read(part), expected, `columns in ${type}`);
    ops.copy(on.dev, twin, dense);
    assertSameBits(on.read(twin), values, `a copy in ${type}`);
    ops.zero(on.dev, twin, 5);
    assertSameBits(on.read(twin), values.map((value, i) => i < 5 * cols ? 0 : value), `zeros in ${type}`);
  }
  on.requirePaddings();
  const fresh = on.dev.alloc(100_003), bytes = new Uint8Array(100_003).fill(7);
  assertEquals(fresh.address % 256n, 0n);
  ops.download(on.dev, bytes, new Tensor(fresh, 0, 1, 1, "f32"));
  fresh.close();
  assert(bytes.every((byte) => byte === 0), "new memory must be zero");
});

gpuTest("an embedding in the host's memory is read as one of the device's, and its memory is given back", () => {
  using on = Subject.underTest();
  const { dev } = on, [V, d] = [1000, 200], values = asBf16(normals(V * d, 1)), ids = on.ints([7, 999, 0, 7]);
  const table = on.weight(values, V, d), outs = [0, 1].map(() => on.room(4, d, d + 8)), held = dev.allocatedBytes;
  using memory = dev.alloc(table.bytes, { place: "host" });
  assertEquals([memory.address % 256n, dev.allocatedBytes], [0n, held + table.bytes]);
  const there = new Tensor(memory, 0, V, d, table.dtype);
  assert(on.read(there).every((value) => value === 0), "new memory must be zero");
  ops.upload2d(dev, V, d, new Uint8Array(values.buffer), "f32", there);
  assertSameBits(on.read(there), values, "uploaded and downloaded");
  const rows = [table, there].map((each, i) => {
    ops.embeddingForward(dev, 4, { table: each, ids, out: outs[i]! });
    return on.read(outs[i]!);
  });
  assertSameBits(rows[1]!, rows[0]!, "looked up");
  ops.copy(dev, table, there);
  assertSameBits(on.read(table), values, "copied");
  memory.close();
  assertEquals(dev.allocatedBytes, held);
});

gpuTest("marks tell device time that adds up, and memory() what the driver has left", () => {
  using on = Subject.underTest();
  const { dev } = on, { symbols, ctx } = dev, n = 1024;
  const a = on.weight(normals(n * n, 1), n, n), c = on.room(n, n);
  const mark = (slot: number) => dev.check(symbols.ml_mark(ctx, slot));
  const elapsed = (from: number, to: number) => {
    const out = new Float64Array(1);
    dev.check(symbols.ml_elapsed(ctx, from, to, out));
    return out[0]!;
  };
  mark(0);
  for (let i = 0; i < 5; i++) ops.gemm(dev, { M: n, N: n, K: n, a, b: a, c });
  mark(1);
  mark(63);
  const [work, nothing, all] = [elapsed(0, 1), elapsed(1, 63), elapsed(0, 63)];
  assert(work > 0 && work < 20_000 && nothing >= 0 && nothing <= all, `${work} and ${nothing} of ${all} ms`);
  assert(Math.abs(work + nothing - all) < 0.05 + 0.01 * all, `${work} + ${nothing} is not ${all} ms`);
  assertMessage(() => mark(64), "Cannot mark the time in slot 64: slots are 0..63");
  assertMessage(() => elapsed(0, -1), "Cannot take the time from mark 0 to mark -1: slots are 0..63");
  const times = dev.profile(() => ops.gemm(dev, { M: n, N: n, K: n, a, b: a, c }));
  assertEquals([...times.keys()], ["ml_gemm"]);
  assert(times.get("ml_gemm")!.calls === 1 && times.get("ml_gemm")!.ms > 0);

  const held = dev.allocatedBytes, bytes = 512 * 2 ** 20;
  const taken = () => {
    const before = dev.memory();
    assert(before.free > 0 && before.free <= before.total, JSON.stringify(before));
    using block = dev.alloc(bytes);
    assertEquals([block.bytes, dev.allocatedBytes], [bytes, held + bytes]);
    return before.free - dev.memory().free;
  };
  // A GPU's driver hands memory out at once, the operating system when it is written. Other processes may give theirs back meanwhile.
  const seen = [taken()];
  while (!standIn && seen.at(-1)! < bytes && seen.length < 20) seen.push(taken());
  assert(standIn || seen.at(-1)! >= bytes, `taken after 512 MiB were allocated, as the driver has it: ${seen.join(", ")} bytes`);
});

gpuTest("an id outside the vocabulary is told once by whoever waits, and the batches behind it are not touched", () => {
  using on = Subject.underTest();
  const [V, d] = [8, 24], table = on.weight(normals(V * d, 1), V, d), out = on.room(3, d, d + 8);
  const embed = (ids: number[]) => ops.embeddingForward(on.dev, 3, { table, ids: on.ints(ids), out });
  if (standIn) {
    assertMessage(() => embed([0, 3, 8]), "Cannot look up 3 ids in an embedding [8,24]: ids[2] is 8, must be in 0..7");
    return;
  }
  for (const id of [8, 70_000, -5]) {
    embed([0, id, 7]);
    const fault = `a batch had the token id ${id}, which the embedding does not have`;
    assertMessage(() => on.dev.synchronize(), `Cannot wait for the device: ${fault}`);
    on.dev.synchronize();
    const rows = on.read(out), row = (i: number) => rows.slice(i * d, (i + 1) * d), from = on.read(table);
    assertSameBits(row(0), from.slice(0, d), "the row before");
    assertSameBits(row(1), new Float32Array(d), "the row of the id");
    assertSameBits(row(2), from.slice(7 * d), "the row behind");
    embed([id, 1, id]);
    const bytes = new Uint8Array(d * DTYPE_BYTES[out.dtype]);
    assertMessage(() => ops.download(on.dev, bytes, out), `Cannot download ${bytes.length} bytes: ${fault}`);
    embed([1, 2, 3]);
    on.dev.synchronize();
  }
  on.requirePaddings();
});

gpuTest("a recorded graph gives the bits of its operators on whatever its inputs are when it is replayed", () => {
  using on = Subject.underTest();
  if (standIn) {
    const error = assertThrows(() => Graph.record(on.dev, () => {}), NativeError);
    assert(error.message.startsWith("Cannot record a graph: "), error.message);
    return;
  }
  const { dev } = on, [T, R, d, V, r] = [40, 12, 64, 300, 8], groups = makeGroups([[d, r]], [0.5]);
  const ids = on.ints(new Array(T).fill(0)), rows = on.ints(new Array(R).fill(-1)), labels = on.ints(new Array(R).fill(0));
  const seeds = on.f32(new Float32Array(R).fill(1), 1, R), offsets = on.ints([0, 0, 0]);
  const table = on.weight(normals(V * d, 1), V, d), weight = on.f32(normals(d, 2), 1, d);
  const theta = on.f32(normals(2 * r * d, 3), 1, 2 * r * d), W = on.weight(normals(d * (d + r), 4), d, d + r), A = on.room(r, d);
  const x = on.room(T, d),
    xh = on.room(T, d + r),
    y = on.room(T, d),
    rstd = on.f32(null, 1, T),
    few = on.room(R, d),
    sums = on.doubles(2);
  const losses = on.f32(null, 1, R), dx = on.room(R, d), work = on.f32(null, 1, ops.headWorkBytes(dev, 5, V) / 4);
  const batch = () => {
    ops.loraRefresh(dev, [{ dIn: d, groups, theta, W, aCast: A }], on.dtype);
    ops.embeddingForward(dev, T, { table, ids, out: x });
    ops.rmsnormForward(dev, T, { x, weight, eps: 1e-5, y: xh.columns(0, d), rstd });
    ops.linearForward(dev, T, { dIn: d, groups, xh, A, W, bias: null, y });
    ops.gatherRows(dev, R, { x: y, rows, out: few });
    ops.headCrossEntropy(dev, R, { x: few, W: table, labels, seeds, losses, argmax: null, dx, work });
    ops.segmentSum(dev, 2, { rowOffsets: offsets, values: losses, out: sums });
  };
  const feed = (seed: number) => {
    const pick = (n: number, most: number) => Int32Array.from({ length: n }, (_, i) => (i * 7919 + seed * 104729) % most);
    ops.upload(dev, ids, pick(T, V));
    ops.upload(dev, rows, pick(R, T).map((row, i) => i === R - 1 ? -1 : row));
    ops.upload(dev, labels, pick(R, V - 1));
    ops.upload(dev, offsets, Int32Array.from([0, 3 + seed, R - 1]));
    ops.upload(dev, theta, normals(2 * r * d, 10 + seed));
  };
  const results = () => ({ y: on.read(y), losses: on.read(losses), dx: on.read(dx), sums: on.readDoubles(sums) });
  const expected = [1, 2, 3].map((seed) => {
    feed(seed);
    batch();
    return results();
  });
  feed(4);
  batch();
  const last = results();
  feed(1);
  using graph = Graph.record(dev, batch);
  assertEquals(results(), last, "recording must run nothing");
  for (const seed of [1, 3, 2, 2]) {
    feed(seed);
    graph.launch();
    assertEquals(results(), expected[seed - 1], `inputs ${seed}`);
  }
});

gpuTest("while a graph is recorded, uploads, downloads, allocations and waiting are refused, and the device goes on", () => {
  using on = Subject.underTest();
  if (standIn) return;
  const { dev } = on, host = new Float32Array([1, 2]), there = on.f32(host, 1, 2), other = on.f32(null, 1, 2);
  const refused: [string, () => void][] = [
    ["Cannot upload 8 bytes: a graph is being recorded", () => ops.upload(dev, there, host)],
    ["Cannot download 8 bytes: a graph is being recorded", () => ops.download(dev, host, there)],
    ["Cannot upload [1,2]: a graph is being recorded", () => ops.upload2d(dev, 1, 2, new Uint8Array(host.buffer), "f32", there)],
    ["Cannot allocate 64 bytes: a graph is being recorded", () => dev.alloc(64)],
    ["Cannot wait for the device: a graph is being recorded", () => dev.synchronize()],
    ["Cannot record a graph: one is being recorded already", () => dev.check(dev.symbols.ml_graph_begin(dev.ctx))],
  ];
  for (const [message, body] of refused) {
    assertMessage(() =>
      Graph.record(dev, () => {
        ops.copy(dev, other, there);
        body();
      }), message);
    ops.copy(dev, other, there);
    assertSameBits(on.read(other), new Float32Array([1, 2]), "a copy behind the refusal");
  }
  const end = () => dev.check(dev.symbols.ml_graph_end(dev.ctx, new BigUint64Array(1)));
  assertMessage(end, "Cannot end a graph: none is being recorded");
});

gpuTest("errors say what was attempted on which shapes, the value found and what it must be", () => {
  using on = Subject.underTest();
  const { dev } = on, wide = on.f32(normals(64, 1), 8, 8), narrow = on.weight(normals(64, 2), 8, 8), y = on.room(2, 8);
  const [name, other] = standIn ? ["f32) on the CPU", 1] : ["bf16) on CUDA", 0], must = 1 - other;
  const strange = standIn ? narrow : wide; // activations of the other type
  const activations = `the activations' dtype is ${other}, must be ${must} (${name}`;
  assertMessage(() => ops.swigluForward(dev, 2, { f: 4, gateUp: strange, y: strange }), `Cannot gate [2,4]: ${activations}`);
  assertMessage(
    () => ops.gatherRows(dev, 1, { x: strange, rows: on.ints([0]), out: y }),
    `Cannot gather 1 rows of 8: ${activations}`,
  );
  const groups = makeGroups([[8, 0]], [1]);
  const strangeLinear = { dIn: 8, groups, xh: strange, A: null, W: narrow, bias: null, y: strange };
  assertMessage(
    () => ops.linearForward(dev, 2, strangeLinear),
    `Cannot apply a linear layer of 8 inputs to 2 rows: ${activations}`,
  );
  if (!standIn) {
    assertMessage(
      () => ops.gemm(dev, { M: 2, N: 8, K: 8, a: wide, b: narrow, c: wide }),
      "Cannot multiply [2,8] by [8,8]: the dtype of a is 0, must be 1 (bf16) on CUDA",
    );
    assertMessage(
      () => ops.gemm(dev, { M: 2, N: 8, K: 8, a: narrow, b: wide, c: wide }),
      "Cannot multiply [2,8] by [8,8]: the dtype of b is 0, must be 1 (bf16) on CUDA",
    );
    assertMessage(
      () => ops.linearForward(dev, 2, { ...strangeLinear, xh: y, W: wide, y }),
      "Cannot apply a linear layer of 8 inputs to 2 rows: wdtype is 0, must be 1 (bf16) on CUDA",
    );
    const nine = makeGroups(Array.from({ length: 9 }, () => [8, 1] as const), new Array(9).fill(1));
    const theta = on.f32(null, 1, 9 * 16), W = on.weight(null, 72, 17);
    assertMessage(
      () => ops.loraRefresh(dev, [{ dIn: 8, groups: nine, theta, W, aCast: null }], on.dtype),
      "Cannot refresh 9 adapters of a linear layer with 8 inputs: G is 9, at most 8 matrices share an input",
    );
    const missing = assertThrows(() => Device.open({ backend: BACKEND, index: 99 }), NativeError);
    assert(/^Cannot open CUDA device 99: this machine has \d+ GPUs?, numbered from 0$/.test(missing.message), missing.message);
  }
  assertMessage(
    () => ops.gemm(dev, { M: 0, N: 8, K: 8, a: narrow, b: narrow, c: wide }),
    "Cannot multiply [0,8] by [8,8]: M is 0, must be positive",
  );
  assertMessage(
    () => ops.combine(dev, 3, { weights: on.f32([1, 1], 1, 2), x: wide, y: wide.part(0, 1, 8) }),
    "Cannot combine 3 vectors of 8 numbers: weights needs 12 bytes, its memory ends after 8",
  );
});

gpuTest("memory that is freed and a device that is closed are named, not used", () => {
  const dev = Device.open({ backend: BACKEND });
  const memory = dev.alloc(64), kept = dev.alloc(64);
  const gone = new Tensor(memory, 0, 1, 4, "f32"), there = new Tensor(kept, 0, 1, 4, "f32");
  assert(gone.pointer !== null); // its address is known from now on
  memory.close();
  memory.close();
  assertMessage(() => ops.copy2d(dev, 1, 4, gone, there), "Cannot copy [1,4]: the source is no address from ml_alloc");
  assertMessage(() => ops.copy(dev, there, gone), "Cannot copy 16 bytes: the source is no address from ml_alloc");
  assertMessage(() => new Tensor(memory, 0, 1, 4, "f32").pointer, "Cannot use device memory: it is freed");
  const free = () => dev.check(dev.symbols.ml_free(dev.ctx, gone.pointer));
  assertMessage(free, "Cannot free memory: the address is not one that ml_alloc gave, or is free already");
  assertEquals(dev.allocatedBytes, 64);
  kept.close();
  dev.close();
  dev.close();
  for (const use of [() => dev.synchronize(), () => dev.alloc(1), () => ops.copy(dev, there, there)]) {
    assertMessage(use, "Cannot use the device: it is closed");
  }
});
