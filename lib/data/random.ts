/**
 * Seeded random numbers, the same on every machine.
 *
 * @module
 */

/** One output of splitmix32 (the finaliser of MurmurHash3 over a Weyl sequence): a bijection of 32 bits that mixes them well. */
function splitmix32(state: number): number {
  let z = (state + 0x9e3779b9) >>> 0;
  z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
  z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
  return (z ^ (z >>> 16)) >>> 0;
}

/** FNV-1a over UTF-16 units: turns the name of a stream into 32 bits. */
function hashName(name: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < name.length; i++) hash = Math.imul(hash ^ name.charCodeAt(i), 0x01000193) >>> 0;
  return hash;
}

/**
 * xoshiro128** 1.1 (Blackman and Vigna, https://prng.di.unimi.it/xoshiro128starstar.c): 128 bits of state, period 2^128 - 1.
 * Not for secrets.
 *
 * Each purpose takes its own stream by name (`new Rng(seed, "adapter init")`), so that one more draw somewhere does not
 * change everything else.
 */
export class Rng {
  readonly #s: Uint32Array<ArrayBuffer>; // [4]

  /**
   * @param seed A whole number, 0 or more; all 53 bits count.
   * @param stream Name of the purpose.
   */
  constructor(seed: number, stream: string = "") {
    if (!Number.isSafeInteger(seed) || seed < 0) throw new RangeError(`Cannot seed random numbers with ${seed}`);
    const parts = [hashName(stream), Math.floor(seed / 2 ** 32), seed];
    // Each part enters through the mixture of those before it, so that they cannot cancel one another.
    this.#s = Uint32Array.from({ length: 4 }, (_, word) => parts.reduce((mixed, part) => splitmix32(mixed ^ part), word));
    if (this.#s.every((word) => word === 0)) this.#s[0] = 1; // the one state that would stay 0 for ever
  }

  /** Continues where {@linkcode Rng.state} was taken. */
  static fromState(state: ArrayLike<number>): Rng {
    if (state.length !== 4 || Array.from(state).every((word) => word === 0)) {
      throw new RangeError("Cannot restore random numbers: the state must be 4 words that are not all 0");
    }
    const rng = new Rng(0);
    rng.#s.set(state);
    return rng;
  }

  /** A copy of the state, 4 words. */
  state(): Uint32Array<ArrayBuffer> {
    return this.#s.slice();
  }

  /** A uniform integer in 0 .. 2^32 - 1. */
  nextU32(): number {
    const s = this.#s;
    const result = Math.imul(rotl(Math.imul(s[1]!, 5), 7), 9) >>> 0;
    const t = s[1]! << 9;
    s[2]! ^= s[0]!;
    s[3]! ^= s[1]!;
    s[1]! ^= s[2]!;
    s[0]! ^= s[3]!;
    s[2]! ^= t;
    s[3] = rotl(s[3]!, 11);
    return result;
  }

  /** A uniform number in [0, 1) with 53 random bits; takes two words. */
  uniform(): number {
    const high = this.nextU32() >>> 5;
    const low = this.nextU32() >>> 6;
    return (high * 2 ** 26 + low) / 2 ** 53;
  }

  /** A uniform integer in 0 .. n - 1, without the bias of a plain remainder; 1 ≤ n ≤ 2^32. */
  below(n: number): number {
    if (!Number.isInteger(n) || n < 1 || n > 2 ** 32) throw new RangeError(`Cannot draw below ${n}: not in 1 .. 2^32`);
    const limit = 2 ** 32 - 2 ** 32 % n;
    let word = this.nextU32();
    while (word >= limit) word = this.nextU32();
    return word % n;
  }

  /** A standard normal number (Box–Muller). The second one of the pair is not kept: the state stays 4 words. */
  normal(): number {
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform())); // 1 - u lies in (0, 1]
    return radius * Math.cos(2 * Math.PI * this.uniform());
  }
}

function rotl(x: number, k: number): number {
  return (x << k) | (x >>> (32 - k));
}

/**
 * A uniformly drawn order of 0 .. n - 1 (Fisher–Yates; Durstenfeld 1964).
 *
 * @returns [n]
 */
export function permutation(rng: Rng, n: number): Uint32Array<ArrayBuffer> {
  const order = Uint32Array.from({ length: n }, (_, i) => i);
  for (let i = n - 1; i > 0; i--) {
    const j = rng.below(i + 1);
    const swapped = order[i]!;
    order[i] = order[j]!;
    order[j] = swapped;
  }
  return order;
}
