import { UserError } from "../errors.ts";
import { readRegularFile, refuseLfsPointer, unreadable, within } from "../files.ts";

/** An entry of `added_tokens`. */
export interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly special: boolean;
}

/** What the files of a model folder say about its tokenizer. */
export interface TokenizerFiles {
  /** tokenizer.json, completed with tokens that only tokenizer_config.json has. */
  readonly tokenizer: Record<string, unknown>;
  /** tokenizer_config.json, empty when absent. */
  readonly config: Record<string, unknown>;
  readonly vocabulary: readonly (readonly [text: string, id: number])[];
  readonly addedTokens: readonly AddedToken[];
  /** Text of each special token. */
  readonly specialTexts: Roles<string>;
  /** The ids that the model's config.json gives, the first where it gives a list. */
  readonly modelIds: Roles<number>;
  /** `add_bos_token` of tokenizer_config.json, null when absent. */
  readonly addBos: boolean | null;
}

type Roles<T> = Record<"bos" | "eos" | "pad", T | null>;
type Json = Record<string, unknown>;

// No vocabulary comes near it; an id beyond it is damage, and would make an array of that length.
const MAX_ID = 1 << 24;

/** @throws {UserError} When tokenizer.json is missing, or a file is not what it should be. */
export function readTokenizerFiles(dir: string): TokenizerFiles {
  const path = within(dir, "tokenizer.json");
  const tokenizer = readObject(path);
  if (tokenizer === null) {
    throw new UserError(
      `Cannot load the tokenizer in ${dir}: there is no tokenizer.json. Save it with transformers (AutoTokenizer … save_pretrained)`,
      2,
    );
  }
  const config = readObject(within(dir, "tokenizer_config.json")) ?? {};
  const map = readObject(within(dir, "special_tokens_map.json")) ?? {};
  const model = readObject(within(dir, "config.json")) ?? {};
  const added = mergeAddedTokens(path, tokenizer, config);
  for (const key of ["normalizer", "pre_tokenizer", "post_processor", "decoder"]) tokenizer[key] ??= null;
  tokenizer.added_tokens = added;
  return {
    tokenizer,
    config,
    vocabulary: readVocabulary(path, tokenizer.model),
    addedTokens: added.map((t) => ({ id: t.id, content: t.content, special: t.special === true })),
    specialTexts: roles((role) => tokenText(config[`${role}_token`]) ?? tokenText(map[`${role}_token`])),
    modelIds: roles((role) => {
      const value = model[`${role}_token_id`];
      const id: unknown = Array.isArray(value) ? value[0] : value;
      return typeof id === "number" && Number.isInteger(id) && id >= 0 ? id : null;
    }),
    addBos: typeof config.add_bos_token === "boolean" ? config.add_bos_token : null,
  };
}

function mergeAddedTokens(path: string, tokenizer: Json, config: Json): (Json & { id: number; content: string })[] {
  const tokens = new Map<number, Json & { id: number; content: string }>();
  const add = (token: unknown, file: string) => {
    if (!isObject(token) || !isId(token.id) || typeof token.content !== "string" || token.content === "") {
      throw new UserError(`Cannot load ${file}: ${shorten(token)} is no added token. Download the file again`, 2);
    }
    if (token.single_word === true) {
      const text = JSON.stringify(token.content);
      throw new UserError(
        `Cannot load ${file}: the added token ${text} has single_word = true, which is not supported. Set it to false`,
        2,
      );
    }
    if (!tokens.has(token.id)) tokens.set(token.id, { ...token, id: token.id, content: token.content });
  };
  const list = tokenizer.added_tokens ?? [];
  if (!Array.isArray(list)) throw new UserError(`Cannot load ${path}: added_tokens is no list. Download the file again`, 2);
  for (const token of list) add(token, path);
  if (isObject(config.added_tokens_decoder)) {
    for (const [id, token] of Object.entries(config.added_tokens_decoder)) {
      add(isObject(token) ? { ...token, id: Number(id) } : token, path.replace(/tokenizer\.json$/, "tokenizer_config.json"));
    }
  }
  return [...tokens.values()];
}

/** Pairs of text and id: an object for BPE and WordPiece, a list of [text, score] for Unigram. */
function readVocabulary(path: string, model: unknown): [string, number][] {
  const vocab = isObject(model) ? model.vocab : undefined;
  const pairs: [string, unknown][] = Array.isArray(vocab)
    ? vocab.map((entry, id) => [String(entry?.[0]), id])
    : isObject(vocab)
    ? Object.entries(vocab)
    : [];
  if (pairs.length === 0) throw new UserError(`Cannot load ${path}: model.vocab is missing or empty. Download the file again`, 2);
  for (const [text, id] of pairs) {
    if (!isId(id)) {
      throw new UserError(
        `Cannot load ${path}: the token ${JSON.stringify(text)} has the id ${shorten(id)}. Download the file again`,
        2,
      );
    }
  }
  return pairs as [string, number][];
}

/** A special token is a string or an object with its text under `content`. */
function tokenText(value: unknown): string | null {
  const text = isObject(value) ? value.content : value;
  return typeof text === "string" && text !== "" ? text : null;
}

function roles<T>(of: (role: "bos" | "eos" | "pad") => T | null): Roles<T> {
  return { bos: of("bos"), eos: of("eos"), pad: of("pad") };
}

function readObject(path: string): Json | null {
  let text: string;
  try {
    text = readRegularFile(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return null;
    throw new UserError(`Cannot read ${path}: ${unreadable(error, "Name the folder of a Hugging Face model")}`, 2);
  }
  refuseLfsPointer(path, text);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new UserError(`Cannot read ${path}: ${error instanceof Error ? error.message : error}. Download the file again`, 2);
  }
  if (!isObject(value)) throw new UserError(`Cannot read ${path}: it is not a JSON object. Download the file again`, 2);
  return value;
}

function isId(value: unknown): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= 0 && value < MAX_ID;
}

function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function shorten(value: unknown): string {
  const text = JSON.stringify(value) ?? "nothing";
  return text.length > 60 ? `${text.slice(0, 57)}…` : text;
}
