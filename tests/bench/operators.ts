/**
 * Time of every native operator at the shapes of SmolLM2-135M (4 samples of 128 tokens), beside what the machine can do: the
 * rate of a large matrix product for operators that compute, of a copy for operators that move memory.
 *
 *   deno run --allow-ffi --allow-read --allow-env tests/bench/operators.ts [THREADS] [FILTER]
 *
 * Times are the best of many repetitions. Arithmetic of attention counts the causal half only: 2 T (T + 1) D H forward (scores
 * and values), 2.5 times that backward; bytes count each operand once.
 */
import { Device, type Dtype, DTYPE_BYTES, Tensor } from "../../ffi/device.ts";
import * as ops from "../../ffi/operators.ts";

const [T, d, f, H, K, D, V, r] = [512, 576, 1536, 9, 3, 64, 49152, 32];
const threads = Number(Deno.args[0] ?? 0);
const filter = Deno.args[1] ?? "";

using dev = Device.open({ threads });
console.log(`${dev.name}\n`);

/** Device memory with small numbers in it. The process ends with the benchmark, so nothing is freed one by one. */
function tensor(rows: number, cols: number, dtype: Dtype = "f32", ld = cols): Tensor {
  const memory = dev.alloc(rows * ld * DTYPE_BYTES[dtype]);
  const result = new Tensor(memory, 0, rows, cols, dtype, ld);
  if (dtype === "i32") return result;
  const host = Float32Array.from({ length: rows * ld }, (_, i) => ((i * 2654435761 % 2048) - 1024) / 1024);
  ops.upload2d(dev, rows, ld, new Uint8Array(host.buffer), "f32", new Tensor(memory, 0, rows, ld, dtype));
  return result;
}
function ints(values: number[]): Tensor {
  const result = tensor(1, values.length, "i32");
  ops.upload(dev, result, Int32Array.from(values));
  return result;
}

/** Best time of one call in seconds, over about 0.3 s. */
function best(run: () => void): number {
  run();
  let least = Infinity;
  const end = performance.now() + 300;
  for (let n = 0; n < 5 || performance.now() < end; n++) {
    const start = performance.now();
    run();
    least = Math.min(least, performance.now() - start);
  }
  return least / 1000;
}

function report(name: string, work: { flops: number } | { bytes: number }, run: () => void): void {
  if (!name.includes(filter)) return;
  const seconds = best(run);
  const rate = "flops" in work
    ? `${(work.flops / seconds / 1e9).toFixed(1)} GFLOP/s`
    : `${(work.bytes / seconds / 1e9).toFixed(1)} GB/s`;
  console.log(`${name.padEnd(44)} ${(seconds * 1e3).toFixed(3).padStart(9)} ms  ${rate.padStart(15)}`);
}

// ---- what the machine can do ----
{
  const n = 1024;
  const [a, b, c] = [tensor(n, n), tensor(n, n), tensor(n, n)];
  report("gemm 1024 x 1024 x 1024", { flops: 2 * n ** 3 }, () => ops.gemm(dev, { M: n, N: n, K: n, a, b, c, transB: true }));
  const [x, y] = [tensor(T, d), tensor(T, d)];
  report("copy [T, d]", { bytes: 8 * T * d }, () => ops.copy(dev, y, x));
  const [x2, y2] = [tensor(T, 2 * f), tensor(T, 2 * f)];
  report("copy [T, 2f]", { bytes: 16 * T * f }, () => ops.copy(dev, y2, x2));
}

// ---- row by row ----
{
  const out = tensor(T, d);
  const ids = ints(Array.from({ length: T }, (_, t) => t * 7919 % V));
  for (const dtype of ["f32", "bf16"] as const) {
    const table = tensor(V, d, dtype);
    const bytes = T * d * (4 + DTYPE_BYTES[dtype]);
    report(`embedding ${dtype}`, { bytes }, () => ops.embeddingForward(dev, T, { table, ids, out }));
  }
}
{
  const [x, dx, weight, rstd] = [tensor(T, d), tensor(T, d), tensor(1, d), tensor(1, T)];
  const y = tensor(T, d, "f32", d + r);
  report("rmsnorm forward", { bytes: 8 * T * d }, () => ops.rmsnormForward(dev, T, { x, weight, eps: 1e-5, y, rstd }));
  report("rmsnorm backward", { bytes: 16 * T * d }, () => ops.rmsnormBackward(dev, T, { x, weight, rstd, dy: y, dx }));
  const [weights, stats] = [{ weight, bias: tensor(1, d) }, tensor(T, 2)], again = tensor(T, d);
  report("layernorm forward", { bytes: 8 * T * d }, () => ops.layernormForward(dev, T, { x, ...weights, eps: 1e-5, y, stats }));
  const backward = { x, ...weights, stats, dy: y, dx, y: again };
  report("layernorm backward and once more", { bytes: 20 * T * d }, () => ops.layernormBackward(dev, T, backward));
}
{
  const x = tensor(T, (H + K) * D, "f32", (H + 2 * K) * D);
  const [cos, sin] = [tensor(T, D / 2), tensor(T, D / 2)];
  const positions = ints(Array.from({ length: T }, (_, t) => t % 128));
  report("rope of q and k", { bytes: 8 * T * (H + K) * D }, () => ops.rope(dev, T, { heads: H + K, D, x, cos, sin, positions }));
}
{
  const [gateUp, y, dGateUp] = [tensor(T, 2 * f), tensor(T, f, "f32", f + r), tensor(T, 2 * f)];
  report("swiglu forward", { bytes: 12 * T * f }, () => ops.swigluForward(dev, T, { f, gateUp, y }));
  report("swiglu backward", { bytes: 20 * T * f }, () => ops.swigluBackward(dev, T, { f, gateUp, dy: y, dGateUp }));
  const dy = tensor(T, f);
  report("relu backward", { bytes: 12 * T * f }, () => ops.reluBackward(dev, T, { f, y, dy }));
}

// ---- attention ----
for (const lengths of [[128, 128, 128, 128], [512], [2048]]) {
  const rows = lengths.reduce((sum, n) => sum + n, 0);
  const width = (H + 2 * K) * D;
  const parts = (x: Tensor) => ({ q: x.columns(0, H * D), k: x.columns(H * D, K * D), v: x.columns((H + K) * D, K * D) });
  const { q, k, v } = parts(tensor(rows, width));
  const { q: dq, k: dk, v: dv } = parts(tensor(rows, width));
  const [out, dout, lse, work] = [tensor(rows, H * D), tensor(rows, H * D), tensor(rows, H), tensor(rows, H)];
  const cu = ints(lengths.reduce((list, n) => [...list, list.at(-1)! + n], [0]));
  const segments = { count: lengths.length, maxLength: lengths[0]!, cu, kvLens: null };
  const shape = { H, K, D, scale: D ** -0.5, q, k, v, out, lse };
  const flops = lengths.reduce((sum, n) => sum + 2 * n * (n + 1) * D * H, 0);
  const name = `attention ${lengths.length} x ${lengths[0]}`;
  report(`${name} forward`, { flops }, () => ops.attentionForward(dev, rows, segments, shape));
  report(
    `${name} backward`,
    { flops: 2.5 * flops },
    () => ops.attentionBackward(dev, rows, segments, { ...shape, dout, dq, dk, dv, work }),
  );
}

// ---- head and cross-entropy ----
{
  const [R, chunk] = [256, 128];
  const [x, dx, losses, seeds] = [tensor(R, d), tensor(R, d), tensor(1, R), tensor(1, R)];
  const work = tensor(1, ops.headWorkBytes(dev, chunk, V) / 4);
  const labels = ints(Array.from({ length: R }, (_, i) => i * 101 % V));
  const argmax = ints(new Array(R).fill(0));
  for (const dtype of ["f32", "bf16"] as const) {
    const W = tensor(V, d, dtype);
    const logits = new Tensor(work.storage, 0, chunk, V, "f32");
    const name = `head ${dtype}, 256 rows`;
    report(
      `${name}: forward`,
      { flops: 2 * R * d * V },
      () => ops.headCrossEntropy(dev, R, { x, W, labels, seeds, losses, argmax, dx: null, work }),
    );
    report(
      `${name}: forward and backward`,
      { flops: 4 * R * d * V },
      () => ops.headCrossEntropy(dev, R, { x, W, labels, seeds, losses, argmax, dx, work }),
    );
    report(`${name}: its matrix products alone`, { flops: 4 * R * d * V }, () => {
      for (let row = 0; row < R; row += chunk) {
        ops.gemm(dev, { M: chunk, N: V, K: d, a: x.rowRange(row, chunk), b: W, c: logits, transB: true });
        ops.gemm(dev, { M: chunk, N: d, K: V, a: logits, b: W, c: dx.rowRange(row, chunk) });
      }
    });
  }
}
