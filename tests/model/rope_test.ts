import { assert, assertEquals } from "@std/assert";
import { type LlamaConfig, parseModelConfig } from "../../lib/model/config.ts";
import { inverseFrequencies, ropeTables } from "../../lib/model/rope.ts";

interface Case {
  name: string;
  config: unknown;
  length: number;
  rows: number[];
  inv_freq: number[];
  cos: number[][];
  sin: number[][];
}
const fixture: { transformers: string; cases: Case[] } = JSON.parse(
  Deno.readTextFileSync(new URL("../fixtures/rope.json", import.meta.url)),
);

for (const { name, config, length, rows, inv_freq, cos, sin } of fixture.cases) {
  Deno.test(`ropeTables() gives transformers' cos and sin: ${name}`, () => {
    const model = parseModelConfig("config.json", config) as LlamaConfig;
    const half = model.D / 2;
    const frequencies = inverseFrequencies(model, length);
    assertEquals(frequencies.length, inv_freq.length);
    // transformers takes the power in f32: 3 roundings of 6e-8 each.
    frequencies.forEach((f, j) => assert(Math.abs(f / inv_freq[j]! - 1) < 4e-7, `frequency ${j}: ${f}, ${inv_freq[j]}`));
    const tables = ropeTables(model, length);
    assertEquals([tables.cos.length, tables.sin.length], [length * half, length * half]);
    for (const [i, p] of rows.entries()) {
      for (let j = 0; j < half; j++) {
        const tolerance = 1e-6 + 4e-7 * p * inv_freq[j]!; // an error of the frequency grows with the position
        for (const [ours, theirs] of [[tables.cos, cos[i]!], [tables.sin, sin[i]!]] as const) {
          const [a, b] = [ours[p * half + j]!, theirs[j]!];
          assert(Math.abs(a - b) < tolerance, `position ${p}, pair ${j}: ${a}, ${b}`);
        }
      }
    }
  });
}

Deno.test("ropeTables() recomputes dynamic frequencies for longer sequences only", () => {
  const json = fixture.cases.find(({ name }) => name === "dynamic, longer")!.config;
  const model = parseModelConfig("config.json", json) as LlamaConfig;
  const [short, made, long] = [10, 128, 300].map((length) => ropeTables(model, 10, length).cos);
  assertEquals(short, made!);
  assert(long!.some((value, i) => value !== short![i]));
});
