/** Puts a checkpoint's tensors, or random numbers of the same shape, where the model's products read them. */
import { type Device, DTYPE_BYTES, type Tensor } from "../../ffi/device.ts";
import { upload, upload2d } from "../../ffi/operators.ts";
import type { Checkpoint } from "../tensor/checkpoint.ts";
import type { Decoder } from "./decoder.ts";
import { HEAD, NAMES } from "./names.ts";
import type { Norm } from "./norms.ts";
import { ropeTables } from "./rope.ts";

/** Bytes read at a time: weights never lie in host memory twice. */
const PIECE_BYTES = 16 * 2 ** 20;

const FILE_DTYPE = { F32: "f32", BF16: "bf16", F16: "f16" } as const;

/** One tensor of a checkpoint and the place it goes to: the first `cols` columns of `target`. */
interface Placement {
  name: string;
  shape: number[];
  target: Tensor;
}

/** Where every tensor of a checkpoint goes. */
export function placements(model: Decoder): Placement[] {
  const { family, d, V, tied } = model.config;
  const names = NAMES[family];
  const norm = (name: string, { parts }: Norm): Placement[] =>
    Object.entries(parts).map(([part, target]) => ({ name: `${name}.${part}`, shape: [d], target }));
  const all: Placement[] = [
    { name: `${names.embedding}.weight`, shape: [V, d], target: model.embedding },
    ...norm(names.finalNorm, model.finalNorm),
  ];
  if (model.positionEmbedding) {
    all.push({ name: `${names.positions}.weight`, shape: [model.positionEmbedding.rows, d], target: model.positionEmbedding });
  }
  if (!tied) all.push({ name: `${HEAD}.weight`, shape: [V, d], target: model.head });
  model.layers.forEach((layer, l) => {
    all.push(...norm(`${names.block(l)}.${names.norm1}`, layer.norm1));
    all.push(...norm(`${names.block(l)}.${names.norm2}`, layer.norm2));
    for (const linear of [layer.qkv, layer.o, layer.gateUp, layer.down]) {
      let row = 0;
      for (const { name, dOut } of linear.matrices) {
        all.push({ name: `${name}.weight`, shape: [dOut, linear.dIn], target: linear.W.rowRange(row, dOut) });
        if (linear.bias) all.push({ name: `${name}.bias`, shape: [dOut], target: linear.bias.columns(row, dOut) });
        row += dOut;
      }
    }
  });
  return all;
}

/** A tensor's name in the checkpoint. A model saved without its head has names without "model.", and so have OPT's first checkpoints. */
function nameIn(checkpoint: Checkpoint, name: string): string {
  const bare = name.replace(/^model\./, "");
  return !checkpoint.tensors.has(name) && checkpoint.tensors.has(bare) ? bare : name;
}

/**
 * Loads the weights into an allocated model, converting to its weight type.
 * @throws {UserError} when a tensor is missing, has another shape or type, or cannot be read
 */
export function loadWeights(dev: Device, model: Decoder, checkpoint: Checkpoint): void {
  const tensors = placements(model).map(({ name: fullName, shape, target }) => {
    const name = nameIn(checkpoint, fullName);
    const dtype = FILE_DTYPE[checkpoint.expect(name, shape).dtype];
    const cols = shape.at(-1)!, rows = shape.length === 2 ? shape[0]! : 1;
    const rowBytes = cols * DTYPE_BYTES[dtype];
    const piece = Math.min(rows, Math.max(1, Math.floor(PIECE_BYTES / rowBytes)));
    return { name, target, dtype, rows, cols, rowBytes, piece };
  });
  const buffer = new Uint8Array(Math.max(...tensors.map(({ piece, rowBytes }) => piece * rowBytes)));
  for (const { name, target, dtype, rows, cols, rowBytes, piece } of tensors) {
    for (let row = 0; row < rows; row += piece) {
      const count = Math.min(piece, rows - row);
      const bytes = buffer.subarray(0, count * rowBytes);
      checkpoint.read(name, bytes, row * rowBytes);
      upload2d(dev, count, cols, bytes, dtype, target.rowRange(row, count));
    }
  }
  buffer.buffer.transfer(0); // given back now, before activations take their memory
  loadRope(dev, model);
}

/** Fills the model with normal(0, 0.02) numbers (the weights of norms with ones), for benchmarks of a shape. */
export function randomWeights(dev: Device, model: Decoder): void {
  const noise = new Float32Array(2 ** 20);
  let state = 1;
  const uniform = () => (state = Math.imul(state, 1664525) + 1013904223 >>> 0) / 2 ** 32;
  for (let i = 0; i < noise.length; i++) {
    noise[i] = 0.02 * Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  }
  for (const { name, shape, target } of placements(model)) {
    const cols = shape.at(-1)!, rows = shape.length === 2 ? shape[0]! : 1;
    const piece = Math.min(rows, Math.floor(noise.length / cols));
    const isNorm = shape.length === 1 && name.endsWith(".weight");
    const values = isNorm ? new Float32Array(cols).fill(1) : noise;
    const bytes = new Uint8Array(values.buffer);
    for (let row = 0; row < rows; row += piece) {
      const count = Math.min(piece, rows - row);
      upload2d(dev, count, cols, bytes.subarray(0, count * cols * 4), "f32", target.rowRange(row, count));
    }
  }
  loadRope(dev, model);
}

function loadRope(dev: Device, { config, rope }: Decoder): void {
  if (config.family !== "llama" || !rope) return;
  const { cos, sin } = ropeTables(config, rope.cos.rows, rope.cos.rows);
  upload(dev, rope.cos, cos);
  upload(dev, rope.sin, sin);
}
