/**
 * `make dist`: one executable of everything, by `deno compile`.
 *
 *   deno run -A bootstrap/dist.ts [--output FILE]
 *
 * A folder under build/ is filled with exactly what belongs into the binary, and compiled from there: the program, the native
 * libraries without debug information, configs/ and demo/, the modules that workers start from, and of npm packages the ES
 * modules that main.ts reaches, as plain files. (`deno compile` on the repository itself would embed all of node_modules, test
 * tools included, and every megabyte is a millisecond at each start; tests/bench/startup.ts measures it.)
 *
 * The runtime inside is `denort`, which Deno downloads, or the file that DENORT_BIN names.
 */
import { dirname, fromFileUrl, join, licences, npmImports, Refusal, slim, walk, workerModules } from "./dist_parts.ts";
import { VERSION } from "../lib/version.ts";

/** Everything that the program may do: nothing but these is granted, and nothing is ever asked. */
export const PERMISSIONS = ["ffi", "read", "write", "env", "sys", "net", "run"];
/** Flags of V8. Without a limit of its young generation a long run outgrows its plan, see RUNTIME_GROWTH in lib/train/memory.ts. */
export const HEAP = "--max-semi-space-size=1";

const ROOT = fromFileUrl(new URL("../", import.meta.url));

interface Staged {
  /** What `deno compile` would not find by following imports; paths below the folder. */
  readonly includes: string[];
  readonly libraries: string[];
}

/** Fills `folder`. */
async function stage(folder: string): Promise<Staged> {
  const copy = (path: string) => {
    Deno.mkdirSync(dirname(join(folder, path)), { recursive: true });
    Deno.copyFileSync(join(ROOT, path), join(folder, path));
  };
  const sources = ["main.ts", ...walk(ROOT, "lib"), ...walk(ROOT, "ffi")].filter((path) => /\.[jt]s$/.test(path));
  const assets = [...walk(ROOT, "configs"), ...walk(ROOT, "demo"), "LICENSE"];
  [...sources, ...assets].forEach(copy);

  const libraries = ["cpu", "cuda"].map((backend) => `build/libmetalora_${backend}.so`).filter((path) => isFile(ROOT + path));
  if (!libraries.includes("build/libmetalora_cpu.so")) {
    throw new Refusal("build/libmetalora_cpu.so is missing. Build it first: make");
  }
  for (const library of libraries) {
    copy(library);
    await strip(join(folder, library));
  }
  const read = (path: string) => Deno.readTextFileSync(ROOT + path);
  const workers = workerModules(sources, read);
  const { imports, packages } = npmImports(ROOT, sources.map(read));
  for (const [name, from] of packages) {
    for (const path of walk(from, "")) {
      const target = join(folder, "vendor", name, path);
      Deno.mkdirSync(dirname(target), { recursive: true });
      Deno.copyFileSync(join(from, path), target);
    }
  }
  slim(join(folder, "vendor"));
  const { imports: own } = JSON.parse(Deno.readTextFileSync(`${ROOT}deno.json`)) as { imports: Record<string, string> };
  const local = Object.entries(own).filter(([, target]) => target.startsWith("./"));
  Deno.writeTextFileSync(
    join(folder, "deno.json"),
    JSON.stringify({ nodeModulesDir: "none", imports: { ...Object.fromEntries(local), ...imports } }, null, 2),
  );
  Deno.writeTextFileSync(join(folder, "licences.txt"), licences(join(folder, "LICENSE"), packages));
  return { includes: [...workers, ...libraries, "configs", "demo", "licences.txt"], libraries };
}

/** Removes debug information; a library that is not stripped works as well and is larger. */
async function strip(library: string): Promise<void> {
  try {
    await new Deno.Command("strip", { args: ["--strip-unneeded", library], stderr: "null" }).output();
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    console.error("strip (binutils) is not on this machine: the libraries keep their debug information");
  }
}

/** Compiles the folder into `output`, which appears only when the new binary has answered `--version`. */
async function compile(folder: string, includes: readonly string[], output: string): Promise<void> {
  const unfinished = join(folder, "metalora");
  const { success, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [
      "compile",
      ...["--quiet", "--no-check", "--no-lock", "--no-remote", "--no-prompt"],
      // Its cache of compiled code lies under a name that anybody can guess, in a folder that everybody can write.
      "--no-code-cache",
      `--v8-flags=${HEAP}`,
      ...PERMISSIONS.map((name) => `--allow-${name}`),
      ...includes.flatMap((path) => ["--include", path]),
      ...["--output", unfinished, "main.ts"],
    ],
    cwd: folder,
    stdin: "null",
    env: { NO_COLOR: "1", DENO_NO_UPDATE_CHECK: "1" },
  }).output();
  if (!success) throw new Refusal(compileProblem(new TextDecoder().decode(stderr)));

  const { stdout } = await new Deno.Command(unfinished, { args: ["--version"], stdin: "null", stderr: "null" }).output();
  if (new TextDecoder().decode(stdout) !== `metalora ${VERSION}\n`) {
    throw new Refusal(
      `the new binary does not start. ${denort()} must be the denort of Deno ${Deno.version.deno} for ${Deno.build.arch}`,
    );
  }
  Deno.mkdirSync(dirname(output), { recursive: true });
  Deno.copyFileSync(unfinished, `${output}.new`);
  Deno.chmodSync(`${output}.new`, 0o755);
  Deno.renameSync(`${output}.new`, output);
}

const denort = () => Deno.env.has("DENORT_BIN") ? `DENORT_BIN (${Deno.env.get("DENORT_BIN")})` : "the downloaded runtime";

/** What is wrong and what to do, from what `deno compile` printed. */
export function compileProblem(text: string): string {
  if (text.includes("Could not find denort")) {
    return `${denort()} is no file that can be read. Name the denort of Deno ${Deno.version.deno}`;
  }
  const url = /https:\/\/\S+\/denort-\S+?\.zip/.exec(text)?.[0];
  if (url !== undefined) {
    return `the runtime that goes into it could not be downloaded. On a machine with network get ${url}, unpack it ` +
      `and run here: make dist DENORT_BIN=/path/to/denort`;
  }
  return `deno compile failed: ${text.trim()}`;
}

function isFile(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

if (import.meta.main) {
  const at = Deno.args.indexOf("--output");
  const output = at < 0 ? "dist/metalora" : Deno.args[at + 1] ?? "";
  Deno.mkdirSync(join(ROOT, "build"), { recursive: true });
  const folder = Deno.makeTempDirSync({ dir: join(ROOT, "build"), prefix: "dist-" });
  try {
    const { includes, libraries } = await stage(folder);
    await compile(folder, includes, output);
    const names = libraries.map((path) => path.replace("build/", ""));
    const absent = libraries.length === 1 ? " (libmetalora_cuda.so was not built: CPU only)" : "";
    console.log(`${output}: ${(Deno.statSync(output).size / 1e6).toFixed(1)} MB, with ${names.join(" and ")}${absent}`);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    console.error(`Cannot make ${output}: ${error.message}`);
    Deno.exitCode = 1;
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}
