/** What goes into the binary, for dist.ts: worker modules, npm packages as plain ES modules, licences. */
import { dirname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";

export { dirname, join };

/** Path of a file: URL. */
export const fromFileUrl = (url: URL): string => fileURLToPath(url);

/** The binary cannot be made; the message says why and what to do. */
export class Refusal extends Error {
  override readonly name = "Refusal";
}

/** Files below `root/folder`, as paths from `root`, in a fixed order. */
export function* walk(root: string, folder: string): Generator<string> {
  const entries = [...Deno.readDirSync(join(root, folder))].sort((a, b) => a.name < b.name ? -1 : 1);
  for (const { name, isDirectory, isFile } of entries) {
    const path = folder === "" ? name : `${folder}/${name}`;
    if (isDirectory) yield* walk(root, path);
    else if (isFile) yield path;
  }
}

/**
 * Modules that are started by their address, `new Worker(new URL("./worker.ts", import.meta.url))`: nothing imports them, so
 * `deno compile` has to be told.
 *
 * @param sources Paths of all modules.
 * @param read Text of one of them.
 * @returns Paths of the modules that they name in that way.
 * @throws {Refusal} For a worker whose module cannot be told from the text, which would be missing in the binary.
 */
export function workerModules(sources: readonly string[], read: (path: string) => string): string[] {
  const found = new Set<string>();
  for (const path of sources) {
    const text = read(path);
    for (const [, module] of text.matchAll(/new URL\(\s*"(\.{1,2}\/[^"]+\.ts)",\s*import\.meta\.url,?\s*\)/g)) {
      found.add(normalize(join(dirname(path), module!)));
    }
    if (/new Worker\(/.test(text) && ![...found].some((each) => text.includes(each.split("/").at(-1)!))) {
      throw new Refusal(`${path} starts a worker from an address that is not written as new URL("./….ts", import.meta.url)`);
    }
  }
  return [...found].sort();
}

/**
 * The npm packages that modules import.
 *
 * @param root Folder with deno.json and node_modules.
 * @param sources Texts of all modules.
 * @returns `imports`: for every name that is imported its file below ./vendor/; `packages`: the folder of every package.
 */
export function npmImports(root: string, sources: readonly string[]): {
  imports: Record<string, string>;
  packages: Map<string, string>;
} {
  const { imports: known } = JSON.parse(Deno.readTextFileSync(join(root, "deno.json"))) as { imports: Record<string, string> };
  const imports: Record<string, string> = {};
  const packages = new Map<string, string>();
  for (const text of sources) {
    for (const [, specifier] of text.matchAll(/(?:\bfrom |\bimport\(|^import )"([^."][^"]*)"/gm)) {
      const [, name, rest] = /^((?:@[^/]+\/)?[^/]+)(\/.*)?$/.exec(specifier!)!;
      if (!known[name!]?.startsWith("npm:")) continue;
      const folder = join(root, "node_modules", name!);
      packages.set(name!, folder);
      imports[specifier!] = `./vendor/${name}/${entry(folder, `.${rest ?? ""}`)}`;
    }
  }
  return { imports, packages };
}

type Target = string | Target[] | null | { [condition: string]: Target };

/** The ES module of a package for a runtime that is not Node: Node's resolution of "exports" with these conditions. */
function entry(folder: string, subpath: string): string {
  const manifest = JSON.parse(Deno.readTextFileSync(join(folder, "package.json"))) as {
    exports?: Target;
    module?: string;
    main?: string;
  };
  const conditions = ["deno", "browser", "module", "import", "default"];
  const pick = (target: Target | undefined): string | undefined => {
    if (typeof target === "string" || target === null || target === undefined) return target ?? undefined;
    if (Array.isArray(target)) return target.map(pick).find((each) => each !== undefined);
    for (const [condition, each] of Object.entries(target)) {
      const found = conditions.includes(condition) ? pick(each) : undefined;
      if (found !== undefined) return found;
    }
    return undefined;
  };
  const { exports = manifest.module ?? manifest.main ?? null } = manifest;
  const bySubpath = typeof exports === "object" && exports !== null && !Array.isArray(exports) &&
    Object.keys(exports).every((key) => key.startsWith("."));
  const target = bySubpath ? pick(exports[subpath]) : subpath === "." ? pick(exports) : undefined;
  if (target === undefined || !/\.m?js$/.test(target)) throw new Refusal(`${folder} has no ES module for '${subpath}'`);
  return normalize(target);
}

/**
 * Files of packages that are replaced by less. zod loads its messages in 50 languages to offer them; without them its import
 * takes 15 ms instead of 22 (tests/bench/startup.ts).
 */
const SLIM: Readonly<Record<string, string>> = {
  "zod/v4/locales/index.js": 'export { default as en } from "./en.js";\n',
};

/** Replaces those files in `vendor`. */
export function slim(vendor: string): void {
  for (const [path, text] of Object.entries(SLIM)) {
    try {
      Deno.statSync(join(vendor, path));
    } catch {
      throw new Refusal(`${path} is not where it was in this package. Update SLIM in bootstrap/dist_parts.ts`);
    }
    Deno.writeTextFileSync(join(vendor, path), text);
  }
}

/** Licence texts of the program and of what is built into it. */
export function licences(own: string, packages: ReadonlyMap<string, string>): string {
  const rule = "=".repeat(80);
  const parts = [`metalora\n\n${Deno.readTextFileSync(own).trimEnd()}`];
  for (const [name, folder] of packages) {
    const file = [...Deno.readDirSync(folder)].map((each) => each.name).find((each) => /^licen[cs]e/i.test(each));
    if (file === undefined) throw new Refusal(`${folder} has no licence text`);
    const { version } = JSON.parse(Deno.readTextFileSync(join(folder, "package.json"))) as { version: string };
    parts.push(`${name} ${version}\n\n${Deno.readTextFileSync(join(folder, file)).trimEnd()}`);
  }
  parts.push(`Deno ${Deno.version.deno} with V8 ${Deno.version.v8}\n\n${RUNTIME}`);
  return parts.join(`\n\n${rule}\n`) + "\n";
}

/** Of the runtime, whose licence texts no package carries. */
const RUNTIME = `Copyright 2018-2026 the Deno authors. MIT License: https://github.com/denoland/deno/blob/main/LICENSE.md
V8: Copyright 2006-2026 the V8 project authors. BSD 3-clause License: https://github.com/v8/v8/blob/main/LICENSE`;
