/**
 * From text to the ids and labels of a sample.
 *
 * @module
 */

import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import type { Rendered } from "./template.ts";

/** The label of a token that is not trained. */
export const IGNORED = -100;

/** A sample ready for the model. */
export interface Sample {
  readonly id: string;
  /** Line of a JSONL file, or place in the array of a JSON file; from 1. */
  readonly line: number;
  /** [T] */
  readonly ids: Int32Array<ArrayBuffer>;
  /** [T], not shifted: labels[t] = ids[t] where the token is trained, -100 elsewhere. */
  readonly labels: Int32Array<ArrayBuffer>;
  /** With its template, before truncation. */
  readonly prompt: string;
  readonly response: string;
  readonly source: string | null;
  /** Whether it has lost tokens to the limit of length. */
  readonly truncated: boolean;
}

/** How texts become ids. */
export interface EncodeOptions {
  /** Most tokens of a sample, BOS and EOS included. "standard" only. */
  readonly maxLength: number;
  /** Ends the answer with EOS, which is trained. */
  readonly appendEos: boolean;
  /**
   * - `standard`: the answer is never cut. Where a sample is too long, the prompt loses tokens on its left (never BOS);
   *   a sample whose answer does not fit with one token of prompt is dropped.
   * - `reference`: as the META-LORA authors' code (algorithms §1.5–1.6): BOS + prompt and answer + EOS are each cut on the
   *   right, to 200 tokens.
   */
  readonly mode: "standard" | "reference";
}

/** Limits of `reference`: source and target, each with its special token. */
export const REFERENCE_LENGTH = 200;

/** Why a sample cannot be used. */
export type DropReason = "empty response" | "response longer than max_length" | "no token to train";

/** A sample, or the reason why there is none. */
export type Encoded =
  | { readonly ids: Int32Array<ArrayBuffer>; readonly labels: Int32Array<ArrayBuffer>; readonly truncated: boolean }
  | { readonly dropped: DropReason };

/**
 * Makes (BOS) + prompt + response + EOS. Prompt and response are tokenised apart, so that the border between what is given
 * and what is trained is a border between tokens. BOS comes first if the tokenizer puts it there.
 *
 * @param rendered Prompt and response.
 * @param tokenizer Must have an EOS where `appendEos` asks for one.
 * @param options Lengths and the way to cut.
 * @returns ids and labels [T], or why the sample must be dropped.
 */
export function encodeSample(rendered: Rendered, tokenizer: Tokenizer, options: EncodeOptions): Encoded {
  if (rendered.response.trim() === "") return { dropped: "empty response" };
  const prompt = tokenizer.encode(rendered.prompt);
  const response = tokenizer.encode(rendered.response);
  if (response.length === 0) return { dropped: "empty response" };
  const eos = options.appendEos && tokenizer.eosId !== null ? [tokenizer.eosId] : [];
  if (options.mode === "reference") {
    // The code writes BOS into the text, whether or not the tokenizer would add it.
    const bos = tokenizer.bosId === null ? [] : [tokenizer.bosId];
    const source = [...bos, ...prompt];
    const target = [...response, ...eos];
    const truncated = source.length > REFERENCE_LENGTH || target.length > REFERENCE_LENGTH;
    return join(source.slice(0, REFERENCE_LENGTH), target.slice(0, REFERENCE_LENGTH), truncated);
  }
  const bos = tokenizer.addsBos && tokenizer.bosId !== null ? [tokenizer.bosId] : [];
  const room = options.maxLength - bos.length - response.length - eos.length;
  if (room < Math.min(1, prompt.length)) return { dropped: "response longer than max_length" };
  const kept = prompt.length > room ? prompt.slice(prompt.length - room) : prompt;
  return join([...bos, ...kept], [...response, ...eos], kept.length < prompt.length);
}

/** source is given, target is trained. The first token of all has nothing before it, so it can never be predicted. */
function join(source: readonly number[], target: readonly number[], truncated: boolean): Encoded {
  const ids = Int32Array.from([...source, ...target]);
  if (ids.length < 2) return { dropped: "no token to train" };
  const labels = ids.slice().fill(IGNORED, 0, Math.max(1, source.length));
  return { ids, labels, truncated };
}
