import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { type Encoded, type EncodeOptions, encodeSample, IGNORED, REFERENCE_LENGTH } from "../../lib/data/encode.ts";
import { pieces } from "../../lib/data/view.ts";
import { characterTokenizer } from "./fake_tokenizer.ts";

const tokenizer = characterTokenizer();
const options: EncodeOptions = { maxLength: 100, appendEos: true, mode: "standard" };
const encode = (prompt: string, response: string, change: Partial<EncodeOptions> = {}, with_ = tokenizer) =>
  encodeSample({ prompt, response }, with_, { ...options, ...change });

/** "<s>prompt|response</s>" with a bar where training begins; "dropped: reason" for none. */
function show(encoded: Encoded): string {
  if ("dropped" in encoded) return `dropped: ${encoded.dropped}`;
  const text = pieces(encoded, tokenizer).map((piece) => piece.trained ? `|${piece.text}` : piece.text).join("");
  return encoded.truncated ? `${text} (truncated)` : text;
}

Deno.test("encodeSample() makes BOS + prompt + response + EOS and labels response and EOS only", () => {
  const encoded = encode("ab", "cd") as Exclude<Encoded, { dropped: string }>;
  assertEquals([...encoded.ids], [1, 100, 101, 102, 103, 2]);
  assertEquals([...encoded.labels], [IGNORED, IGNORED, IGNORED, 102, 103, 2]);
  assertEquals(encoded.truncated, false);
  assertEquals(show(encode("ab", "cd", { appendEos: false })), "<s>ab|cd");
  assertEquals(show(encode("ab", "cd", {}, characterTokenizer({ addsBos: false }))), "ab|cd</s>");
  assertEquals(show(encode("ab", "cd", {}, characterTokenizer({ bosId: null }))), "ab|cd</s>");
});

Deno.test("encodeSample() cuts the prompt from the left, keeps BOS and the answer, and drops what does not fit", () => {
  const lengths = [12, 11, 10, 9, 8, 7, 6].map((maxLength) => show(encode("prompt", "four", { maxLength })));
  assertEquals(lengths, [
    "<s>prompt|four</s>",
    "<s>rompt|four</s> (truncated)",
    "<s>ompt|four</s> (truncated)",
    "<s>mpt|four</s> (truncated)",
    "<s>pt|four</s> (truncated)",
    "<s>t|four</s> (truncated)",
    "dropped: response longer than max_length",
  ]);
});

Deno.test("encodeSample() drops an empty response and what leaves no token to train", () => {
  assertEquals(show(encode("ab", "")), "dropped: empty response");
  assertEquals(show(encode("ab", " \n ")), "dropped: empty response");
  assertEquals(show(encode("", "cd")), "<s>|cd</s>");
  const bare = characterTokenizer({ addsBos: false });
  assertEquals(
    show(encode("", "cd", { appendEos: false }, bare)),
    "c|d",
    "nothing stands before the first token to predict it from",
  );
  assertEquals(show(encode("", "c", { appendEos: false }, bare)), "dropped: no token to train");
});

Deno.test("encodeSample() never makes a sample longer than max_length, and never loses a token of the answer", () => {
  fc.assert(
    fc.property(
      fc.nat(30),
      fc.integer({ min: 1, max: 30 }),
      fc.integer({ min: 2, max: 40 }),
      fc.boolean(),
      (p, r, maxLength, addsBos) => {
        const encoded = encode("p".repeat(p), "r".repeat(r), { maxLength }, characterTokenizer({ addsBos }));
        const overhead = (addsBos ? 1 : 0) + r + 1;
        if ("dropped" in encoded) return assert(overhead + Math.min(1, p) > maxLength);
        assertEquals(encoded.ids.length, Math.min(maxLength, overhead + p));
        const trained = encoded.labels.filter((label) => label !== IGNORED).length;
        assertEquals(trained, r + 1 - (addsBos || p > 0 ? 0 : 1));
        assertEquals(encoded.truncated, overhead + p > maxLength);
        assert(encoded.labels.every((label, t) => label === IGNORED || label === encoded.ids[t]));
      },
    ),
    { seed: 1, numRuns: 500 },
  );
});

Deno.test("encodeSample() in reference mode cuts source and target on the right, at 200 tokens each", () => {
  const reference = { mode: "reference" as const, maxLength: 10 };
  assertEquals(show(encode("prompt", "answer", reference)), "<s>prompt|answer</s>", "max_length has no part in it");
  const long = encode("p".repeat(300), "r".repeat(300), reference) as Exclude<Encoded, { dropped: string }>;
  assertEquals(REFERENCE_LENGTH, 200);
  assertEquals(show(long), `<s>${"p".repeat(199)}|${"r".repeat(200)} (truncated)`, "the end of the prompt and EOS are lost");
  const fits = encode("p".repeat(199), "r".repeat(199), reference);
  assertEquals(show(fits), `<s>${"p".repeat(199)}|${"r".repeat(199)}</s>`);
  // The authors write BOS into the text, also for a tokenizer that would not add it.
  assertEquals(show(encode("p", "r", reference, characterTokenizer({ addsBos: false }))), "<s>p|r</s>");
});

Deno.test("pieces() joined are the whole text, cut where training begins", () => {
  // Drops a leading space, as Llama's decoder does.
  const strip = { decode: (ids: ArrayLike<number>) => tokenizer.decode(ids).replace(/^ /, "") };
  const encoded = encode(" a b", " c", {}, characterTokenizer({ addsBos: false })) as Exclude<Encoded, { dropped: string }>;
  assertEquals(pieces(encoded, strip), [{ text: "a b", trained: false }, { text: " c</s>", trained: true }]);
});
