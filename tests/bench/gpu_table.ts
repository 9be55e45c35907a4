/**
 * The tables of tests/bench/gpu.md, out of what gpu.sh has left in a folder:
 *
 *     deno run --allow-read tests/bench/gpu_table.ts FOLDER
 *
 * Times in milliseconds with the least and the most in brackets, memory in MiB as torch counts it: what buffers take, for ours the
 * arena, for the peers the allocator's peak. Parts are of one step, operators timed one by one.
 */

interface Ours {
  shape: string;
  batch: number;
  length: number;
  method: string;
  step_ms: number;
  step_ms_min: number;
  step_ms_max: number;
  arena_bytes: number;
  peak_memory_bytes: number;
  planned_bytes: number;
  gemm_gflops: number;
  device: string;
  parts?: { operator: string; ms: number }[];
}

interface Peer {
  model: string;
  B: number;
  T: number;
  tag: string;
  ms: number;
  peak_mib: number;
  spread: [number, number];
}

const folder = Deno.args[0];
if (!folder || Deno.args.length > 1) {
  console.error("Usage: deno run --allow-read tests/bench/gpu_table.ts FOLDER");
  Deno.exit(2);
}

/** The text of a file of the folder; nothing where there is no such file. */
function textOf(name: string): string {
  try {
    return Deno.readTextFileSync(`${folder}/${name}`);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return "";
    throw error;
  }
}

const lines = <T>(name: string): T[] => textOf(name).split("\n").filter(Boolean).map((line) => JSON.parse(line));
const mib = (bytes: number) => Math.round(bytes / 2 ** 20).toLocaleString("en");
const ms = (value: number) => value.toLocaleString("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const place = (shape: string, batch: number, length: number) => `${shape} ${batch} × ${length}`;

/** Prints rows with columns of one width. */
function print(title: string, rows: readonly (readonly string[])[]): void {
  if (rows.length === 0) return;
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  console.log(`\n${title}`);
  for (const row of rows) console.log(row.map((cell, column) => cell.padEnd(widths[column]!)).join("  ").trimEnd());
}

const runs = lines<{ args: string; result: Ours }>("metalora.jsonl");
if (runs.length === 0) {
  console.error(
    `Cannot make tables: ${folder}/metalora.jsonl is not here or empty. Run sh tests/bench/gpu.sh ${folder} on a GPU`,
  );
  Deno.exit(1);
}
print(
  runs[0]!.result.device,
  runs.map(({ args, result: r }) => [
    place(r.shape, r.batch, r.length),
    r.method,
    `${ms(r.step_ms)} (${ms(r.step_ms_min)} – ${ms(r.step_ms_max)})`,
    `${mib(r.arena_bytes)} MiB`,
    `${(r.gemm_gflops / 1000).toFixed(0)} TFLOP/s`,
    args.match(/--set (.*)$/)?.[1] ?? "",
  ]),
);
const far = Math.max(...runs.map(({ result: r }) => Math.abs(r.planned_bytes / r.peak_memory_bytes - 1)));
console.log(`The plan is within ${(100 * far).toFixed(2)} % of what the driver reports`);

print(
  "META-LORA beside the plain step",
  runs.filter(({ result }) => result.method === "meta-lora").flatMap(({ result: meta }) => {
    const same = (r: Ours) => r.method === "none" && r.shape === meta.shape && r.batch === meta.batch && r.length === meta.length;
    const plain = runs.find(({ args, result }) => same(result) && !args.includes("--set"))?.result;
    if (!plain) return [];
    const more = 100 * (meta.arena_bytes / plain.arena_bytes - 1);
    return [[
      place(meta.shape, meta.batch, meta.length),
      `${ms(plain.step_ms)} → ${ms(meta.step_ms)}`,
      `${(meta.step_ms / plain.step_ms).toFixed(2)} times`,
      `+ ${more.toFixed(1)} %`,
    ]];
  }),
);

const peers = ["eager", "checkpointing", "compile"].flatMap((how) => {
  const text = textOf(`peer_peft_${how}.json`);
  return text ? (JSON.parse(text) as { rows: Peer[] }).rows : [];
});
print(
  "transformers + PEFT",
  peers.map((p) => [
    place(p.model, p.B, p.T),
    p.tag,
    `${ms(p.ms)} (${ms(p.spread[0])} – ${ms(p.spread[1])})`,
    `${p.peak_mib.toLocaleString("en")} MiB`,
  ]),
);
const floor = textOf("gemm_floor.json");
const floors = floor ? Object.entries(JSON.parse(floor) as Record<string, { floor_ms: number }>) : [];
print("Floor", floors.map(([name, { floor_ms }]) => [name.replace("x", " × "), ms(floor_ms)]));
print(
  "The authors' method in PyTorch",
  lines<{ shape: string; B: number; T: number; method: string; recompute: boolean; ms: number; peak_mib: number }>(
    "peer_metalora.jsonl",
  )
    .map((p) => [
      place(p.shape, p.B, p.T),
      p.method,
      p.recompute ? "checkpointing" : "",
      ms(p.ms),
      `${p.peak_mib.toLocaleString("en")} MiB`,
    ]),
);

const parted = runs.flatMap(({ result }) => result.parts ? [result] : []);
const operators = [...new Set(parted.flatMap(({ parts }) => parts!.map(({ operator }) => operator)))];
print("Parts", [
  ["", ...parted.map((r) => place(r.shape, r.batch, r.length))],
  ...operators.map((name) => [
    name,
    ...parted.map(({ parts }) => parts!.find(({ operator }) => operator === name)?.ms.toFixed(1) ?? ""),
  ]),
]);
