/**
 * A sample as text, for people.
 *
 * @module
 */

import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { IGNORED, type Sample } from "./encode.ts";

/** A stretch of a sample whose tokens are all trained, or all not. */
export interface Piece {
  readonly text: string;
  readonly trained: boolean;
}

/**
 * The text of a sample, special tokens included, cut where training begins and ends. The pieces joined are the text that the
 * model sees: a tokenizer that drops the space in front of a text would drop it from each piece decoded alone.
 */
export function pieces(sample: Pick<Sample, "ids" | "labels">, tokenizer: Pick<Tokenizer, "decode">): Piece[] {
  const { ids, labels } = sample;
  const result: Piece[] = [];
  let before = "";
  for (let start = 0; start < ids.length;) {
    const trained = labels[start] !== IGNORED;
    let end = start + 1;
    while (end < ids.length && (labels[end] !== IGNORED) === trained) end++;
    const text = tokenizer.decode(ids.subarray(0, end));
    result.push({ text: text.slice(commonPrefix(before, text)), trained });
    before = text;
    start = end;
  }
  return result;
}

/** Shorter than `a` only where a cut falls inside a character of several byte tokens. */
function commonPrefix(a: string, b: string): number {
  if (b.startsWith(a)) return a.length;
  let n = 0;
  while (n < a.length && a[n] === b[n]) n++;
  return n;
}
