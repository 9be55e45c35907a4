import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { compileProblem, HEAP, PERMISSIONS } from "../../bootstrap/dist.ts";
import { npmImports, Refusal, slim, walk, workerModules } from "../../bootstrap/dist_parts.ts";

const root = new URL("../../", import.meta.url).pathname;
const sources = ["main.ts", ...walk(root, "lib"), ...walk(root, "ffi")].filter((path) => /\.[jt]s$/.test(path));
const read = (path: string) => Deno.readTextFileSync(root + path);

Deno.test("workerModules() finds the program's workers, and refuses an address that it cannot read", () => {
  assertEquals(workerModules(sources, read).includes("lib/train/worker.ts"), true);
  const one = (text: string) => workerModules(["lib/a/b.ts"], () => text);
  assertEquals(one(`new Worker(new URL("../c/w.ts", import.meta.url), { type: "module" })`), ["lib/c/w.ts"]);
  assertEquals(one(`new Worker(\n  new URL(\n    "./w.ts",\n    import.meta.url,\n  ),\n)`), ["lib/a/w.ts"]);
  assertEquals(one(`const data = new URL("./data.json", import.meta.url);`), []);
  assertThrows(() => one(`new Worker(address)`), Refusal, "lib/a/b.ts starts a worker from an address");
});

Deno.test("npmImports() names an ES module for every npm package that the program imports", () => {
  const { imports, packages } = npmImports(root, sources.map(read));
  for (const name of ["yaml", "zod", "@huggingface/tokenizers"]) assertEquals(packages.has(name), true, name);
  assertEquals(imports.yaml, "./vendor/yaml/browser/index.js");
  for (const [name, path] of Object.entries(imports)) {
    const target = path.replace("./vendor/", `${root}node_modules/`);
    assertEquals(Deno.statSync(target).isFile, true, `${name}: ${path}`);
  }
  for (const name of ["fast-check", "playwright-core"]) assertEquals(packages.has(name), false, name);
});

Deno.test("slim() refuses a package that has changed", () => {
  const folder = Deno.makeTempDirSync();
  try {
    assertThrows(() => slim(folder), Refusal, "zod/v4/locales/index.js is not where it was");
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});

Deno.test("compileProblem() says what to do without network, with the address to fetch", () => {
  const url = "https://example.org/release/v9.9.9/denort-x86_64-unknown-linux-gnu.zip";
  const offline = compileProblem(`error: Setting up base binary.\n    1: error sending request for url (${url}): dns error`);
  assertStringIncludes(offline, `get ${url}, unpack it and run here: make dist DENORT_BIN=/path/to/denort`);
  assertStringIncludes(compileProblem("Could not find denort at '/x'"), "is no file that can be read");
  assertEquals(compileProblem("something else\n"), "deno compile failed: something else");
});

Deno.test("the binary has the permissions and the heap of the program run from source, and no others", () => {
  const { tasks } = JSON.parse(read("deno.json")) as { tasks: { metalora: { command: string } } };
  const fromSource = [...tasks.metalora.command.matchAll(/--allow-(\S+)/g)].map(([, name]) => name!);
  assertEquals([...PERMISSIONS].sort(), fromSource.sort());
  assertEquals(/--v8-flags=(\S+)/.exec(tasks.metalora.command)![1], HEAP);
});
