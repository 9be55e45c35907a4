import { assertEquals } from "@std/assert";
import { demoRows } from "../../lib/demo/generate.ts";
import { loadTokenizer } from "../../lib/tokenizer/tokenizer.ts";

const MODEL = `${import.meta.dirname}/../../demo/model`;

Deno.test("the demo's tokenizer gives the ids that transformers gives", () => {
  const tokenizer = loadTokenizer(MODEL);
  // AutoTokenizer.from_pretrained("demo/model") of transformers 5.18, less the <s> that its post-processor puts first.
  const expected: [string, number[]][] = [
    ["Sort up: 41928=", [262, 290, 28, 223, 22, 19, 27, 20, 26, 31]],
    ["Arrange: 41928=", [300, 28, 223, 22, 19, 27, 20, 26, 31]],
    ["Smallest: 12=", [302, 28, 223, 19, 20, 31]],
    ["Hello wörld", [42, 71, 78, 78, 81, 223, 89, 130, 117, 84, 78, 70]],
  ];
  for (const [text, ids] of expected) {
    assertEquals(Array.from(tokenizer.encode(text)), ids);
    assertEquals(tokenizer.decode(ids), text);
  }
  assertEquals([tokenizer.padId, tokenizer.bosId, tokenizer.eosId, tokenizer.addsBos], [0, 1, 2, true]);
});

Deno.test("the demo's rows fit its model: a token a digit, ids below the vocabulary, positions below the longest", () => {
  const tokenizer = loadTokenizer(MODEL);
  const config = JSON.parse(Deno.readTextFileSync(`${MODEL}/config.json`));
  const { train, validation, test } = demoRows(0);
  for (const { prompt, completion } of [...train, ...validation, ...test]) {
    const response = tokenizer.encode(completion);
    const ids = [...tokenizer.encode(prompt), ...response];
    assertEquals(response.length, completion.length);
    assertEquals(ids.every((id) => id < config.vocab_size), true);
    assertEquals(ids.length + 2 <= config.max_position_embeddings, true);
  }
});

Deno.test("the demo's model has 1 to 4 million parameters in at most 8 MB", () => {
  const path = `${MODEL}/model.safetensors`;
  const bytes = Deno.statSync(path).size;
  assertEquals(bytes <= 8e6, true, `${bytes} bytes`);
  using file = Deno.openSync(path);
  const length = new Uint8Array(8);
  file.readSync(length);
  const header = new Uint8Array(Number(new DataView(length.buffer).getBigUint64(0, true)));
  file.readSync(header);
  let parameters = 0;
  for (const [name, { shape }] of Object.entries<{ shape: number[] }>(JSON.parse(new TextDecoder().decode(header)))) {
    if (name !== "__metadata__") parameters += shape.reduce((product, size) => product * size, 1);
  }
  assertEquals(parameters, 1_222_272);
});
