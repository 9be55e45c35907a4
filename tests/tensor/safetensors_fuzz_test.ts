import { assert, assertEquals } from "@std/assert";
import { Rng } from "../../lib/data/random.ts";
import { UserError } from "../../lib/errors.ts";
import { openSafetensors, writeSafetensors } from "../../lib/tensor/safetensors.ts";

const MUTANTS = 12_000;
const HUGE = [
  "9007199254740991",
  "9007199254740992",
  "18446744073709551615",
  "18446744073709551616",
  "1e308",
  "-1",
  "1.5",
  "4294967296",
];

interface Parts {
  header: Uint8Array;
  data: Uint8Array;
}

/** One way to damage a file; draws what to damage from `rng`. */
type Mutation = (parts: Parts, rng: Rng) => Uint8Array;

const encoder = new TextEncoder();
const decoder = new TextDecoder();

function assemble({ header, data }: Parts, length: bigint = BigInt(header.length)): Uint8Array {
  const bytes = new Uint8Array(8 + header.length + data.length);
  new DataView(bytes.buffer).setBigUint64(0, length, true);
  bytes.set(header, 8);
  bytes.set(data, 8 + header.length);
  return bytes;
}

function flipBits(bytes: Uint8Array, rng: Rng, within: number): Uint8Array {
  const result = bytes.slice();
  for (let flips = 1 + rng.below(3); flips > 0; flips--) result[rng.below(within)]! ^= 1 << rng.below(8);
  return result;
}

/** Edits the header as text and keeps its length right, so that the damage reaches the JSON. */
function editText(edit: (text: string, rng: Rng) => string): Mutation {
  return ({ header, data }, rng) => assemble({ header: encoder.encode(edit(decoder.decode(header), rng)), data });
}

/** Replaces one match of `pattern`, drawn at random. */
function replaceOne(text: string, pattern: RegExp, rng: Rng, by: (match: string) => string): string {
  const matches = [...text.matchAll(pattern)];
  if (matches.length === 0) return text;
  const { 0: match, index } = matches[rng.below(matches.length)]!;
  return text.slice(0, index) + by(match) + text.slice(index + match.length);
}

const pick = <T>(rng: Rng, list: readonly T[]): T => list[rng.below(list.length)]!;

const mutations: Record<string, Mutation> = {
  "flip bits anywhere": (parts, rng) => flipBits(assemble(parts), rng, 8 + parts.header.length + parts.data.length),
  "flip bits in the header": (parts, rng) => flipBits(assemble(parts), rng, 8 + parts.header.length),
  "flip bits of the length": (parts, rng) => flipBits(assemble(parts), rng, 8),
  "truncate": (parts, rng) => assemble(parts).slice(0, rng.below(8 + parts.header.length + parts.data.length)),
  "append": (parts, rng) => new Uint8Array([...assemble(parts), ...new Uint8Array(1 + rng.below(9))]),
  "wrong length": (parts, rng) => assemble(parts, BigInt(rng.below(2 * parts.header.length))),
  "huge length": (parts, rng) => assemble(parts, BigInt(rng.nextU32()) << BigInt(rng.below(33))),
  "edit a number": editText((text, rng) => replaceOne(text, /\d+/g, rng, (n) => String(Number(n) + rng.below(9) - 4))),
  "huge number": editText((text, rng) => replaceOne(text, /\d+/g, rng, () => pick(rng, HUGE))),
  "huge offsets": editText((text, rng) =>
    replaceOne(text, /"data_offsets":\[\d+,\d+\]/g, rng, () => `"data_offsets":[${pick(rng, HUGE)},${pick(rng, HUGE)}]`)
  ),
  "duplicate a tensor": editText((text, rng) => replaceOne(text, /"\w+":\{[^{}]*\},/g, rng, (entry) => entry + entry)),
  "duplicate a key": editText((text, rng) => replaceOne(text, /"\w+":(?:\[[^\]]*\]|"\w+"),/g, rng, (pair) => pair + pair)),
  "change the case or type of a word": editText((text, rng) =>
    replaceOne(text, /"\w+"/g, rng, (word) => pick(rng, [word.toLowerCase(), "null", "[]", '"F16"', '"__metadata__"', "{}"]))
  ),
  "remove a character": editText((text, rng) => replaceOne(text, /[^]/g, rng, () => "")),
  "insert a character": editText((text, rng) =>
    replaceOne(text, /[^]/g, rng, (c) => c + pick(rng, [...'{}[]",:0-.\\\u0000\ud800 é']))
  ),
  "nest deeply": editText((text, rng) => replaceOne(text, /\[/g, rng, () => "[".repeat(10 ** (1 + rng.below(5))))),
  "swap halves": editText((text, rng) => {
    const at = rng.below(text.length);
    return text.slice(at) + text.slice(0, at);
  }),
};

Deno.test(`${MUTANTS} mutated files either open, with every tensor readable, or throw a UserError of one line`, () => {
  const dir = Deno.makeTempDirSync();
  try {
    const path = `${dir}/whole.safetensors`;
    const tensors = ["F32", "BF16", "I64", "U8"].map((dtype, i) => ({
      name: `layer_${i}`,
      dtype: dtype as "F32",
      shape: i === 3 ? [0, 7] : [2, 3],
      data: new Uint8Array(i === 3 ? 0 : 6 * [4, 2, 8][i]!),
    }));
    writeSafetensors(path, tensors, { format: "pt" });
    const whole = Deno.readFileSync(path);
    const end = 8 + Number(new DataView(whole.buffer).getBigUint64(0, true));
    const parts = { header: whole.slice(8, end), data: whole.slice(end) };

    const rng = new Rng(20_240_601, "mutations");
    const names = Object.keys(mutations);
    const opened: Record<string, number> = {};
    const refused: Record<string, number> = {};
    for (let i = 0; i < MUTANTS; i++) {
      const name = names[i % names.length]!;
      // A new name each time: ext4 flushes a file to the disk when it is cut to 0 and written again, which took 1 ms.
      const mutant = `${dir}/${i}`;
      Deno.writeFileSync(mutant, mutations[name]!(parts, rng));
      try {
        using file = openSafetensors(mutant);
        for (const [tensor, { bytes }] of file.tensors) file.read(tensor, new Uint8Array(bytes));
        opened[name] = (opened[name] ?? 0) + 1;
      } catch (error) {
        assert(error instanceof UserError, `mutant ${i} (${name}): ${error instanceof Error ? error.stack : error}`);
        assert(!error.message.includes("\n") && error.message.length < 600, `mutant ${i} (${name}): ${error.message}`);
        refused[name] = (refused[name] ?? 0) + 1;
      }
      Deno.removeSync(mutant);
    }
    // Both outcomes must occur, or the test would prove nothing: flips in the data are harmless, cuts never are.
    assert((opened["flip bits anywhere"] ?? 0) > 0, "no harmless flip was drawn");
    assertEquals(opened["truncate"], undefined);
    assertEquals(opened["duplicate a tensor"], undefined);
    assertEquals(Object.keys(refused).sort(), names.sort());
  } finally {
    Deno.removeSync(dir, { recursive: true });
  }
});
