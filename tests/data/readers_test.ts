import { assert, assertEquals, assertThrows } from "@std/assert";
import { createHash } from "node:crypto";
import { readRows, type Row, sha256OfFile } from "../../lib/data/readers.ts";
import { UserError } from "../../lib/errors.ts";
import { withFile } from "./fake_tokenizer.ts";

const rowsOf = (path: string): Row[] => [...readRows(path)];

Deno.test("readRows() reads JSONL with a byte order mark, CRLF, blank lines and no newline at the end", () => {
  withFile("a.jsonl", '\ufeff{"x":1}\r\n\r\n  \n{"x":"é\\n"}\n{"x":null}', (path) => {
    const rows = rowsOf(path);
    assertEquals(rows.map(({ fields }) => fields.x), [1, "é\n", null]);
    assertEquals(rows.map(({ index }) => index), [0, 3, 4]);
    assertEquals(rows.map(({ where }) => where), [`${path}:1`, `${path}:4`, `${path}:5`]);
  });
});

Deno.test("readRows() reads a JSON array, whatever its layout and name, with the line of each element", () => {
  const text = '\ufeff\n[ {"x": 1, "y": [{"z": "],{"}, "\\""]},{"x":2}\r\n, \n{\n"x":\n3} ]\n';
  for (const name of ["a.json", "a.jsonl"]) {
    withFile(name, text, (path) => {
      const rows = rowsOf(path);
      assertEquals(rows.map(({ fields }) => fields.x), [1, 2, 3]);
      assertEquals(rows.map(({ index }) => index), [0, 1, 2]);
      assertEquals(rows.map(({ where }) => where), [`${path}:2`, `${path}:2`, `${path}:4`]);
    });
  }
  withFile("a.json", "[]", (path) => assertEquals(rowsOf(path), []));
  withFile("a.json", '{"x":1}\n{"x":2}\n', (path) => assertEquals(rowsOf(path).length, 2));
});

Deno.test("readRows() puts lines together that are longer than what is read at once", () => {
  const long = "ä".repeat(700_000); // 1.4 MB, cut inside a character
  const text = [long, "short", long, ""].map((x) => JSON.stringify({ x })).join("\n") + "\n";
  withFile("a.jsonl", text, (path) => {
    assertEquals(rowsOf(path).map(({ fields }) => (fields.x as string).length), [700_000, 5, 700_000, 0]);
  });
});

Deno.test("readRows() stops reading where its caller stops, and closes the file", () => {
  withFile("a.jsonl", '{"x":1}\nbroken', (path) => {
    for (const row of readRows(path)) {
      assertEquals(row.fields.x, 1);
      break;
    }
  });
});

Deno.test("readRows() names file, line and column of what is wrong", () => {
  const cases: [string | Uint8Array, RegExp][] = [
    ['{"x":1}\n{"x":}\n', /:2:6: Cannot read the data: expected a value, found "}"\. A data file is JSONL/],
    ['{"x":1}\n{"x":1', /:2:7: .*found the end/],
    ['{"x":1}\n[1]\n', /:2: Cannot use the row: it is a list instead of an object/],
    ["7\n", /:1: Cannot use the row: it is a number instead of an object/],
    ['[\n{"x":1},\n{"x" 1}\n]', /:3:6: Cannot read the data: expected ':' after the key "x", found "1"/],
    ['[\n{"x":1},\n"text"\n]', /:3: Cannot use element 1 of the array: it is a string/],
    ["[\n\n[]]", /:3: Cannot use element 0 of the array: it is a list/],
    [Uint8Array.of(0x7b, 0x7d, 0x0a, 0x7b, 0xff, 0x7d), /:2: Cannot read the data: it is not valid UTF-8/],
  ];
  for (const [content, message] of cases) {
    withFile("bad.jsonl", content, (path) => {
      const error = assertThrows(() => rowsOf(path), UserError) as UserError;
      assert(error.message.startsWith(path) && message.test(error.message) && !error.message.includes("\n"), error.message);
      assertEquals(error.exitCode, 2);
    });
  }
});

Deno.test("readRows() explains a missing file and a folder", () => {
  assertThrows(() => rowsOf("/nonexistent.jsonl"), UserError, "Cannot read the data /nonexistent.jsonl: there is no such file");
  assertThrows(() => rowsOf("/"), UserError, "it is a folder");
});

Deno.test("sha256OfFile() hashes the whole file", () => {
  const bytes = new Uint8Array(2_500_000).map((_, i) => i * 7);
  withFile("a", bytes, (path) => assertEquals(sha256OfFile(path), createHash("sha256").update(bytes).digest("hex")));
});
