/**
 * What polling a run costs it: a real training run, asked for /status a thousand times a second in every other window of time, left
 * alone in the windows between. Prints training speed in both kinds of windows and how long the answers took.
 *
 *   deno run -A tests/bench/status_bench.ts [--seconds N] [--rate N] [--device cpu|cuda] [--threads N] [--batch N] [--path /status] [--elsewhere] [--json FILE]
 *
 * The windows take turns, so that a machine that slows down slows both kinds; each loaded window is compared with the mean of its two
 * neighbours. Requests go out on a schedule, whether or not the ones before are answered, and a latency counts from the scheduled
 * moment: waiting in line is not hidden. The program, its server and this generator share the machine; the time that the program's main
 * thread took (its server, the events of the run) is read from the kernel.
 */
import { parseArgs } from "@std/cli";
import { join } from "node:path";
import { writeDemoData } from "../../lib/demo/generate.ts";

const root = new URL("../../", import.meta.url).pathname;
const options = parseArgs(Deno.args, {
  string: ["seconds", "rate", "device", "threads", "batch", "path", "json", "window"],
  boolean: ["elsewhere"],
});
const seconds = Number(options.seconds ?? 60); // under load; as many more without
const rate = Number(options.rate ?? 1000);
const device = options.device ?? "cpu";
const threads = options.threads ?? "1";
const batch = options.batch ?? "16";
const path = options.path ?? "/status";
const windowSeconds = Number(options.window ?? 5);
const CONNECTIONS = 8;

/** One keep-alive connection: a request at a time, read to the end of its answer. */
class Connection implements Disposable {
  readonly #connection: Deno.TcpConn;
  readonly #request: Uint8Array;
  readonly #buffer = new Uint8Array(256 * 1024);

  private constructor(connection: Deno.TcpConn, request: Uint8Array) {
    this.#connection = connection;
    this.#request = request;
  }

  static async open(port: number): Promise<Connection> {
    const connection = await Deno.connect({ hostname: "127.0.0.1", port });
    connection.setNoDelay(true);
    return new Connection(connection, new TextEncoder().encode(`GET ${path} HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\n\r\n`));
  }

  /** Asks once. @returns bytes of the body */
  async ask(): Promise<number> {
    await this.#connection.write(this.#request);
    let have = 0, need = Infinity, body = 0;
    while (have < need) {
      const n = await this.#connection.read(this.#buffer.subarray(have));
      if (n === null) throw new Error("the server closed the connection");
      have += n;
      if (need !== Infinity) continue;
      const head = new TextDecoder("latin1").decode(this.#buffer.subarray(0, Math.min(have, 4096)));
      const end = head.indexOf("\r\n\r\n");
      if (end < 0) continue;
      if (!head.startsWith("HTTP/1.1 200")) throw new Error(head.split("\r\n")[0]);
      body = Number(/content-length: (\d+)/i.exec(head)![1]);
      need = end + 4 + body;
    }
    return body;
  }

  [Symbol.dispose](): void {
    this.#connection.close();
  }
}

/** Asks `rate` times a second until a moment. @returns latencies in ms from the scheduled moments */
async function load(connections: readonly Connection[], end: number): Promise<number[]> {
  const latencies: number[] = [];
  const start = performance.now();
  const interval = 1000 * connections.length / rate;
  await Promise.all(connections.map(async (connection, lane) => {
    for (let i = 0;; i++) {
      const due = start + (i + lane / connections.length) * interval;
      if (due >= end) return;
      const early = due - performance.now();
      if (early > 0) await new Promise((resolve) => setTimeout(resolve, early));
      // A timer that fires late is this generator's fault; an answer that the next request has to wait for is the server's.
      const from = early > 0 ? performance.now() : due;
      await connection.ask();
      latencies.push(performance.now() - from);
    }
  }));
  return latencies;
}

interface Moment {
  step: number;
  tokens: number;
  at: number;
}

/** The moment of the next step, to about 2 ms. */
async function nextStep(url: string): Promise<Moment> {
  const ask = async (): Promise<Moment> => {
    const { step, tokens, state } = await (await fetch(`${url}status`)).json();
    if (state !== "training" && state !== "starting") throw new Error(`the run is ${state}`);
    return { step, tokens, at: performance.now() };
  };
  const first = await ask();
  for (;;) {
    const now = await ask();
    if (now.step > first.step) return now;
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

/** Seconds of processor time so far of the program's main thread and of all its others. */
async function processorSeconds(pid: number): Promise<{ main: number; others: number }> {
  const { stdout } = await new Deno.Command("cat", { args: [`/proc/${pid}/task/${pid}/stat`, `/proc/${pid}/stat`] }).output();
  const [main, all] = new TextDecoder().decode(stdout).trim().split("\n").map((line) => {
    const fields = line.replace(/^.*\) /, "").split(" ");
    return (Number(fields[11]) + Number(fields[12])) / 100; // user and system, in ticks of 10 ms
  });
  return { main: main!, others: all! - main! };
}

/** What happened in one window. */
interface Window {
  /** Tokens a second of the clock, and a second of processor time of the threads that train. */
  readonly speed: number;
  readonly perProcessorSecond: number;
  /** Share of a core that the main thread took. */
  readonly main: number;
}

/** Loaded windows (every other one) against the mean of their neighbours. */
function compare(values: readonly number[]): { quiet: number; asked: number; change: number; error: number } {
  const quiet = values.filter((_, i) => i % 2 === 0), asked = values.filter((_, i) => i % 2 === 1);
  const changes = asked.map((value, i) => value / mean([quiet[i]!, quiet[i + 1]!]) - 1);
  const change = mean(changes);
  const error = Math.sqrt(mean(changes.map((each) => (each - change) ** 2)) / Math.max(1, changes.length - 1));
  return { quiet: mean(quiet), asked: mean(asked), change, error };
}

let other: Deno.ChildProcess | undefined;

/** A server that answers everything with one text, in a process of its own. @returns its port */
async function standIn(text: string): Promise<number> {
  const code = `Deno.serve({ hostname: "127.0.0.1", port: 0, onListen: ({ port }) => console.log(port) }, () =>
    new Response(${JSON.stringify(text)}, { headers: { "content-type": "application/json" } }))`;
  other = new Deno.Command(Deno.execPath(), { args: ["eval", "--quiet", code], stdout: "piped" }).spawn();
  const reader = other.stdout.getReader();
  const { value } = await reader.read();
  return Number(new TextDecoder().decode(value));
}

const mean = (values: readonly number[]) => values.reduce((a, b) => a + b, 0) / values.length;
const quantile = (sorted: readonly number[], q: number) => sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))]!;

type Comparison = ReturnType<typeof compare>;

function print(result: {
  bytes: number;
  step_ms: number;
  seconds_loaded: number;
  requests_per_second: number;
  load_average: number;
  tokens_per_second: Comparison;
  tokens_per_processor_second: Comparison;
  main_thread: Comparison;
  latency_ms: Record<"p50" | "p90" | "p99" | "max", number>;
}): void {
  const { bytes, requests_per_second: asked, latency_ms: latency, main_thread: main } = result;
  const ms = (value: number) => `${value.toFixed(2)} ms`;
  const percent = (value: number) => `${(100 * value).toFixed(2)} %`;
  const change = ({ quiet, asked, change, error }: Comparison) =>
    `quiet ${quiet.toFixed(0)}, asked ${asked.toFixed(0)}: ${percent(change)} ± ${percent(error)}`;
  console.log(
    `${options.elsewhere ? "another process" : path}, ${bytes} bytes, ${
      asked.toFixed(0)
    } requests/s over ${result.seconds_loaded} s; ${device === "cpu" ? `${threads} training threads` : device}`,
  );
  console.log(`  steps of ${result.step_ms.toFixed(1)} ms; load average of the machine ${result.load_average.toFixed(1)}`);
  console.log(`  tokens/s                  ${change(result.tokens_per_second)}`);
  console.log(`  tokens/processor second   ${change(result.tokens_per_processor_second)}`);
  console.log(
    `  latency                   p50 ${ms(latency.p50)}, p90 ${ms(latency.p90)}, p99 ${ms(latency.p99)}, longest ${
      ms(latency.max)
    }`,
  );
  const each = 1e6 * (main.asked - main.quiet) / asked;
  console.log(
    `  main thread               quiet ${percent(main.quiet)}, asked ${percent(main.asked)} of a core: ${
      each.toFixed(0)
    } µs a request`,
  );
}

const folder = Deno.makeTempDirSync({ prefix: "metalora-status-bench-" });
writeDemoData(folder, 0);
const data = ["train", "validation", "test"].map((name) => `--set=data.${name}.path=${join(folder, `${name}.jsonl`)}`);
const program = new Deno.Command(Deno.execPath(), {
  args: [
    "run",
    "--quiet",
    "--no-check",
    ...["ffi", "read", "write", "env", "sys", "net"].map((name) => `--allow-${name}`),
    "main.ts",
    "train",
    "configs/demo.yaml",
    ...data,
    `--set=output=${join(folder, "run")}`,
    "--set=train.steps=10000000",
    `--set=train.batch_size=${batch}`,
    `--device=${device}`,
    `--threads=${threads}`,
    "--status=127.0.0.1:0",
  ],
  cwd: root,
  stderr: "piped",
}).spawn();

try {
  const lines = program.stderr.pipeThrough(new TextDecoderStream()).getReader();
  let text = "", url: string | undefined;
  while (!(url = /^status: (http:\S+)$/m.exec(text)?.[1])) {
    const { done, value } = await lines.read();
    if (done) throw new Error(`the program ended: ${text}`);
    text += value;
  }
  (async () => {
    while (!(await lines.read()).done); // or the program would wait for a full pipe
  })();
  const port = Number(new URL(url).port);
  await nextStep(url);
  await new Promise((resolve) => setTimeout(resolve, 3000)); // until everything is compiled and in the caches

  const asked = options.elsewhere ? await standIn(await (await fetch(`${url}${path.slice(1)}`)).text()) : port;
  const connections = await Promise.all(Array.from({ length: CONNECTIONS }, () => Connection.open(asked)));
  const bytes = await connections[0]!.ask();
  const windows = 2 * Math.max(1, Math.round(seconds / windowSeconds)) + 1; // quiet at both ends
  const measured: Window[] = [], latencies: number[] = [];
  let stepMs = 0;
  let before = await nextStep(url);
  for (let i = 0; i < windows; i++) {
    const used = await processorSeconds(program.pid);
    const start = performance.now(), end = start + 1000 * windowSeconds;
    if (i % 2 === 1) latencies.push(...await load(connections, end));
    else await new Promise((resolve) => setTimeout(resolve, end - start));
    const now = await nextStep(url);
    const { main, others } = await processorSeconds(program.pid);
    const passed = (now.at - before.at) / 1000, tokens = now.tokens - before.tokens;
    measured.push({
      speed: tokens / passed,
      perProcessorSecond: tokens / (others - used.others),
      main: (main - used.main) / passed,
    });
    stepMs = 1000 * passed / (now.step - before.step);
    before = now;
  }
  for (const connection of connections) connection[Symbol.dispose]();

  latencies.sort((a, b) => a - b);
  const loadedSeconds = (windows - 1) / 2 * windowSeconds;
  const result = {
    path,
    device,
    threads: Number(threads),
    batch: Number(batch),
    step_ms: stepMs,
    bytes,
    seconds_loaded: loadedSeconds,
    requests_per_second: latencies.length / loadedSeconds,
    load_average: Deno.loadavg()[0]!,
    tokens_per_second: compare(measured.map(({ speed }) => speed)),
    tokens_per_processor_second: compare(measured.map(({ perProcessorSecond }) => perProcessorSecond)),
    latency_ms: {
      p50: quantile(latencies, 0.5),
      p90: quantile(latencies, 0.9),
      p99: quantile(latencies, 0.99),
      max: latencies.at(-1)!,
    },
    main_thread: compare(measured.map(({ main }) => main)),
    windows: measured,
  };
  print(result);
  if (options.json) Deno.writeTextFileSync(options.json, JSON.stringify(result, null, 2) + "\n");
} finally {
  try {
    program.kill("SIGKILL");
  } catch { // it has ended
  }
  await program.status;
  other?.kill("SIGKILL");
  Deno.removeSync(folder, { recursive: true });
}
