/**
 * The products of a Llama-2-7B step on a GPU, one by one: what the adapters inside them cost, and what other layouts would.
 *
 *     deno run -A tests/bench/gemm_cuda.ts [tokens]
 */
import { Device, Tensor } from "../../ffi/device.ts";
import { gemm, upload2d } from "../../ffi/operators.ts";

const T = Number(Deno.args[0] ?? 1600);
using dev = Device.open({ backend: "cuda" });

const noise = new Float32Array(1 << 20);
for (let i = 0; i < noise.length; i += 2) {
  const radius = Math.sqrt(-2 * Math.log(1 - Math.random())), angle = 2 * Math.PI * Math.random();
  noise[i] = radius * Math.cos(angle);
  noise[i + 1] = radius * Math.sin(angle);
}
const bytes = new Uint8Array(noise.buffer);

/** Random bf16 [rows,cols] with rows ld apart. */
function random(rows: number, cols: number, ld = cols): Tensor {
  const memory = dev.alloc(rows * ld * 2);
  const tensor = new Tensor(memory, 0, rows, cols, "bf16", ld);
  const piece = Math.floor(noise.length / ld);
  for (let row = 0; row < rows; row += piece) {
    const count = Math.min(piece, rows - row);
    upload2d(dev, count, ld, bytes.subarray(0, 4 * count * ld), "f32", new Tensor(memory, row * ld * 2, count, ld, "bf16"));
  }
  return tensor;
}

/** Median milliseconds of `work`, repeated so often that a measurement spans some milliseconds. */
function time(work: () => void): number {
  const out = new Float64Array(1), times: number[] = [];
  for (let i = 0; i < 9; i++) {
    dev.check(dev.symbols.ml_mark(dev.ctx, 0));
    for (let k = 0; k < 4; k++) work();
    dev.check(dev.symbols.ml_mark(dev.ctx, 1));
    dev.check(dev.symbols.ml_elapsed(dev.ctx, 0, 1, out));
    times.push(out[0]! / 4);
  }
  return times.sort((a, b) => a - b)[4]!;
}

function report(name: string, M: number, N: number, K: number, work: () => void): number {
  const ms = time(work);
  const rate = 2 * M * N * K / ms / 1e9;
  console.log(
    `${name.padEnd(34)} ${[M, N, K].join("×").padEnd(20)} ${ms.toFixed(4).padStart(9)} ms ${rate.toFixed(0).padStart(6)} TFLOP/s`,
  );
  return ms;
}

console.log(dev.name);
{
  const n = 8192, a = random(n, n), b = random(n, n), c = random(n, n);
  report("yardstick", n, n, n, () => gemm(dev, { M: n, N: n, K: n, a, b, c, transB: true }));
}
const totals = { plain: 0, inside: 0 };
for (
  const [name, dIn, N, r] of [["qkv", 4096, 12288, 96], ["o", 4096, 4096, 32], ["gate_up", 4096, 22016, 64], [
    "down",
    11008,
    4096,
    32,
  ]] as const
) {
  const width = dIn + r, ld = Math.ceil(width / 64) * 64;
  const W = random(N, ld), x = random(T, ld), dy = random(T, N), y = random(T, N), gx = random(T, ld), A = random(r, dIn);
  const W0 = random(N, dIn), x0 = random(T, dIn), gx0 = random(T, dIn);
  const at = (t: Tensor, column: number, cols: number) => t.columns(column, cols);
  totals.plain += report(
    `${name} forward, frozen`,
    T,
    N,
    dIn,
    () => gemm(dev, { M: T, N, K: dIn, a: x0, b: W0, c: y, transB: true }),
  );
  totals.inside += report(
    `${name} h = x Aᵀ`,
    T,
    r,
    dIn,
    () => gemm(dev, { M: T, N: r, K: dIn, a: x, b: A, c: at(gx, dIn, r), transB: true }),
  );
  totals.inside += report(
    `${name} forward, adapter inside`,
    T,
    N,
    width,
    () => gemm(dev, { M: T, N, K: width, a: x, b: W, c: y, transB: true }),
  );
  report(`${name} forward, whole tiles`, T, N, ld, () => gemm(dev, { M: T, N, K: ld, a: x, b: W, c: y, transB: true }));
  totals.plain += report(`${name} backward, frozen`, T, dIn, N, () => gemm(dev, { M: T, N: dIn, K: N, a: dy, b: W0, c: gx0 }));
  totals.inside += report(
    `${name} backward, adapter inside`,
    T,
    width,
    N,
    () => gemm(dev, { M: T, N: width, K: N, a: dy, b: W, c: gx }),
  );
  report(`${name} backward, whole tiles`, T, ld, N, () => gemm(dev, { M: T, N: ld, K: N, a: dy, b: W, c: gx }));
  totals.inside += report(
    `${name} dx += g_h A`,
    T,
    dIn,
    r,
    () => gemm(dev, { M: T, N: dIn, K: r, a: at(gx, dIn, r), b: A, c: gx, beta: 1 }),
  );
  // The other way round: g_h first, then one product over K = N + r with A below W.
  const dyw = random(T, N + r, Math.ceil((N + r) / 64) * 64), WA = random(N + r, ld);
  report(`${name} g_h = dY sB`, T, r, N, () => gemm(dev, { M: T, N: r, K: N, a: dy, b: at(W, dIn, r), c: at(gx, dIn, r) }));
  report(`${name} backward over N + r`, T, dIn, N + r, () => gemm(dev, { M: T, N: dIn, K: N + r, a: dyw, b: WA, c: gx }));
}
console.log(`32 layers: frozen ${(32 * totals.plain).toFixed(1)} ms, adapters inside ${(32 * totals.inside).toFixed(1)} ms`);
