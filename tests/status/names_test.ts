import { assert, assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../../lib/errors.ts";
import { formatAddress, isLoopback, parseAddress } from "../../lib/status/address.ts";
import { redactSecrets, shortenPaths } from "../../lib/status/redact.ts";
import { readToken, tokenCheck } from "../../lib/status/token.ts";

Deno.test("parseAddress() reads host and port, and a port alone stays on this machine", () => {
  const cases: [string, string, number][] = [
    ["8080", "127.0.0.1", 8080],
    ["localhost:1", "127.0.0.1", 1],
    ["0.0.0.0:65535", "0.0.0.0", 65535],
    ["[::]:0", "::", 0],
    ["gpu-7.Example:80", "gpu-7.example", 80],
  ];
  for (const [text, host, port] of cases) assertEquals(parseAddress(text), { host, port });
  assertEquals(formatAddress({ host: "::1", port: 5 }), "[::1]:5");
});

Deno.test("parseAddress() refuses what is none in one line with an example", () => {
  for (
    const text of [
      "",
      "host",
      "host:",
      ":8080",
      "127.0.0.1:65536",
      "::1:80",
      "[zz]:1",
      "http://a:1",
      "a b:1",
      "host:1:2",
      "1.5",
      "-1",
    ]
  ) {
    const error = assertThrows(() => parseAddress(text), UserError, `'${text}' is no address`);
    assert(!error.message.includes("\n"));
    assertEquals(error.exitCode, 2);
  }
});

Deno.test("isLoopback() holds for this machine only", () => {
  for (const host of ["127.0.0.1", "127.1.2.3", "::1", "localhost"]) assert(isLoopback(host), host);
  for (const host of ["0.0.0.0", "::", "10.0.0.1", "127.0.0.1.example", "localhost.example", "::ffff:127.0.0.1"]) {
    assert(!isLoopback(host), host);
  }
});

Deno.test("readToken() takes the file before the environment, and refuses what could be guessed", () => {
  const folder = Deno.makeTempDirSync();
  try {
    const file = `${folder}/token`;
    Deno.writeTextFileSync(file, "  0123456789abcdef\n");
    assertEquals(readToken(file, "from-the-environment"), "0123456789abcdef");
    assertEquals(readToken(null, "from-the-environment"), "from-the-environment");
    assertEquals(readToken(null, ""), null);
    const short = assertThrows(() => readToken(null, "0123456789abcde"), UserError, "it has 15 characters, at least 16");
    assert(!short.message.includes("0123456789abcde"), "a refusal does not tell the token");
    assertThrows(() => readToken(`${folder}/none`, "x"), UserError, "there is no such file");
    assertThrows(() => readToken(null, "0123456789 abcdef"), UserError, "spaces");
    assertThrows(() => readToken(null, "0123456789äabcdef"), UserError, "beyond ASCII");
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});

Deno.test("tokenCheck() takes passwords with colons", () => {
  const check = tokenCheck("with:colons:in:between");
  assert(check(`Basic ${btoa("me:with:colons:in:between")}`));
  assert(!check(`Basic ${btoa("with:colons:in:between")}`));
});

Deno.test("secrets are taken out of texts by their shape, and what is none stays", () => {
  const secrets: [string, string][] = [
    ["key hf_abcdefghijklmnopqrst end", "key [redacted] end"],
    ["sk-proj-abcdefghijkl0123", "[redacted]"],
    ["ghp_0123456789abcdefghij", "[redacted]"],
    ["AKIAIOSFODNN7EXAMPLE", "[redacted]"],
    ["Authorization: Bearer abc.def-ghi", "Authorization: Bearer [redacted]"],
    ["https://user:pw@host/p", "https://[redacted]@host/p"],
    ["?api_key=12345&x=1", "?api_key=[redacted]&x=1"],
    ['{"password": "hunter22"}', '{"password": "[redacted]"}'],
    ["my own words", "[redacted] words"],
  ];
  for (const [text, expected] of secrets) assertEquals(redactSecrets(text, ["my own"]), expected);
  for (const text of ["12 tokens a second", "sk-learn", "a basic question about bearer bonds", "see https://host/a@b"]) {
    assertEquals(redactSecrets(text, []), text);
  }
});

Deno.test("of paths only the last part is told", () => {
  assertEquals(shortenPaths("Cannot read /a/b c/d.json"), "Cannot read b c/d.json");
  assertEquals(shortenPaths("in ~/runs/x and 'C:\\Users\\ada\\runs\\y'"), "in x and 'y'");
  assertEquals(shortenPaths("runs/x, 1/2 and and/or stay"), "runs/x, 1/2 and and/or stay");
});
