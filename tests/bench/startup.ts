/**
 * How long the single binary takes to start, and what it weighs.
 *
 *   deno run -A tests/bench/startup.ts [FILE] [--runs N] [--json]
 *
 * FILE is dist/metalora unless told; where there is none, one is compiled with the runtime of tests/dist/runtime.ts. Times are of
 * whole processes, from start to exit, median and range after one warm-up, each kind in turn so that a slow moment hits all.
 * "library unpacked" is the moment when the native library lies in TMPDIR, as inotify reports it; its first call follows at once.
 */
import { join } from "node:path";
import { buildBinary, fetchRuntime } from "../dist/runtime.ts";
import { workspace } from "../e2e/harness.ts";

const option = (name: string) => Deno.args[Deno.args.indexOf(name) + 1];
const runs = Deno.args.includes("--runs") ? Number(option("--runs")) : 20;
const given = Deno.args.find((arg, i) => !arg.startsWith("--") && Deno.args[i - 1] !== "--runs") ?? "dist/metalora";

using space = workspace();
const binary = await findBinary();

/** What is started, and how. */
const CASES: readonly (readonly [name: string, args: readonly string[]])[] = [
  ["--version", ["--version"]],
  ["train --help", ["train", "--help"]],
  ["config check run.yaml", ["config", "check", "run.yaml"]],
  ["doctor", ["doctor"]],
  ["train run.yaml --dry-run", ["train", "run.yaml", "--dry-run", "--device=cpu", "--threads=1"]],
];

const times = new Map<string, number[]>(CASES.map(([name]) => [name, []]));
const unpacked: number[] = [];
for (let run = 0; run <= runs; run++) {
  for (const [name, args] of CASES) {
    const ms = await wholeProcess(args);
    if (run > 0) times.get(name)!.push(ms);
  }
  const ms = await untilUnpacked();
  if (run > 0) unpacked.push(ms);
}
times.set("doctor: library unpacked", unpacked);

const size = Deno.statSync(binary).size;
const rows = [...times].map(([name, list]) => ({ name, ...summary(list) }));
if (Deno.args.includes("--json")) console.log(JSON.stringify({ size_bytes: size, runs, times_ms: rows }));
else {
  console.log(`${(size / 1e6).toFixed(1)} MB; ms over ${runs} runs`);
  console.log(`${"".padEnd(36)}${"median".padStart(8)}${"least".padStart(8)}${"most".padStart(8)}`);
  for (const { name, median, least, most } of rows) {
    console.log(name.padEnd(36) + [median, least, most].map((ms) => ms.toFixed(0).padStart(8)).join(""));
  }
}

async function findBinary(): Promise<string> {
  try {
    return Deno.realPathSync(given);
  } catch {
    const runtime = await fetchRuntime();
    if (typeof runtime === "string") throw new Error(`Cannot time ${given}: there is no such file, and ${runtime}`);
    await buildBinary(runtime, space.file("metalora"));
    return space.file("metalora");
  }
}

async function wholeProcess(args: readonly string[]): Promise<number> {
  const start = performance.now();
  const { code, stderr } = await new Deno.Command(binary, { args: [...args], cwd: space.path, stdin: "null" }).output();
  const ms = performance.now() - start;
  if (code !== 0) throw new Error(`Cannot time '${args.join(" ")}': exit code ${code}: ${new TextDecoder().decode(stderr)}`);
  return ms;
}

async function untilUnpacked(): Promise<number> {
  const folder = space.file("tmp");
  Deno.mkdirSync(folder, { recursive: true });
  // Deno 2.9 unpacks into a folder of this name, 2.5 beside it.
  Deno.mkdirSync(join(folder, "deno-native-addons"), { recursive: true, mode: 0o700 });
  const watcher = Deno.watchFs(folder);
  const start = performance.now();
  const child = new Deno.Command(binary, {
    args: [...CASES[3]![1]],
    cwd: space.path,
    env: { TMPDIR: folder },
    stdin: "null",
    stdout: "null",
    stderr: "null",
  }).spawn();
  let ms = NaN;
  for await (const { paths } of watcher) {
    if (!paths.some((path) => path.endsWith(".so"))) continue;
    ms = performance.now() - start;
    break;
  }
  await child.status;
  Deno.removeSync(folder, { recursive: true });
  return ms;
}

function summary(list: readonly number[]): { median: number; least: number; most: number } {
  const sorted = [...list].sort((a, b) => a - b);
  return { median: sorted[Math.floor(sorted.length / 2)]!, least: sorted[0]!, most: sorted.at(-1)! };
}
