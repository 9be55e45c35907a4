/**
 * Part of `make check`: every exported function, class, type and constant of lib/ and ffi/ says what it is.
 *
 * `deno doc --lint` asks the same of each property of each interface, where a name such as `steps: number` is enough here.
 */

function* modules(folder: string): Generator<string> {
  for (const { name, isDirectory } of Deno.readDirSync(folder)) {
    if (isDirectory) yield* modules(`${folder}/${name}`);
    else if (name.endsWith(".ts")) yield `${folder}/${name}`;
  }
}

interface Declaration {
  kind: string;
  declarationKind: string;
  jsDoc?: { doc?: string };
  location: { line: number; col: number };
}

const files = [...modules("lib"), ...modules("ffi")].sort();
const { stdout, stderr, success } = await new Deno.Command(Deno.execPath(), { args: ["doc", "--json", ...files] }).output();
if (!success) {
  console.error(new TextDecoder().decode(stderr));
  Deno.exit(1);
}
const { nodes } = JSON.parse(new TextDecoder().decode(stdout)) as {
  nodes: Record<string, { symbols?: { name: string; declarations: Declaration[] }[] }>;
};
const root = new URL("../", import.meta.url).href;
let undocumented = 0;
for (const [url, { symbols = [] }] of Object.entries(nodes)) {
  for (const { name, declarations } of symbols) {
    const own = declarations.filter(({ declarationKind, kind }) => declarationKind === "export" && kind !== "reference");
    if (own.length === 0 || own.some(({ jsDoc }) => jsDoc !== undefined)) continue;
    undocumented++;
    const { line, col } = own[0]!.location;
    console.error(`${url.replace(root, "")}:${line + 1}:${col + 1}: '${name}' is exported and nothing says what it is`);
  }
}
if (undocumented > 0) Deno.exit(1);
console.log(`${files.length} modules: every exported symbol is documented`);
