import { assert, assertEquals, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { UserError } from "../../lib/errors.ts";
import { serveStatus } from "../../lib/status/server.ts";
import { snapshotSchema } from "../../lib/status/schema.ts";
import { RunStatus } from "../../lib/status/snapshot.ts";
import { FakeRun } from "./fake_run.ts";
import { TestApp } from "./harness.ts";

const TOKEN = "0123456789abcdef0123";

/** Reads events of a stream, one after the other. */
class Events {
  readonly #reader: ReadableStreamDefaultReader<string>;
  #text = "";

  constructor(body: ReadableStream<Uint8Array<ArrayBuffer>>) {
    this.#reader = body.pipeThrough(new TextDecoderStream()).getReader();
  }

  /** The next block of lines; null at the end of the stream. */
  async next(): Promise<string | null> {
    for (;;) {
      const end = this.#text.indexOf("\n\n");
      if (end >= 0) {
        const block = this.#text.slice(0, end);
        this.#text = this.#text.slice(end + 2);
        return block;
      }
      const { done, value } = await this.#reader.read();
      if (done) return null;
      this.#text += value;
    }
  }

  /** The next status. */
  async status() {
    for (;;) {
      const block = await this.next();
      if (block === null) return null;
      const data = /^event: status\nid: \d+\ndata: (.*)$/.exec(block);
      if (data) return snapshotSchema.parse(JSON.parse(data[1]!));
    }
  }

  close(): Promise<void> {
    return this.#reader.cancel();
  }
}

Deno.test("/events starts with the status as it is and tells changes, newest first when they come fast", async () => {
  using test = new TestApp({ limits: { interval: 20 } });
  test.advance(3);
  const response = await test.request("/events");
  assertEquals(response.headers.get("content-type"), "text/event-stream; charset=utf-8");
  const events = new Events(response.body!);
  assertEquals(await events.next(), "retry: 2000");
  assertEquals((await events.status())!.step, 3);
  for (let step = 4; step <= 50; step++) test.status.apply(test.run.stepped(step));
  assertEquals((await events.status())!.step, 4, "the first change is told at once");
  assertEquals((await events.status())!.step, 50, "those in between are not told one by one");
  test.status.apply(test.run.finished());
  assertEquals((await events.status())!.state, "finished");
  await events.close();
});

Deno.test("/events sends a sign of life, and a stream that is closed frees its place", async () => {
  using test = new TestApp({ limits: { heartbeat: 10, clients: 1 } });
  const events = new Events((await test.request("/events")).body!);
  assertEquals(test.streams.clients, 1);
  while (await events.next() !== ": still here");
  const refused = await test.request("/events");
  assertEquals([refused.status, refused.headers.get("retry-after")], [503, "5"]);
  assertStringIncludes(await refused.text(), "poll /status");
  await events.close();
  assertEquals(test.streams.clients, 0);
  const again = await test.request("/events");
  assertEquals(again.status, 200);
  await again.body!.cancel();
});

Deno.test("a reader that takes nothing costs bounded memory and is cut off", async () => {
  using test = new TestApp({ limits: { interval: 0, patience: 30 } });
  test.advance(3);
  const { body } = await test.request("/events");
  assertEquals(test.streams.clients, 1);
  const end = performance.now() + 5000;
  for (let step = 4; test.streams.clients > 0 && performance.now() < end; step++) {
    test.status.apply(test.run.stepped(step));
    if (step % 20 === 0) await new Promise((resolve) => setTimeout(resolve, 1));
  }
  assertEquals(test.streams.clients, 0);
  await assertRejects(
    async () => {
      for await (const _ of body!);
    },
    Error,
    "the reader takes nothing",
  );
});

Deno.test("a server on a free port answers, and stopping it ends its streams", async () => {
  const status = new RunStatus();
  const run = new FakeRun();
  const server = serveStatus({ host: "127.0.0.1", port: 0, status });
  assertEquals(server.url, `http://127.0.0.1:${server.port}/`);
  const response = await fetch(`${server.url}status`);
  assertEquals((await response.json()).state, "starting");
  const stream = await fetch(`${server.url}events`);
  const events = new Events(stream.body!);
  assertEquals((await events.status())!.state, "starting");
  for (const event of run.until(2)) status.apply(event);
  status.apply(run.finished());
  const stopped = server.stop();
  let last, next;
  while ((next = await events.status()) !== null) last = next;
  assertEquals(last?.state, "finished", "the end is told before the stream ends");
  await stopped;
  await assertRejects(() => fetch(`${server.url}status`), TypeError);
});

Deno.test("HEAD says no length that GET's answer does not have", async () => {
  const server = serveStatus({ host: "127.0.0.1", port: 0, status: new RunStatus() });
  try {
    for (const path of ["", "status", "metrics", "healthz", "events", "nothing"]) {
      const head = await fetch(server.url + path, { method: "HEAD" });
      assertEquals([await head.text(), head.headers.get("content-length")], ["", null], path);
      const get = await fetch(server.url + path);
      await get.body?.cancel();
      assertEquals([head.status, head.headers.get("content-type")], [get.status, get.headers.get("content-type")], path);
    }
  } finally {
    await server.stop();
  }
});

Deno.test("serveStatus() says in one line why nobody can listen there", async () => {
  const status = new RunStatus();
  const server = serveStatus({ host: "127.0.0.1", port: 0, status });
  const says = (host: string, port: number, text: string, token: string | null = null) => {
    const error = assertThrows(() => serveStatus({ host, port, status, token }), UserError, text);
    assert(/^Cannot serve the status on \S+: [^\n]+$/.test(error.message), error.message);
  };
  try {
    says("127.0.0.1", server.port, "another program listens there");
    says("0.0.0.0", 0, "there is no token");
    says("203.0.113.7", 0, "there is no token");
    says("203.0.113.7", 0, "203.0.113.7 is no address of this machine", TOKEN);
    says("no-such-host.invalid", 0, "Use an address of this machine", TOKEN);
  } finally {
    await server.stop();
  }
});

Deno.test("a server that others reach wants its token from every request", async () => {
  const status = new RunStatus();
  const server = serveStatus({ host: "0.0.0.0", port: 0, status, token: TOKEN });
  try {
    const refused = await fetch(`${server.url}status`);
    assertEquals(refused.status, 401);
    await refused.body?.cancel();
    const answered = await fetch(`${server.url}status`, { headers: { authorization: `Bearer ${TOKEN}` } });
    assertEquals((await answered.json()).state, "starting");
    const health = await fetch(`${server.url}healthz`);
    assertEquals(await health.text(), "ok\n");
  } finally {
    await server.stop();
  }
});

Deno.test("requests that are no HTTP do the server no harm", async () => {
  const status = new RunStatus();
  const server = serveStatus({ host: "127.0.0.1", port: 0, status });
  try {
    for (
      const text of [
        "\0\x01\x02\r\n\r\n",
        "GET /status HTTP/1.1\r\n\r\n",
        `GET /${"a".repeat(20_000)} HTTP/1.1\r\nHost: a\r\n\r\n`,
        "PRI * HTTP/2.0",
      ]
    ) {
      using connection = await Deno.connect({ hostname: "127.0.0.1", port: server.port });
      await connection.write(new TextEncoder().encode(text));
      await connection.closeWrite();
      await connection.read(new Uint8Array(1000)).catch(() => {});
    }
    assertEquals(await fetch(`${server.url}healthz`).then((response) => response.text()), "ok\n");
  } finally {
    await server.stop();
  }
});
