/**
 * Text to token ids and back, by a model folder's `tokenizer.json`.
 *
 * @module
 */

import { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";
import { UserError } from "../errors.ts";
import { within } from "../files.ts";
import { readTokenizerFiles, type TokenizerFiles } from "./files.ts";

/** What the rest of the program needs of a tokenizer. */
export interface Tokenizer {
  /** Ids of `text`, with no special token added; special tokens written out in the text are recognised. */
  encode(text: string): Int32Array<ArrayBuffer>;
  /** Text of the ids; bytes that are no valid UTF-8 become U+FFFD. */
  decode(ids: ArrayLike<number>, options?: { skipSpecial?: boolean }): string;
  /** The token as it stands in the vocabulary, such as "▁the"; empty for an id that is none. */
  tokenText(id: number): string;
  /** True for a special token such as `</s>`. */
  isSpecial(id: number): boolean;
  /** Largest id + 1. */
  readonly vocabSize: number;
  readonly bosId: number | null;
  readonly eosId: number | null;
  readonly padId: number | null;
  /** The tokenizer puts BOS before a text when it is asked for special tokens. */
  readonly addsBos: boolean;
}

/**
 * Loads `tokenizer.json` with what `tokenizer_config.json`, `special_tokens_map.json` and `config.json` add to it.
 *
 * @param dir Folder of the model.
 * @throws {UserError} When tokenizer.json is missing, damaged or needs something that is not supported.
 */
export function loadTokenizer(dir: string): Tokenizer {
  return new JsonTokenizer(dir, readTokenizerFiles(dir));
}

/**
 * Makes sure that every id the tokenizer can produce has a row in the embedding.
 *
 * @param tokenizer The tokenizer of the model.
 * @param V Rows of the embedding table.
 * @param dir Folder of the model, for the message.
 * @throws {UserError} When the largest id has no row.
 */
export function checkTokenizerFits(tokenizer: Tokenizer, V: number, dir: string): void {
  if (tokenizer.vocabSize <= V) return;
  const id = tokenizer.vocabSize - 1;
  throw new UserError(
    `Cannot use the tokenizer in ${dir}: its largest id is ${id} (${
      JSON.stringify(tokenizer.tokenText(id))
    }), but the model has ` +
      `vocab_size ${V}. Use the tokenizer that belongs to the model`,
    2,
  );
}

class JsonTokenizer implements Tokenizer {
  readonly vocabSize: number;
  readonly bosId: number | null;
  readonly eosId: number | null;
  readonly padId: number | null;
  readonly addsBos: boolean;
  readonly #inner: HuggingFaceTokenizer;
  readonly #texts: string[] = []; // by id, with holes where the vocabulary has them
  readonly #special: ReadonlySet<number>;
  readonly #path: string;

  constructor(dir: string, files: TokenizerFiles) {
    this.#path = within(dir, "tokenizer.json");
    try {
      this.#inner = new HuggingFaceTokenizer(files.tokenizer, files.config);
    } catch (error) {
      throw new UserError(
        `Cannot load ${this.#path}: ${
          error instanceof Error ? error.message : error
        }. The file is damaged or of a kind that is not supported`,
        2,
      );
    }
    for (const [text, id] of files.vocabulary) this.#texts[id] = text;
    for (const { id, content } of files.addedTokens) this.#texts[id] = content;
    this.vocabSize = this.#texts.length;
    this.#special = new Set(files.addedTokens.filter((t) => t.special).map((t) => t.id));
    this.bosId = this.#specialId(dir, "bos", files);
    this.eosId = this.#specialId(dir, "eos", files);
    this.padId = this.#specialId(dir, "pad", files);
    // An explicit add_bos_token replaces the post-processor, as it does in transformers.
    this.addsBos = this.bosId !== null && (files.addBos ?? this.#inner.encode("a").ids[0] === this.bosId);
  }

  encode(text: string): Int32Array<ArrayBuffer> {
    // A lone surrogate has no UTF-8; Python replaces it, too, when it writes the text.
    const { ids } = this.#inner.encode(text.toWellFormed(), { add_special_tokens: false });
    return Int32Array.from(ids);
  }

  decode(ids: ArrayLike<number>, { skipSpecial = false }: { skipSpecial?: boolean } = {}): string {
    const list = Array.from(ids).filter((id) => !(skipSpecial && this.#special.has(id)));
    if (list.length === 0) return "";
    const wrong = list.find((id) => this.#texts[id] === undefined);
    if (wrong !== undefined) throw new RangeError(`Cannot decode the id ${wrong}: ${this.#path} has no such token`);
    // Joining "do n't" and the like would change the text; transformers 5 leaves it off for these tokenizers, too.
    return this.#inner.decode(list, { clean_up_tokenization_spaces: false });
  }

  tokenText(id: number): string {
    return this.#texts[id] ?? "";
  }

  isSpecial(id: number): boolean {
    return this.#special.has(id);
  }

  /** Id of the text that the tokenizer's files name, else the id in config.json. */
  #specialId(dir: string, role: "bos" | "eos" | "pad", files: TokenizerFiles): number | null {
    const text = files.specialTexts[role];
    if (text === null) {
      const id = files.modelIds[role];
      return id !== null && this.#texts[id] !== undefined ? id : null;
    }
    const id = this.#texts.indexOf(text);
    if (id >= 0) return id;
    throw new UserError(
      `Cannot load the tokenizer in ${dir}: its ${role}_token ${
        JSON.stringify(text)
      } is not in the vocabulary of tokenizer.json. ` +
        `Download the folder again`,
      2,
    );
  }
}
