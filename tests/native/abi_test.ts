import { assert, assertEquals } from "@std/assert";
import { ABI_VERSION, symbols } from "../../ffi/symbols.ts";
import { libraryCandidates } from "../../ffi/native.ts";

/** A function of the contract: name, result and parameters, both as C spells them. */
interface Prototype {
  name: string;
  result: string;
  parameters: string[];
}

const header = Deno.readTextFileSync(new URL("../../ffi/metalora.h", import.meta.url)).replace(/\/\*[^]*?\*\//g, "");

/** The functions that the header declares. */
const declared: Prototype[] = [...header.matchAll(/^(\w+) (ml_\w+)\(([^)]*)\);/gm)].map(([, result, name, parameters]) => ({
  name: name!,
  result: result!,
  parameters: parameters!.trim() === "void"
    ? []
    : parameters!.split(",").map((parameter) => parameter.trim().replace(/\s+/g, " ")),
}));

/** The FFI type of a C parameter. */
function ffiType(parameter: string): string {
  if (/^(ml_ctx\*|ml_ptr) /.test(parameter)) return "pointer";
  if (parameter.includes("*")) return "buffer";
  const types: Record<string, string> = {
    int32_t: "i32",
    uint32_t: "u32",
    uint64_t: "u64",
    float: "f32",
    double: "f64",
    void: "void",
  };
  const type = types[parameter.split(" ")[0]!];
  assert(type !== undefined, `no FFI type for '${parameter}'`);
  return type;
}

/** Sections of an ELF file. */
function sectionsOf(bytes: Uint8Array<ArrayBuffer>) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const at64 = (offset: number) => Number(view.getBigUint64(offset, true));
  const first = at64(0x28), size = view.getUint16(0x3a, true), count = view.getUint16(0x3c, true);
  const sections = Array.from({ length: count }, (_, i) => {
    const base = first + i * size;
    const type = view.getUint32(base + 4, true), link = view.getUint32(base + 40, true);
    return { type, offset: at64(base + 24), bytes: at64(base + 32), link };
  });
  return { view, at64, sections };
}

/** Dynamic symbols that an ELF file defines, read from its .dynsym. */
function exportedSymbols(path: string): string[] {
  const bytes = Deno.readFileSync(path);
  const { view, sections } = sectionsOf(bytes);
  const table = sections.find(({ type }) => type === 11)!; // SHT_DYNSYM
  const strings = sections[table.link]!;
  const names: string[] = [];
  for (let offset = table.offset; offset < table.offset + table.bytes; offset += 24) {
    const defined = view.getUint16(offset + 6, true) !== 0;
    if (!defined) continue;
    const start = strings.offset + view.getUint32(offset, true);
    names.push(new TextDecoder().decode(bytes.subarray(start, bytes.indexOf(0, start))));
  }
  return names;
}

/** Whether an ELF file asks to stay in the process when it is closed. */
function staysLoaded(path: string): boolean {
  const { at64, sections } = sectionsOf(Deno.readFileSync(path));
  const dynamic = sections.find(({ type }) => type === 6)!; // SHT_DYNAMIC
  for (let offset = dynamic.offset; offset < dynamic.offset + dynamic.bytes; offset += 16) {
    if (at64(offset) === 0x6ffffffb) return (at64(offset + 8) & 8) !== 0; // DT_FLAGS_1, DF_1_NODELETE
  }
  return false;
}

Deno.test("the symbol table has every function of metalora.h with its types, and no other", () => {
  assertEquals(Object.keys(symbols), declared.map(({ name }) => name));
  for (const { name, result, parameters } of declared) {
    const symbol = symbols[name as keyof typeof symbols];
    assertEquals([...symbol.parameters] as string[], parameters.map(ffiType), name);
    assertEquals(symbol.result as string, ffiType(result), name);
  }
});

Deno.test("the prototype above each entry of the symbol table is the header's", () => {
  const table = Deno.readTextFileSync(new URL("../../ffi/symbols.ts", import.meta.url));
  for (const { name, result, parameters } of declared) {
    const comment = new RegExp(`((?:  //.*\\n)+)  ${name}: `).exec(table)?.[1] ?? "";
    const text = comment.split("\n").map((line) => line.replace(/^\s*\/\/\s*/, "")).join(" ").trim().replace(/\s+/g, " ");
    assertEquals(text, `${result} ${name}(${parameters.length === 0 ? "void" : parameters.join(", ")})`);
  }
});

Deno.test("the header and the symbol table have one ABI version", () => {
  assertEquals(Number(/#define ML_ABI_VERSION (\d+)/.exec(header)![1]), ABI_VERSION);
});

for (const backend of ["cpu", "cuda"] as const) {
  const path = libraryCandidates(backend).find((candidate) => {
    try {
      return Deno.statSync(candidate).isFile;
    } catch {
      return false;
    }
  });
  Deno.test({
    name: `the ${backend} library exports the functions of metalora.h, and nothing else`,
    ignore: path === undefined,
    fn() {
      assertEquals(exportedSymbols(path!).toSorted(), declared.map(({ name }) => name).toSorted());
    },
  });
  Deno.test({
    name: `the ${backend} library stays when a worker closes it: the program's end may be calling it in another thread`,
    ignore: path === undefined,
    fn() {
      assert(staysLoaded(path!), `${path} lacks -z nodelete`);
    },
  });
}
