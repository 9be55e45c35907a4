/**
 * Element types of the safetensors format and the conversion of the three that models are stored in.
 *
 * @module
 */

/**
 * Bits of one element, in the order of the `Dtype` enum of the safetensors library. Its writer lays tensors out by this
 * order, last first, so that wide elements are aligned.
 */
export const DTYPE_BITS = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
} as const;

/** An element type, by its name in the file. */
export type Dtype = keyof typeof DTYPE_BITS;

/** Position of each type in the library's order. */
export const DTYPE_ORDER: ReadonlyMap<string, number> = new Map(Object.keys(DTYPE_BITS).map((name, i) => [name, i]));

/** True for a name that the format knows. */
export function isDtype(name: string): name is Dtype {
  return Object.hasOwn(DTYPE_BITS, name);
}

/**
 * Widens little-endian elements to f32; every bf16 and f16 number is exactly an f32 number.
 *
 * @param dtype "F32", "BF16" or "F16".
 * @param bytes The elements, in any alignment.
 * @returns One f32 an element.
 * @throws {TypeError} For another element type.
 */
export function toFloat32(dtype: Dtype, bytes: Uint8Array): Float32Array<ArrayBuffer> {
  if (dtype === "F32") return new Float32Array(bytes.slice().buffer);
  if (dtype !== "BF16" && dtype !== "F16") throw new TypeError(`Cannot widen elements of type ${dtype} to f32`);
  const halves = new Uint16Array(bytes.slice().buffer);
  const out = new Float32Array(halves.length);
  const bits = new Uint32Array(out.buffer);
  if (dtype === "BF16") {
    for (let i = 0; i < halves.length; i++) bits[i] = halves[i]! << 16;
  } else {
    for (let i = 0; i < halves.length; i++) out[i] = halfToNumber(halves[i]!);
  }
  return out;
}

/** The value of an IEEE 754 binary16 number: 1 sign bit, 5 exponent bits (bias 15), 10 fraction bits. */
function halfToNumber(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 31;
  const fraction = half & 1023;
  if (exponent === 31) return fraction === 0 ? sign * Infinity : NaN;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
}
