import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { UserError } from "../../lib/errors.ts";
import { DTYPE_BITS, toFloat32 } from "../../lib/tensor/dtypes.ts";
import { type Dtype, openSafetensors, type TensorData, writeSafetensors } from "../../lib/tensor/safetensors.ts";

const library = new URL("../fixtures/library.safetensors", import.meta.url).pathname;

function inFolder(use: (dir: string) => void): void {
  const dir = Deno.makeTempDirSync();
  try {
    use(dir);
  } finally {
    Deno.removeSync(dir, { recursive: true });
  }
}

/** A file of any header and any data. */
function rawFile(path: string, header: string | Uint8Array, data: Uint8Array, headerLength?: bigint): void {
  const json = typeof header === "string" ? new TextEncoder().encode(header) : header;
  const bytes = new Uint8Array(8 + json.length + data.length);
  new DataView(bytes.buffer).setBigUint64(0, headerLength ?? BigInt(json.length), true);
  bytes.set(json, 8);
  bytes.set(data, 8 + json.length);
  Deno.writeFileSync(path, bytes);
}

function readAll(path: string): { tensors: TensorData[]; metadata: Record<string, string> } {
  using file = openSafetensors(path);
  const tensors = [...file.tensors.values()].map(({ name, dtype, shape, bytes }) => {
    const data = new Uint8Array(bytes);
    file.read(name, data);
    return { name, dtype, shape, data };
  });
  return { tensors, metadata: { ...file.metadata } };
}

Deno.test("openSafetensors() reads a file of the safetensors library, all element types", () => {
  using file = openSafetensors(library);
  assertEquals(file.metadata, { format: "pt" });
  assertEquals(file.tensors.size, 22);
  const shapes = Object.fromEntries([...file.tensors.values()].map((t) => [t.name, `${t.dtype} [${t.shape}]`]));
  assertEquals(shapes.scalar, "F32 []");
  assertEquals(shapes.empty, "F32 [0,4]");
  assertEquals(shapes.t15, "U64 [2,3]");
  const numbers = (name: string) => {
    const { bytes, dtype } = file.tensors.get(name)!;
    const data = new Uint8Array(bytes);
    file.read(name, data);
    return [...toFloat32(dtype, data)];
  };
  assertEquals(numbers("scalar"), [1.5]);
  assertEquals(numbers("a.b"), [1, -2, 65504, 2 ** -24, Infinity]);
  assertEquals(numbers('a b"\\\né'), [1, -3.5, 2 ** 100]);
});

Deno.test("writeSafetensors() writes the same bytes as the safetensors library", () => {
  inFolder((dir) => {
    const { tensors, metadata } = readAll(library);
    writeSafetensors(`${dir}/copy.safetensors`, tensors.reverse(), metadata);
    assertEquals(Deno.readFileSync(`${dir}/copy.safetensors`), Deno.readFileSync(library));
    assertEquals([...Deno.readDirSync(dir)].length, 1, "no temporary file is left");
  });
});

Deno.test("openSafetensors() reads back whatever writeSafetensors() writes", () => {
  const tensor = fc.record({
    name: fc.string({ unit: "grapheme", maxLength: 12 }).filter((name) => name !== "__metadata__"),
    dtype: fc.constantFrom(...(Object.keys(DTYPE_BITS) as Dtype[]).filter((dtype) => DTYPE_BITS[dtype] >= 8)),
    shape: fc.array(fc.nat(4), { maxLength: 3 }),
    seed: fc.nat(255),
  }).map(({ name, dtype, shape, seed }): TensorData => {
    const bytes = shape.reduce((a, b) => a * b, DTYPE_BITS[dtype] / 8);
    return { name, dtype, shape, data: Uint8Array.from({ length: bytes }, (_, i) => i * 7 + seed) };
  });
  const tensors = fc.uniqueArray(tensor, { selector: ({ name }) => name, maxLength: 6 });
  const metadata = fc.dictionary(fc.string({ unit: "grapheme", maxLength: 5 }), fc.string({ unit: "grapheme", maxLength: 9 }));
  inFolder((dir) => {
    fc.assert(
      fc.property(tensors, metadata, (written, meta) => {
        writeSafetensors(`${dir}/a`, written, meta);
        const read = readAll(`${dir}/a`);
        const byName = (list: TensorData[]) => new Map(list.map((each) => [each.name, each]));
        assertEquals(byName(read.tensors), byName(written));
        assertEquals(read.metadata, { ...meta });
      }),
      { seed: 3, numRuns: 200 },
    );
  });
});

Deno.test("read() fills any range of a tensor and refuses what lies outside it", () => {
  using file = openSafetensors(library);
  const whole = new Uint8Array(48);
  file.read("t15", whole);
  const part = new Uint8Array(5);
  file.read("t15", part, 43);
  assertEquals(part, whole.slice(43));
  assertThrows(() => file.read("t15", part, 44), RangeError, "44..49");
  assertThrows(() => file.read("t15", part, -1), RangeError);
  assertThrows(() => file.read("nothing", part), UserError, "no tensor of that name");
});

Deno.test("read() notices that the file has become shorter", () => {
  inFolder((dir) => {
    Deno.copyFileSync(library, `${dir}/a`);
    using file = openSafetensors(`${dir}/a`);
    Deno.truncateSync(`${dir}/a`, Deno.statSync(library).size - 1);
    const last = [...file.tensors.values()].at(-1)!;
    assertThrows(() => file.read(last.name, new Uint8Array(last.bytes)), UserError, "has become shorter");
  });
});

const entry = (dtype: string, shape: string, offsets: string) => `{"dtype":${dtype},"shape":${shape},"data_offsets":${offsets}}`;
const good = entry('"F32"', "[2]", "[0,8]");

Deno.test("openSafetensors() allows what the format allows", () => {
  const headers = [
    "{}",
    `{"a":${good}}      `,
    `{ "a" : ${good} , "__metadata__" : {} }\n`,
    `{"b":${entry('"U8"', "[0]", "[8,8]")},"a":${good},"c":${entry('"U8"', "[3,0]", "[0,0]")}}`,
    `{"a":{"data_offsets":[0,8],"extra":[1.5,null],"shape":[2],"dtype":"F32"}}`,
    `{"a":${entry('"F4"', "[4,4]", "[0,8]")}}`,
    `{"":${entry('"U8"', "[8]", "[0,8]")},"__metadata__":{"k":"v"}}`,
  ];
  inFolder((dir) => {
    for (const header of headers) {
      rawFile(`${dir}/a`, header, new Uint8Array(header === "{}" ? 0 : 8));
      using file = openSafetensors(`${dir}/a`);
      assert(file.tensors.size <= 3, header);
    }
  });
});

Deno.test("openSafetensors() refuses each broken rule with file, tensor, value and advice", () => {
  const wrong: [string | Uint8Array, string][] = [
    [`{"a":${good},"a":${good}}`, 'the key "a" appears twice'],
    [` {"a":${good}}`, 'starts with byte 0x20 instead of "{"'],
    ["[]", "starts with byte 0x5b"],
    [`{"a":${good}`, "expected ',' or '}', found the end"],
    [`{"a":${good}}}`, 'unexpected "}"'],
    [Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x7d), "not valid UTF-8"],
    [`{"__metadata__":[]}`, "__metadata__ is a list instead of an object of strings"],
    [`{"__metadata__":{"k":1}}`, '__metadata__ has 1 under "k"'],
    [`{"a":3}`, 'tensor "a" is 3 instead of an object'],
    [`{"a":${entry('"F31"', "[2]", "[0,8]")}}`, 'tensor "a" has the dtype "F31"'],
    [`{"a":{"shape":[2],"data_offsets":[0,8]}}`, 'tensor "a" has the dtype missing'],
    [`{"a":${entry('"F32"', "2", "[0,8]")}}`, 'tensor "a", shape is 2 instead of a list'],
    [`{"a":${entry('"F32"', "[-2]", "[0,8]")}}`, "shape has -2 instead of an integer"],
    [`{"a":${entry('"F32"', "[2.0]", "[0,8]")}}`, "shape has 2.0 instead of an integer"],
    [`{"a":${entry('"F32"', '["2"]', "[0,8]")}}`, 'shape has "2" instead of an integer'],
    [`{"a":${entry('"F32"', "[4503599627370496,4503599627370496,0]", "[0,8]")}}`, "is larger than 2^53 bits"],
    [`{"a":${entry('"F32"', "[18446744073709551616]", "[0,8]")}}`, "shape has 18446744073709551616"],
    [`{"a":${entry('"F32"', "[2]", "[8]")}}`, "has 1 data_offsets"],
    [`{"a":${entry('"F32"', "[2]", "[0,8,8]")}}`, "has 3 data_offsets"],
    [`{"a":${entry('"F32"', "[2]", "[8,0]")}}`, "end before they begin"],
    [`{"a":${entry('"F32"', "[2]", "[0,9007199254740993]")}}`, "data_offsets has 9007199254740993"],
    [`{"a":${entry('"F32"', "[3]", "[0,8]")}}`, 'tensor "a" of F32 [3] needs 12 bytes, but its data_offsets [0, 8] hold 8'],
    [`{"a":${entry('"F4"', "[3]", "[0,2]")}}`, "12 bits, which fill no whole number of bytes"],
    [`{"a":${entry('"F32"', "[1]", "[4,8]")}}`, 'tensor "a" at offset 4 leaves a hole of 4 bytes after the header'],
    [`{"a":${good},"b":${entry('"U8"', "[2]", "[6,8]")}}`, 'tensor "b" at offset 6 overlaps by 2 bytes after tensor "a"'],
    [`{"a":${entry('"F32"', "[1]", "[0,4]")}}`, "4 bytes follow the last tensor"],
    [`{"a":${entry('"F32"', "[4]", "[0,16]")}}`, "(truncated)"],
    ["{}", "8 bytes follow the last tensor"],
  ];
  inFolder((dir) => {
    const path = `${dir}/a.safetensors`;
    for (const [header, message] of wrong) {
      rawFile(path, header, new Uint8Array(8));
      const error = assertThrows(() => openSafetensors(path), UserError, message) as UserError;
      assert(error.message.startsWith(`Cannot read ${path}: `) && error.message.includes("download or write it again"));
      assert(!error.message.includes("\n"));
      assertEquals(error.exitCode, 2);
    }
  });
});

Deno.test("openSafetensors() refuses wrong header lengths before it makes room for the header", () => {
  inFolder((dir) => {
    const path = `${dir}/a`;
    const lengths: [bigint, string][] = [
      [0n, "too short"],
      [1n, "too short"],
      [11n, "but only 10 follow"],
      [100_000_001n, "more than the limit of 100000000"],
      [2n ** 63n, "9223372036854775808 bytes, more than the limit"],
      [2n ** 64n - 1n, "18446744073709551615 bytes"],
    ];
    for (const [length, message] of lengths) {
      rawFile(path, "{}", new Uint8Array(8), length);
      assertThrows(() => openSafetensors(path), UserError, message);
    }
    Deno.writeFileSync(path, new Uint8Array(7));
    assertThrows(() => openSafetensors(path), UserError, "it has 7 bytes");
    Deno.writeFileSync(path, new Uint8Array(0));
    assertThrows(() => openSafetensors(path), UserError, "it has 0 bytes");
  });
});

Deno.test("openSafetensors() explains a missing file, a folder and a named pipe, which nobody writes into", () => {
  assertThrows(() => openSafetensors("/nonexistent/a"), UserError, "there is no such file");
  assertThrows(() => openSafetensors("/"), UserError, "it is not a regular file");
  inFolder((dir) => {
    const pipe = `${dir}/model.safetensors`;
    assert(new Deno.Command("mkfifo", { args: [pipe] }).outputSync().success);
    assertThrows(() => openSafetensors(pipe), UserError, "it is not a regular file");
  });
});

Deno.test("writeSafetensors() refuses sizes that do not fit and names that are taken, and leaves no file", () => {
  inFolder((dir) => {
    const a: TensorData = { name: "a", dtype: "F32", shape: [2], data: new Uint8Array(8) };
    assertThrows(() => writeSafetensors(`${dir}/x`, [{ ...a, data: new Uint8Array(7) }]), RangeError, "needs 8 bytes, not 7");
    assertThrows(() => writeSafetensors(`${dir}/x`, [a, a]), RangeError, "the name is taken");
    assertThrows(() => writeSafetensors(`${dir}/x`, [{ ...a, name: "__metadata__" }]), RangeError, "the name is taken");
    assertThrows(() => writeSafetensors(`${dir}/none/x`, [a]), UserError, "Cannot write");
    assertEquals([...Deno.readDirSync(dir)], []);
  });
});
