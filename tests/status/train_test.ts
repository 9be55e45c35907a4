/** The status of real runs, in processes of their own. */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { historySchema, samplesSchema, type Snapshot, snapshotSchema } from "../../lib/status/schema.ts";
import { command, type Workspace, workspace } from "../e2e/harness.ts";

const TOKEN = "a-token-of-these-tests";

/** A run that goes on, with its status server. */
class Running implements AsyncDisposable {
  #lines = "";
  readonly #done: Promise<void>;

  private constructor(readonly process: Deno.ChildProcess, readonly url: string, rest: ReadableStreamDefaultReader<string>) {
    this.#done = (async () => {
      for (;;) {
        const { done, value } = await rest.read();
        if (done) return;
        this.#lines += value;
      }
    })();
  }

  /** Starts `train` and waits for the line with the address. */
  static async start(space: Workspace, args: readonly string[], env: Record<string, string> = {}): Promise<Running> {
    const options = ["train", "run.yaml", "--device=cpu", "--threads=1", ...args];
    const process = command(options, space.path, env).spawn();
    const reader = process.stderr.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const match = /^status: (http:\S+)$/m.exec(text);
      if (match) return new Running(process, match[1]!, reader);
      const { done, value } = await reader.read();
      assert(!done, `the program ended: ${text}`);
      text += value;
    }
  }

  /** What it wrote to stderr behind the address; complete at the end. */
  async output(): Promise<string> {
    await this.#done;
    return this.#lines;
  }

  async status(headers: Record<string, string> = {}): Promise<Snapshot> {
    const response = await fetch(`${this.url}status`, { headers });
    return snapshotSchema.parse(await response.json());
  }

  /** The first status for which something holds. */
  async until(holds: (snapshot: Snapshot) => boolean): Promise<Snapshot> {
    const end = Date.now() + 60_000;
    for (;;) {
      const snapshot = await this.status();
      if (holds(snapshot)) return snapshot;
      assert(Date.now() < end, `never came: ${JSON.stringify(snapshot)}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  /** Every status of the event stream, to its end. */
  async *events(): AsyncGenerator<Snapshot> {
    const { body } = await fetch(`${this.url}events`);
    let text = "";
    for await (const part of body!.pipeThrough(new TextDecoderStream())) {
      text += part;
      for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
        const data = /^data: (.*)$/m.exec(text.slice(0, end));
        text = text.slice(end + 2);
        if (data) yield snapshotSchema.parse(JSON.parse(data[1]!));
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      this.process.kill("SIGKILL");
    } catch { // it has ended
    }
    await this.process.status;
    await this.process.stdout.cancel();
    await this.#done;
  }
}

/** A run that goes on until somebody stops it. */
const LONG = ["--set=train.steps=100000", "--set=reweight.method=meta-lora", "--status=127.0.0.1:0"];

Deno.test("a run tells its status from the first step to the last, and its port is closed afterwards", async () => {
  using space = workspace();
  const sets = ["--set=train.steps=300", "--set=train.eval_every=100", "--set=checkpoints.every=100"];
  await using run = await Running.start(space, [...sets, "--status=127.0.0.1:0"]);
  const seen: Snapshot[] = [];
  for await (const snapshot of run.events()) seen.push(snapshot);
  assertEquals((await run.process.status).code, 0);
  const last = seen.at(-1)!;
  assertEquals([last.state, last.step, last.steps, last.progress, last.seconds_left], ["finished", 300, 300, 1, null]);
  assertEquals(last.evaluations.map(({ name, step, samples }) => [name, step, samples]), [["validation", 300, 6], [
    "test",
    300,
    5,
  ]]);
  assertEquals(last.checkpoint?.step, 300);
  assert(seen.every(({ step }, i) => i === 0 || step >= seen[i - 1]!.step), "steps only grow");
  const lines = space.jsonl("out", "metrics.jsonl").filter(({ kind }) => kind === "train");
  assertEquals([last.loss, last.grad_norm], [lines.at(-1).loss, lines.at(-1).grad_norm]);
  assertEquals(last.tokens, lines.reduce((sum, { tokens }) => sum + tokens, 0));
  const gone = await fetch(`${run.url}status`).then(() => "answered", () => "closed");
  assertEquals(gone, "closed");
});

Deno.test("whether somebody watches changes no bit of the adapter", async () => {
  using space = workspace();
  const sets = ["reweight.method=meta-lora", "train.steps=40"];
  await space.train("alone", sets);
  await using run = await Running.start(space, [
    ...[...sets, "output=watched", "status.samples=true"].map((set) => `--set=${set}`),
    "--status=127.0.0.1:0",
  ]);
  for await (const _ of run.events());
  assertEquals((await run.process.status).code, 0);
  assertEquals(await space.adapterHash("watched"), await space.adapterHash("alone"));
});

Deno.test("a run that is stopped says so to those who watch, and resuming may listen elsewhere", async () => {
  using space = workspace();
  await using run = await Running.start(space, LONG);
  await run.until(({ step }) => step >= 5);
  const states = (async () => {
    const seen: string[] = [];
    for await (const { state, message } of run.events()) seen.push(message ? `${state}: ${message}` : state);
    return seen;
  })();
  await new Promise((resolve) => setTimeout(resolve, 300));
  run.process.kill("SIGTERM");
  assertEquals((await run.process.status).code, 143);
  const step = /stopped at step (\d+)/.exec(await run.output())![1];
  assertEquals((await states).at(-1), `stopped: Stopped at step ${step}; --resume continues from there`);

  await using again = await Running.start(space, ["--resume", ...LONG.slice(0, 2), "--set=status.listen=127.0.0.1:0"]);
  const { resumed_at, step: now } = await again.until((snapshot) => snapshot.step > Number(step));
  assertEquals(resumed_at, Number(step));
  assert(now > resumed_at);
  const { step: steps, loss } = historySchema.parse(await (await fetch(`${again.url}history`)).json());
  assert(steps[0]! <= 4 && steps.every((each, i) => i === 0 || each >= steps[i - 1]!), "the history begins where the run began");
  assert(loss.some((each) => each !== null) && steps.at(-1)! > resumed_at);
});

Deno.test("a run that fails is failed in the last event", async () => {
  using space = workspace();
  await using run = await Running.start(space, [...LONG, "--set=optimizer.lr=1e30", "--set=optimizer.clip=0"]);
  let last: Snapshot | undefined;
  for await (const snapshot of run.events()) last = snapshot;
  const { code } = await run.process.status;
  assert(code !== 0 && last?.state === "failed", `${code} ${last?.state}`);
  const line = (await run.output()).trimEnd().split("\n").at(-1)!;
  assertStringIncludes(line, last.message!.slice(0, 40));
});

Deno.test("samples come with their texts where the configuration allows them", async () => {
  using space = workspace();
  await using run = await Running.start(space, [...LONG, "--set=status.samples=true"]);
  await run.until(({ step }) => step >= 30);
  const { most, least } = samplesSchema.parse(await (await fetch(`${run.url}samples`)).json());
  assertEquals(most.length + least.length, 20);
  for (const { id, prompt, source } of [...most, ...least]) {
    assertMatch(prompt!, new RegExp(`^${id.slice(4)}: say `));
    assertEquals(source, Number(id.slice(4)) % 2 ? "odd" : "even");
  }
  await using closed = await Running.start(space, ["--set=output=closed", ...LONG]);
  await closed.until(({ step }) => step >= 3);
  assertEquals(await (await fetch(`${closed.url}samples`)).json().then(({ error }) => /status\.samples/.test(error)), true);
});

Deno.test("a token from the environment or a file guards a server that others reach; it is told nowhere", async () => {
  using space = workspace();
  const everywhere = LONG.with(2, "--status=0.0.0.0:0");
  space.write("token", `${TOKEN}\n`);
  const ways: [string[], Record<string, string>][] = [
    [everywhere, { METALORA_STATUS_TOKEN: TOKEN }],
    [[...everywhere, "--set=status.token_file=token", "--set=output=other"], {}],
  ];
  for (const [args, env] of ways) {
    await using run = await Running.start(space, args, env);
    const refused = await fetch(`${run.url}status`);
    assertEquals(refused.status, 401);
    await refused.body?.cancel();
    const { state } = await run.status({ authorization: `Bearer ${TOKEN}` });
    assert(["starting", "training"].includes(state));
    run.process.kill("SIGKILL");
    assert(!(await run.output()).includes(TOKEN));
  }
});

Deno.test("an address that cannot be used ends the program in one line before anything is loaded", async () => {
  using space = workspace();
  const taken = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = taken.addr as Deno.NetAddr;
  const cases: [string[], number, string][] = [
    [[`--status=127.0.0.1:${port}`], 1, "another program listens there"],
    [["--status=nowhere"], 2, "'nowhere' is no address"],
    [["--status=0.0.0.0:0"], 2, "there is no token"],
    [["--status=0", "--set=status.token_file=none"], 2, "there is no such file"],
    [["--set=status.listen=0.0.0.0:0"], 2, "there is no token"],
  ];
  try {
    for (const [args, code, text] of cases) {
      const result = await space.run("train", "run.yaml", "--device=cpu", ...args);
      assertEquals(result.code, code, result.err);
      assertStringIncludes(result.err, text);
      assertEquals(result.err.trimEnd().split("\n").length, 1, result.err);
      assert(!space.exists("out", "adapter"));
    }
  } finally {
    taken.close();
  }
});
