/**
 * One LoRA step of the SmolLM2-135M shape (r = 32 on all linears, 4 × 128 tokens) here and in transformers + PEFT, on the
 * same cores in the same run. Prints a table; `--json FILE` keeps the raw numbers.
 *
 *   PYTHON=venv/bin/python make bench        (a Python with torch, transformers and peft; without it only our side runs)
 *   deno run -A tests/bench/step_bench.ts [--rounds N] [--steps N] [--threads N] [--peer-bf16] [--json FILE]
 *
 * The sides take turns, so that a machine that slows down slows both; the median over rounds counts. PEFT's bf16 is slow by
 * minutes on a processor without bf16 instructions, so it runs only where there are some, or with --peer-bf16.
 */
import { parseArgs } from "@std/cli";

const root = new URL("../../", import.meta.url).pathname;
const options = parseArgs(Deno.args, { string: ["rounds", "steps", "threads", "json"], boolean: ["peer-bf16"] });
const rounds = Number(options.rounds ?? 3), steps = Number(options.steps ?? 4), threads = options.threads ?? "2";

interface Measured {
  step_ms: number;
  peak_memory_bytes: number;
  planned_bytes?: number;
  mfu?: number;
}

/** Runs a command and reads the last line of its output as JSON; null when it fails. */
async function measure(command: string, args: string[], env: Record<string, string> = {}): Promise<Measured | null> {
  const clean = { ...Deno.env.toObject(), ...env };
  for (const name of Object.keys(clean)) if (name.startsWith("OPENBLAS_")) delete clean[name]; // settings for old builds
  const { success, stdout, stderr } = await new Deno.Command(command, {
    args,
    cwd: root,
    env: clean,
    clearEnv: true,
    stdout: "piped",
    stderr: "piped",
  })
    .output();
  if (success) return JSON.parse(new TextDecoder().decode(stdout).trim().split("\n").at(-1)!);
  console.error(new TextDecoder().decode(stderr).trim().split("\n").at(-1));
  return null;
}

const ours = (...args: string[]) => () =>
  measure(Deno.execPath(), [
    "run",
    "--allow-ffi",
    "--allow-read",
    "--allow-env",
    "--allow-sys",
    "main.ts",
    "bench",
    "--json",
    "--steps",
    String(steps),
    "--threads",
    threads,
    ...args,
  ]);
const python = Deno.env.get("PYTHON");
const peer = (dtype: string) => () =>
  python
    ? measure(python, ["../shared/bench/peer_peft_cpu.py", "--steps", String(steps), "--threads", threads, "--dtype", dtype])
    : Promise.resolve(null);

const cpu = /model name\s*: (.*)/.exec(Deno.readTextFileSync("/proc/cpuinfo"))?.[1] ?? "unknown processor";
const hasBf16 = /^flags.*\bavx512_bf16\b/m.test(Deno.readTextFileSync("/proc/cpuinfo"));
const sides: { name: string; run: () => Promise<Measured | null>; results: Measured[] }[] = [
  { name: "metalora, f32", run: ours("--precision", "f32"), results: [] },
  { name: "transformers + PEFT, f32", run: peer("float32"), results: [] },
  { name: "metalora, bf16 weights", run: ours("--precision", "bf16"), results: [] },
  ...(hasBf16 || options["peer-bf16"] ? [{ name: "transformers + PEFT, bf16", run: peer("bfloat16"), results: [] }] : []),
  { name: "metalora, f32, META-LORA exact, every 10", run: ours("--precision", "f32", "--method", "meta-lora"), results: [] },
];
for (let round = 0; round < rounds; round++) {
  for (const side of sides) {
    const result = await side.run();
    if (result) side.results.push(result);
  }
}

const median = (values: number[]) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!;
console.log(
  `SmolLM2-135M shape, r = 32 on all linears, 4 × 128 tokens, ${threads} threads, ${cpu}; median of ${rounds} rounds of ${steps} steps\n`,
);
console.log("| | step, ms | range | peak memory, MiB | planned, MiB |");
console.log("|---|---|---|---|---|");
for (const { name, results } of sides) {
  if (results.length === 0) {
    console.log(`| ${name} | not run | | | |`);
    continue;
  }
  const ms = results.map(({ step_ms }) => step_ms);
  const mib = (bytes: number | undefined) => bytes === undefined ? "" : (bytes / 2 ** 20).toFixed(0);
  const memory = median(results.map(({ peak_memory_bytes }) => peak_memory_bytes));
  console.log(
    `| ${name} | ${median(ms).toFixed(0)} | ${Math.min(...ms).toFixed(0)} – ${Math.max(...ms).toFixed(0)} | ${mib(memory)} | ${
      mib(results[0]!.planned_bytes)
    } |`,
  );
}
if (options.json) {
  Deno.writeTextFileSync(
    options.json,
    JSON.stringify({ cpu, threads, rounds, steps, sides: sides.map(({ name, results }) => ({ name, results })) }, null, 2) + "\n",
  );
}
