import { assert, assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../../lib/errors.ts";
import { openCheckpoint } from "../../lib/tensor/checkpoint.ts";
import { writeSafetensors } from "../../lib/tensor/safetensors.ts";

function inFolder(use: (dir: string) => void): void {
  const dir = Deno.makeTempDirSync();
  try {
    use(dir);
  } finally {
    Deno.removeSync(dir, { recursive: true });
  }
}

function f32(name: string, numbers: number[]) {
  return { name, dtype: "F32" as const, shape: [numbers.length], data: new Uint8Array(Float32Array.from(numbers).buffer) };
}

/** Two shards and their index. */
function writeShards(dir: string, index: unknown = undefined): void {
  writeSafetensors(`${dir}/model-00001-of-00002.safetensors`, [f32("a", [1, 2]), f32("b", [3])]);
  writeSafetensors(`${dir}/model-00002-of-00002.safetensors`, [f32("c", [4, 5, 6])]);
  const [one, two] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
  const whole = { metadata: { total_size: 24 }, weight_map: { a: one, b: one, c: two } };
  Deno.writeTextFileSync(
    `${dir}/model.safetensors.index.json`,
    typeof index === "string" ? index : JSON.stringify(index ?? whole),
  );
}

Deno.test("openCheckpoint() finds every tensor of a sharded model in its shard", () => {
  inFolder((dir) => {
    writeShards(dir);
    using weights = openCheckpoint(dir);
    assertEquals([...weights.tensors.keys()], ["a", "b", "c"]);
    assertEquals([...weights.readFloat32("a")], [1, 2]);
    assertEquals([...weights.readFloat32("c")], [4, 5, 6]);
    assertEquals(weights.tensors.get("c")!.file, `${dir}/model-00002-of-00002.safetensors`);
    const part = new Uint8Array(4);
    weights.read("c", part, 8);
    assertEquals(new Float32Array(part.buffer)[0], 6);
    assertEquals(weights.warnings, []);
  });
});

Deno.test("openCheckpoint() prefers model.safetensors, as transformers does", () => {
  inFolder((dir) => {
    writeShards(dir);
    writeSafetensors(`${dir}/model.safetensors`, [f32("only", [7])]);
    using weights = openCheckpoint(dir);
    assertEquals([...weights.tensors.keys()], ["only"]);
  });
});

Deno.test("openCheckpoint() warns about a total_size that is not the sum of the tensors", () => {
  inFolder((dir) => {
    writeShards(dir, { metadata: { total_size: 25 }, weight_map: { c: "model-00002-of-00002.safetensors" } });
    using weights = openCheckpoint(dir);
    assertEquals(weights.warnings.length, 1);
    assert(weights.warnings[0]!.endsWith("announces total_size 25, but its tensors have 12 bytes"));
  });
});

Deno.test("openCheckpoint() explains what is missing or wrong in a sharded model", () => {
  const shard = "model-00001-of-00002.safetensors";
  const cases: [unknown, string][] = [
    [
      { weight_map: { a: "model-00009.safetensors" } },
      "the shard model-00009.safetensors, which model.safetensors.index.json names, is missing",
    ],
    [{ weight_map: { a: shard, z: shard } }, 'Cannot load the tensor "z"'],
    [{ weight_map: { a: "../outside.safetensors" } }, 'in "../outside.safetensors", outside its folder'],
    [{ weight_map: { a: "x/../../outside.safetensors" } }, "outside its folder"],
    [{ weight_map: { a: "/etc/passwd" } }, "outside its folder"],
    [{ weight_map: { a: "" } }, "outside its folder"],
    [{ weight_map: { a: 5 } }, 'weight_map gives 5 for "a" instead of a file name'],
    [{ weight_map: {} }, "weight_map is empty"],
    [{ weight_map: [] }, "it has no object weight_map"],
    [{ weight_map: { a: shard }, metadata: { total_size: "big" } }, 'metadata.total_size is "big"'],
    [{ weight_map: { a: shard }, metadata: 1 }, "metadata is not an object"],
    ["[]", "it is not a JSON object"],
    ["{", "JSON"],
  ];
  for (const [index, message] of cases) {
    inFolder((dir) => {
      writeShards(dir, index);
      const error = assertThrows(() => openCheckpoint(dir), UserError, message) as UserError;
      assertEquals(error.exitCode, 2);
      assert(!error.message.includes("\n"));
    });
  }
});

Deno.test("openCheckpoint() refuses a damaged shard by its name", () => {
  inFolder((dir) => {
    writeShards(dir);
    Deno.truncateSync(`${dir}/model-00002-of-00002.safetensors`, 90);
    assertThrows(() => openCheckpoint(dir), UserError, "model-00002-of-00002.safetensors");
  });
});

Deno.test("openCheckpoint() says what to do about a folder without safetensors", () => {
  inFolder((dir) => {
    assertThrows(() => openCheckpoint(dir), UserError, "neither model.safetensors nor");
    Deno.writeTextFileSync(`${dir}/pytorch_model.bin`, "");
    assertThrows(() => openCheckpoint(dir), UserError, "safe_serialization=True");
    assertThrows(() => openCheckpoint(`${dir}/pytorch_model.bin`), UserError, "neither");
  });
});

Deno.test("expect() checks name, shape and element type of a tensor", () => {
  inFolder((dir) => {
    const integers = { name: "n", dtype: "I64" as const, shape: [1], data: new Uint8Array(8) };
    writeSafetensors(`${dir}/model.safetensors`, [f32("a", [1, 2]), integers]);
    using weights = openCheckpoint(dir);
    assertEquals(weights.expect("a", [2]).dtype, "F32");
    assertThrows(() => weights.expect("a", [2, 1]), UserError, "is [2], but config.json asks for [2,1]");
    assertThrows(() => weights.expect("n", [1]), UserError, "stores it as I64");
    assertThrows(() => weights.expect("zzz", [1]), UserError, "none of the 2 tensors");
  });
});

Deno.test("read() moves tensors larger than one piece", () => {
  inFolder((dir) => {
    const data = new Uint8Array(17 << 20).map((_, i) => i * 31 + (i >> 13));
    writeSafetensors(`${dir}/model.safetensors`, [{ name: "big", dtype: "U8", shape: [data.length], data }]);
    using weights = openCheckpoint(dir);
    const read = new Uint8Array(data.length - 5);
    weights.read("big", read, 5);
    assertEquals(read.findIndex((byte, i) => byte !== data[i + 5]), -1);
  });
});
