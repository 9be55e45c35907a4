import { assert, assertEquals, assertThrows } from "@std/assert";
import { createHash } from "node:crypto";
import { UserError } from "../../lib/errors.ts";
import { checkTokenizerFits, loadTokenizer, type Tokenizer } from "../../lib/tokenizer/tokenizer.ts";

const root = new URL("../../", import.meta.url).pathname;
const stories = `${root}../shared/models/stories260K`;
const data = `${root}../shared/data`;
const bytelevel = `${root}tests/fixtures/bytelevel`;

interface Case {
  text: string;
  ids: number[];
  decoded: string;
  plain: string;
}
interface Fixture {
  stories260K: { with_special: number[]; rows: { file: string; line: number; tokens: number; hash: string }[]; texts: Case[] };
  bytelevel: { with_special: number[]; size: number; texts: Case[] };
}
const fixture: Fixture = JSON.parse(Deno.readTextFileSync(`${root}tests/fixtures/tokenizer.json`));

function exists(path: string): boolean {
  try {
    return Deno.statSync(path).isDirectory;
  } catch {
    return false;
  }
}

const ignore = !exists(stories) || !exists(data);
if (ignore) console.log("skipped: tests with ../shared/models/stories260K, which is not here");

function checkTexts(tokenizer: Tokenizer, cases: readonly Case[]): void {
  for (const { text, ids, decoded, plain } of cases) {
    assertEquals([...tokenizer.encode(text)], ids, `ids of ${JSON.stringify(text)}`);
    assertEquals(tokenizer.decode(ids), decoded, `text of the ids of ${JSON.stringify(text)}`);
    assertEquals(tokenizer.decode(ids, { skipSpecial: true }), plain, `the same without special tokens`);
  }
}

Deno.test({
  name: "encode() gives transformers' ids for hundreds of real rows",
  ignore,
  fn() {
    const tokenizer = loadTokenizer(stories);
    const { rows } = fixture.stories260K;
    assert(rows.length >= 300);
    const files = new Map<string, string[]>();
    for (const { file, line, tokens, hash } of rows) {
      if (!files.has(file)) files.set(file, Deno.readTextFileSync(`${data}/${file}`).split("\n"));
      const row = JSON.parse(files.get(file)![line]!);
      const ids = tokenizer.encode([row.instruction, row.input, row.output].join("\n"));
      assertEquals(ids.length, tokens, `${file}:${line + 1}`);
      assertEquals(createHash("sha256").update(ids.join(",")).digest("hex").slice(0, 16), hash, `${file}:${line + 1}`);
    }
  },
});

Deno.test({
  name: "encode() and decode() agree with transformers on difficult texts (byte fallback)",
  ignore,
  fn() {
    const tokenizer = loadTokenizer(stories);
    assertEquals([tokenizer.bosId, tokenizer.eosId, tokenizer.padId, tokenizer.vocabSize], [1, 2, null, 512]);
    assert(tokenizer.addsBos && fixture.stories260K.with_special[0] === tokenizer.bosId);
    assertEquals([tokenizer.tokenText(1), tokenizer.tokenText(999)], ["<s>", ""]);
    assert(tokenizer.isSpecial(2) && !tokenizer.isSpecial(300));
    checkTexts(tokenizer, fixture.stories260K.texts);
  },
});

Deno.test("encode() and decode() agree with transformers on difficult texts (byte level, added tokens)", () => {
  const tokenizer = loadTokenizer(bytelevel);
  assertEquals(tokenizer.vocabSize, fixture.bytelevel.size);
  assertEquals(tokenizer.tokenText(tokenizer.bosId!), "<|begin|>");
  assertEquals(tokenizer.tokenText(tokenizer.eosId!), "<|end|>");
  assert(tokenizer.addsBos);
  assertEquals([tokenizer.bosId!, ...tokenizer.encode("Hello world")], fixture.bytelevel.with_special);
  checkTexts(tokenizer, fixture.bytelevel.texts);
});

/** A copy of the byte-level tokenizer with changed files. */
function withFiles(files: Record<string, unknown>, use: (dir: string) => void): void {
  const dir = Deno.makeTempDirSync();
  try {
    Deno.copyFileSync(`${bytelevel}/tokenizer.json`, `${dir}/tokenizer.json`);
    for (const [name, value] of Object.entries(files)) {
      Deno.writeTextFileSync(`${dir}/${name}`, typeof value === "string" ? value : JSON.stringify(value));
    }
    use(dir);
  } finally {
    Deno.removeSync(dir, { recursive: true });
  }
}

Deno.test("loadTokenizer() takes special tokens from special_tokens_map.json, then from config.json", () => {
  withFiles(
    { "special_tokens_map.json": { eos_token: "<|begin|>" }, "config.json": { eos_token_id: 3, bos_token_id: [5, 6] } },
    (dir) => {
      const tokenizer = loadTokenizer(dir);
      assertEquals(tokenizer.tokenText(tokenizer.eosId!), "<|begin|>");
      assertEquals([tokenizer.bosId, tokenizer.padId], [5, null]);
      assert(!tokenizer.addsBos, "the post-processor adds another token");
    },
  );
});

Deno.test("loadTokenizer() lets add_bos_token overrule the post-processor, as transformers does", () => {
  withFiles({ "tokenizer_config.json": { bos_token: "<|begin|>", add_bos_token: false } }, (dir) => {
    assert(!loadTokenizer(dir).addsBos);
  });
});

Deno.test("loadTokenizer() adds tokens that only tokenizer_config.json has", () => {
  const extra = { content: "<extra>", special: true, normalized: false };
  withFiles({ "tokenizer_config.json": { added_tokens_decoder: { "404": extra } } }, (dir) => {
    const tokenizer = loadTokenizer(dir);
    assertEquals([...tokenizer.encode("<extra>")], [404]);
    assertEquals(tokenizer.vocabSize, 405);
  });
});

Deno.test("loadTokenizer() explains what is wrong with the files", () => {
  const cases: [Record<string, unknown>, RegExp][] = [
    [{ "tokenizer.json": "{" }, /Cannot read .*tokenizer\.json: .*JSON/],
    [{ "tokenizer.json": "[]" }, /not a JSON object/],
    [{ "tokenizer.json": {} }, /model\.vocab is missing/],
    [{ "tokenizer.json": { model: { type: "BPE", vocab: { a: 1.5 }, merges: [] } } }, /"a" has the id 1\.5/],
    [{ "tokenizer.json": { model: { type: "Odd", vocab: { a: 0 } }, added_tokens: [{ id: 0 }] } }, /is no added token/],
    [
      { "tokenizer.json": { model: { type: "BPE", vocab: { a: 0 }, merges: [] }, decoder: { type: "Odd" } } },
      /Odd.*not supported/,
    ],
    [{ "tokenizer_config.json": { eos_token: "<nowhere>" } }, /eos_token "<nowhere>" is not in the vocabulary/],
  ];
  for (const [files, message] of cases) {
    withFiles(files, (dir) => {
      const error = assertThrows(() => loadTokenizer(dir), UserError) as UserError;
      assert(message.test(error.message), error.message);
      assertEquals(error.exitCode, 2);
    });
  }
  assertThrows(() => loadTokenizer("/nonexistent"), UserError, "there is no tokenizer.json");
});

Deno.test("checkTokenizerFits() refuses a tokenizer with more ids than the model has rows", () => {
  const tokenizer = loadTokenizer(bytelevel);
  checkTokenizerFits(tokenizer, tokenizer.vocabSize, "here");
  const error = assertThrows(() => checkTokenizerFits(tokenizer, tokenizer.vocabSize - 1, "here"), UserError);
  assert(/largest id is 403 \("<tool>"\).*vocab_size 403/.test(error.message), error.message);
});
