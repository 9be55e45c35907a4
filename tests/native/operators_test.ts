/** Operators that work row by row, and the head, against PyTorch float64 (tests/oracle/operators.py). */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { NativeError } from "../../ffi/native.ts";
import * as ops from "../../ffi/operators.ts";
import { assertClose, fixtureCases, normals, productTolerance, Workbench } from "./harness.ts";

const TOLERANCE = 1e-5; // f32 arithmetic against float64; most operators are ten times closer

Deno.test("embeddingForward() copies the rows of an f32 or bf16 table", () => {
  using bench = new Workbench();
  for (const each of fixtureCases("embedding")) {
    const [T, d, V] = [each.number("T"), each.number("d"), each.number("V")];
    for (const dtype of ["f32", "bf16"] as const) {
      const out = bench.out(T, d, d + 3);
      const table = bench.put(each.f32("table"), V, d, { dtype });
      ops.embeddingForward(bench.dev, T, { table, ids: bench.ints(each.i32("ids")), out });
      assertEquals(bench.read(out), each.f32("out"), `${each.name} ${dtype}`);
      bench.paddingUntouched(out);
    }
  }
});

Deno.test("embeddingForward() adds the row of a position", () => {
  using bench = new Workbench();
  for (const each of fixtureCases("places")) {
    const [T, d, V, n] = [each.number("T"), each.number("d"), each.number("V"), each.number("n")];
    for (const dtype of ["f32", "bf16"] as const) {
      const out = bench.out(T, d, d + 3);
      const table = bench.put(each.f32("table"), V, d, { dtype });
      const places = {
        table: bench.put(each.f32("places"), n, d, { dtype }),
        positions: bench.ints(each.i32("positions")),
      };
      ops.embeddingForward(bench.dev, T, { table, ids: bench.ints(each.i32("ids")), places, out });
      assertEquals(bench.read(out), each.f32("out"), `${each.name} ${dtype}`);
      bench.paddingUntouched(out);
      const few = { ...places, table: places.table.rowRange(0, n - 1) };
      const error = assertThrows(
        () => ops.embeddingForward(bench.dev, T, { table, ids: bench.ints(each.i32("ids")), places: few, out }),
        NativeError,
      );
      assertEquals(
        error.message,
        `Cannot look up ${T} ids in an embedding [${V},${d}]: positions[0] is ${n - 1}, must be in 0..${n - 2}`,
      );
    }
  }
});

Deno.test("gatherRows() picks rows and scatterRows() puts them back among zeros", () => {
  using bench = new Workbench();
  const [T, d, picked] = [9, 21, [7, 0, 8, 3]];
  const values = normals(T * d, 1);
  const rows = bench.ints(picked);
  const [few, all] = [bench.out(picked.length, d, d + 2), bench.out(T, d, d + 5)];
  ops.gatherRows(bench.dev, picked.length, { x: bench.put(values, T, d, { ld: d + 3 }), rows, out: few });
  assertEquals([...bench.read(few)], picked.flatMap((t) => [...values.subarray(t * d, (t + 1) * d)]));
  ops.scatterRows(bench.dev, picked.length, T, { x: few, rows, out: all });
  assertEquals([...bench.read(all)], [...values].map((x, i) => picked.includes(Math.floor(i / d)) ? x : 0));
  bench.paddingUntouched(few);
  bench.paddingUntouched(all);
});

Deno.test("rmsnormForward() normalises and keeps 1/rms", () => {
  using bench = new Workbench();
  for (const each of fixtureCases("rmsnorm")) {
    const [T, d] = [each.number("T"), each.number("d")];
    const y = bench.out(T, d, d + 5);
    const rstd = bench.out(1, T);
    const x = bench.put(each.f32("sum"), T, d);
    const weight = bench.put(each.f32("weight"), 1, d);
    ops.rmsnormForward(bench.dev, T, { x, weight, eps: each.number("eps"), y, rstd });
    assertClose(bench.read(y), each.f32("y"), TOLERANCE, `${each.name} y`);
    assertClose(bench.read(rstd), each.f32("rstd"), TOLERANCE, `${each.name} rstd`);
    bench.paddingUntouched(y);
  }
});

Deno.test("rmsnormBackward() adds the gradient to what dx already holds", () => {
  using bench = new Workbench();
  for (const each of fixtureCases("rmsnorm")) {
    const [T, d] = [each.number("T"), each.number("d")];
    const x = bench.put(each.f32("sum"), T, d);
    const weight = bench.put(each.f32("weight"), 1, d);
    const rstd = bench.put(each.f32("rstd"), 1, T);
    const dx = bench.put(each.f32("dx0"), T, d);
    ops.rmsnormBackward(bench.dev, T, { x, weight, rstd, dy: bench.put(each.f32("dy"), T, d, { ld: d + 2 }), dx });
    assertClose(bench.read(dx), each.f32("dx"), TOLERANCE, `${each.name} dx`);
  }
});

Deno.test("layernormForward() normalises and keeps mean and 1/deviation", () => {
  using bench = new Workbench();
  for (const each of fixtureCases("layernorm")) {
    const [T, d] = [each.number("T"), each.number("d")];
    const y = bench.out(T, d, d + 5);
    const stats = bench.out(T, 2);
    const x = bench.put(each.f32("sum"), T, d);
    const weights = { weight: bench.put(each.f32("weight"), 1, d), bias: bench.put(each.f32("bias"), 1, d) };
    ops.layernormForward(bench.dev, T, { x, ...weights, eps: each.number("eps"), y, stats });
    assertClose(bench.read(y), each.f32("y"), TOLERANCE, `${each.name} y`);
    assertClose(bench.read(stats), each.f32("stats"), TOLERANCE, `${each.name} stats`);
    bench.paddingUntouched(y);
  }
});

Deno.test("layernormBackward() adds the gradient to what dx already holds, and forms the norm to the same bits", () => {
  using bench = new Workbench();
  for (const each of fixtureCases("layernorm")) {
    const [T, d] = [each.number("T"), each.number("d")];
    const x = bench.put(each.f32("sum"), T, d);
    const weights = { weight: bench.put(each.f32("weight"), 1, d), bias: bench.put(each.f32("bias"), 1, d) };
    const stats = bench.out(T, 2);
    const formed = bench.out(T, d);
    ops.layernormForward(bench.dev, T, { x, ...weights, eps: each.number("eps"), y: formed, stats });
    const dy = bench.put(each.f32("dy"), T, d, { ld: d + 2 });
    for (const [wantsDx, wantsY] of [[true, true], [true, false], [false, true]]) {
      const dx = bench.put(each.f32("dx0"), T, d, { ld: d + 1 });
      const y = bench.out(T, d, d + 4);
      const wanted = { dx: wantsDx ? dx : null, y: wantsY ? y : null };
      ops.layernormBackward(bench.dev, T, { x, ...weights, stats, dy, ...wanted });
      assertClose(bench.read(dx), each.f32(wantsDx ? "dx" : "dx0"), TOLERANCE, `${each.name} dx`);
      if (wantsY) assertEquals(bench.read(y), bench.read(formed), `${each.name} y`);
      bench.paddingUntouched(dx);
      bench.paddingUntouched(y);
    }
  }
});

Deno.test("reluBackward() agrees with autograd", () => {
  using bench = new Workbench();
  for (const each of fixtureCases("relu")) {
    const [T, f] = [each.number("T"), each.number("f")];
    const y = bench.put(each.f32("y"), T, f, { ld: f + 3 });
    ops.reluBackward(bench.dev, T, { f, y, dy: bench.put(each.f32("dy"), T, f, { ld: f + 6 }) });
    assertEquals(bench.read(y), each.f32("dx"), `${each.name} dx`);
    bench.paddingUntouched(y);
  }
});

Deno.test("ReLU of a linear layer lets a NaN through, so that a broken activation is seen in the loss", () => {
  using bench = new Workbench();
  const values = [NaN, -1, -Infinity, Infinity, 2];
  const groups = { count: 1, table: Int32Array.of(1, 0), scales: Float32Array.of(1) };
  const layer = { dIn: 1, groups, A: null, W: bench.put([1], 1, 1, { dtype: "bf16" }), bias: null, relu: true };
  const y = bench.out(5, 1);
  ops.linearForward(bench.dev, 5, { ...layer, xh: bench.put(values, 5, 1), y });
  assertEquals([...bench.read(y)], [NaN, 0, 0, Infinity, 2]);
});

Deno.test("rope() rotates as Hugging Face Llama does, and back", () => {
  using bench = new Workbench();
  for (const each of fixtureCases("rope")) {
    const [T, heads, D, n] = [each.number("T"), each.number("heads"), each.number("D"), each.number("n")];
    const cos = bench.put(each.f32("cos"), n, D / 2);
    const sin = bench.put(each.f32("sin"), n, D / 2);
    const positions = bench.ints(each.i32("positions"));
    for (const [from, to, inverse] of [["x", "y", false], ["dy", "dx", true]] as const) {
      const x = bench.put(each.f32(from), T, heads * D, { ld: heads * D + 4 });
      ops.rope(bench.dev, T, { heads, D, x, cos, sin, positions, inverse });
      assertClose(bench.read(x), each.f32(to), 1e-6, `${each.name} ${to}`);
      bench.paddingUntouched(x);
    }
  }
});

Deno.test("swigluForward() and swigluBackward() agree with autograd, in place too", () => {
  using bench = new Workbench();
  for (const each of fixtureCases("swiglu")) {
    const [T, f] = [each.number("T"), each.number("f")];
    const gateUp = bench.put(each.f32("gate_up"), T, 2 * f);
    const y = bench.out(T, f, f + 1);
    const dy = bench.put(each.f32("dy"), T, f, { ld: f + 6 });
    const dGateUp = bench.out(T, 2 * f);
    ops.swigluForward(bench.dev, T, { f, gateUp, y });
    assertClose(bench.read(y), each.f32("y"), 1e-6, `${each.name} y`);
    bench.paddingUntouched(y);
    ops.swigluBackward(bench.dev, T, { f, gateUp, dy, dGateUp });
    assertClose(bench.read(dGateUp), each.f32("dgate_up"), 1e-6, `${each.name} dgate_up`);
    ops.swigluBackward(bench.dev, T, { f, gateUp, dy, dGateUp: gateUp });
    assertEquals(bench.read(gateUp), bench.read(dGateUp), `${each.name} in place`);
  }
});

Deno.test("swigluForward() is within 4 units in the last place for every size of gate", () => {
  using bench = new Workbench();
  const gates = Float32Array.from({ length: 4096 }, (_, i) => (i - 2048) / 20); // -102.4 .. 102.4: exp from denormal to inf
  const f = gates.length;
  const ones = new Float32Array(f).fill(1);
  const y = bench.out(1, f);
  ops.swigluForward(bench.dev, 1, { f, gateUp: bench.put([...gates, ...ones], 1, 2 * f), y });
  bench.read(y).forEach((value, i) => {
    const exact = gates[i]! / (1 + Math.exp(-gates[i]!));
    if (gates[i]! < -87 && value === 0) return; // e^x is at the edge of the normal numbers: taken as 0
    const ulp = 2 ** (Math.floor(Math.log2(Math.abs(exact) || 1)) - 23);
    assert(Math.abs(value - exact) <= 4 * ulp, `silu(${gates[i]}) = ${value}, exactly ${exact}`);
  });
});

Deno.test("swigluForward() keeps a NaN with any payload, and the limits at infinity", () => {
  using bench = new Workbench();
  const bits = Uint32Array.from([0x7fc00000, 0x7fc00001, 0x7fffffff, 0xffc00123, 0x7f800000, 0xff800000]);
  const y = bench.out(1, bits.length);
  const gateUp = bench.out(1, 2 * bits.length);
  ops.upload(bench.dev, gateUp, new Int32Array([...bits, ...new Array(bits.length).fill(0x3f800000)]));
  ops.swigluForward(bench.dev, 1, { f: bits.length, gateUp, y });
  assertEquals([...bench.read(y)], [NaN, NaN, NaN, NaN, Infinity, NaN]); // -inf * sigmoid(-inf) = -inf * 0
});

Deno.test("headCrossEntropy() gives losses, argmax and dx for any chunk size and weight type", () => {
  using bench = new Workbench();
  for (const each of fixtureCases("head")) {
    const [R, d, V] = [each.number("R"), each.number("d"), each.number("V")];
    for (const dtype of ["f32", "bf16"] as const) {
      for (const rows of [1, 3, R]) {
        const losses = bench.out(1, R);
        const dx = bench.out(R, d);
        const argmax = bench.ints(new Int32Array(R).fill(-1));
        const common = {
          x: bench.put(each.f32("x"), R, d),
          W: bench.put(each.f32("W"), V, d, { ld: d + 2, dtype }),
          labels: bench.ints(each.i32("labels")),
          seeds: bench.put(each.f32("seeds"), 1, R),
          work: bench.out(1, ops.headWorkBytes(bench.dev, rows, V) / 4),
        };
        const what = `${each.name} ${dtype}, ${rows} rows a chunk,`;
        const tolerance = productTolerance(bench.dev, dtype, TOLERANCE);
        ops.headCrossEntropy(bench.dev, R, { ...common, losses, argmax, dx });
        assertClose(bench.read(losses), each.f32("losses"), tolerance, `${what} losses`);
        assertClose(bench.read(dx), each.f32("dx"), tolerance, `${what} dx`);
        if (tolerance === TOLERANCE) assertEquals(bench.readInts(argmax), each.i32("argmax"), `${what} argmax`);
        const alone = bench.out(1, R);
        ops.headCrossEntropy(bench.dev, R, { ...common, losses: alone, argmax: null, dx: null });
        assertEquals(bench.read(alone), bench.read(losses), `${what} losses without a backward`);
      }
    }
  }
});

Deno.test("headCrossEntropy() picks the first of equal maxima", () => {
  using bench = new Workbench();
  const V = 131;
  const x = bench.put([1], 1, 1);
  const seeds = bench.put([1], 1, 1);
  const labels = bench.ints([0]);
  for (const first of [0, 1, 40, 63, 64, 129]) {
    const logits = new Float32Array(V).fill(-1).fill(2, first, first + 1).fill(2, V - 1);
    const argmax = bench.ints([-1]);
    const losses = bench.out(1, 1);
    const work = bench.out(1, V);
    const W = bench.put(logits, V, 1);
    ops.headCrossEntropy(bench.dev, 1, { x, W, labels, seeds, losses, argmax, dx: null, work });
    assertEquals(bench.readInts(argmax)[0], first);
  }
});

Deno.test("headCrossEntropy() turns NaN and infinite logits into a loss that is not finite", () => {
  using bench = new Workbench();
  const V = 50;
  const x = bench.put([1], 1, 1);
  const seeds = bench.put([1], 1, 1);
  const labels = bench.ints([3]);
  for (const bad of [NaN, Infinity, -Infinity]) {
    for (const at of [0, 3, V - 1]) {
      const logits = new Float32Array(V).fill(bad === -Infinity && at === 3 ? 0 : 0.5);
      logits[at] = bad;
      const losses = bench.out(1, 1);
      const dx = bench.out(1, 1);
      const argmax = bench.ints([-1]);
      const work = bench.out(1, V);
      const W = bench.put(logits, V, 1);
      ops.headCrossEntropy(bench.dev, 1, { x, W, labels, seeds, losses, argmax, dx, work });
      const harmless = bad === -Infinity && at !== 3; // a probability of exactly 0 elsewhere is fine
      assertEquals(Number.isFinite(bench.read(losses)[0]), harmless, `${bad} at ${at} gives ${bench.read(losses)[0]}`);
    }
  }
});
