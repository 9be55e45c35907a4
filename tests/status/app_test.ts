import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { historySchema, samplesSchema, snapshotSchema } from "../../lib/status/schema.ts";
import { TestApp } from "./harness.ts";

const PATHS = ["/", "/status", "/history", "/samples", "/schema", "/metrics", "/healthz", "/nothing"];
const TOKEN = "correct-horse-battery-staple";

Deno.test("/status is the documented document, before, during and after a run", async () => {
  using test = new TestApp();
  const before = snapshotSchema.parse(await test.json("/status"));
  assertEquals([before.state, before.step, before.steps, before.loss], ["starting", 0, null, null]);
  test.advance(150);
  const during = snapshotSchema.parse(await test.json("/status"));
  assertEquals([during.state, during.step, during.steps, during.method], ["training", 150, 400, "meta-lora"]);
  assertEquals(during.progress, 0.375);
  assertEquals(during.elapsed_seconds, 75);
  assertEquals(during.seconds_left, 125);
  assert(during.tokens > 165 * 3000 && during.tokens < 165 * 3400, `${during.tokens} tokens in 165 passes`);
  assertEquals(during.checkpoint?.step, 100);
  assertEquals(during.evaluations.map(({ name, step }) => [name, step]), [["validation", 100], ["test", 100]]);
  test.status.apply(test.run.finished());
  const after = snapshotSchema.parse(await test.json("/status"));
  assertEquals([after.state, after.seconds_left], ["finished", null]);
});

Deno.test("/status tells no folder, no stack and no secret", async () => {
  using test = new TestApp({ token: TOKEN });
  test.advance(3);
  test.status.apply(
    test.run.failed(`Cannot write '/home/ada/runs/x/adapter': no room. Used ${TOKEN} and hf_abcdefghijklmnopqrstuv`),
  );
  const response = await test.request("/status", { authorization: `Bearer ${TOKEN}` });
  const text = await response.text();
  assert(!/home|srv|secret\.ts|correct-horse|hf_abc/.test(text), text);
  const { message, model, name } = JSON.parse(text);
  assertEquals(message, "Cannot write 'adapter': no room. Used [redacted] and [redacted]");
  assertEquals([model, name], ["SmolLM2-135M", "word-problems"]);
});

Deno.test("between events the clock goes on in /status, and the text is made once a second", async () => {
  using test = new TestApp();
  test.advance(100);
  const at = async () => {
    const { elapsed_seconds, seconds_left } = await test.json("/status");
    return [elapsed_seconds, seconds_left];
  };
  assertEquals(await at(), [50, 150]);
  test.clock.ms += 900;
  assertEquals(await at(), [50, 150]);
  test.clock.ms += 100;
  assertEquals(await at(), [51, 149]);
  test.clock.ms += 1e6;
  assertEquals(await at(), [1051, 0]);
});

Deno.test("/history has columns of one length", async () => {
  using test = new TestApp();
  test.advance(150);
  const history = historySchema.parse(await test.json("/history"));
  const { version: _, run_id, stride, evaluations, ...columns } = history;
  assertEquals(new Set(Object.values(columns).map(({ length }) => length)), new Set([165]));
  assertEquals([stride, evaluations.length, run_id], [1, 2, "word-problems-20260102T030405Z"]);
});

Deno.test("/schema describes the documents for any validator", async () => {
  using test = new TestApp();
  const schema = await test.json("/schema");
  assertEquals(schema.$ref, "#/$defs/status");
  test.advance(1);
  assertEquals(Object.keys(await test.json("/status")).sort(), Object.keys(schema.$defs.status.properties).sort());
  assertEquals(schema.$defs.status.additionalProperties, false);
  for (const [name, { description }] of Object.entries<{ description?: string }>(schema.$defs.status.properties)) {
    assert(description, `nothing says what ${name} is`);
  }
});

Deno.test("/samples is closed unless samples are allowed", async () => {
  using closed = new TestApp();
  closed.advance(50);
  const refused = await closed.request("/samples");
  assertEquals(refused.status, 403);
  assertStringIncludes((await refused.json()).error, "status.samples");
  assertEquals(closed.status.samples().most, []);

  using open = new TestApp({ samples: true });
  open.advance(200);
  const { most, least } = samplesSchema.parse(await open.json("/samples"));
  assertEquals([most.length, least.length], [10, 10]);
  assert(most.every((each, i) => i === 0 || each.weight <= most[i - 1]!.weight));
  assert(least.every((each, i) => i === 0 || each.weight >= least[i - 1]!.weight));
  assert(most.every(({ source }) => source === "curated") && least.every(({ source }) => source === "scraped"));
  assertStringIncludes(most[0]!.prompt!, "Rachel had");
});

Deno.test("/healthz tells whether the run is well, without a token", async () => {
  using test = new TestApp({ token: TOKEN });
  test.advance(3);
  const well = await test.request("/healthz");
  assertEquals([well.status, await well.text()], [200, "ok\n"]);
  test.status.apply(test.run.failed("no"));
  const failed = await test.request("/healthz");
  assertEquals([failed.status, await failed.text()], [503, "failed\n"]);
});

Deno.test("every response forbids keeping, framing, guessing and other sites, and invites none", async () => {
  using test = new TestApp();
  test.advance(3);
  const refusals = [test.request("/status", { host: "evil.example" }), test.request("/status", {}, "POST")];
  for (const response of await Promise.all([...PATHS.map((path) => test.request(path)), ...refusals])) {
    const { headers } = response;
    await response.body?.cancel();
    assertEquals(headers.get("cache-control"), "no-store");
    assertEquals(headers.get("x-content-type-options"), "nosniff");
    assertEquals(headers.get("x-frame-options"), "DENY");
    assertEquals(headers.get("referrer-policy"), "no-referrer");
    assertEquals(headers.get("cross-origin-resource-policy"), "same-origin");
    assertMatch(headers.get("content-security-policy")!, /^default-src 'none'; .*frame-ancestors 'none'/);
    assert(!/unsafe/.test(headers.get("content-security-policy")!));
    assertEquals([...headers.keys()].filter((name) => name.startsWith("access-control")), []);
    assertEquals(headers.get("set-cookie"), null);
  }
});

Deno.test("only GET and HEAD are served", async () => {
  using test = new TestApp();
  for (const method of ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"]) {
    for (const path of PATHS) {
      const response = await test.request(path, {}, method);
      assertEquals([response.status, response.headers.get("allow")], [405, "GET, HEAD"], `${method} ${path}`);
      await response.body?.cancel();
    }
  }
  for (const path of [...PATHS, "/events"]) {
    const head = await test.request(path, {}, "HEAD");
    const get = await test.request(path);
    assertEquals([head.status, head.headers.get("content-type")], [get.status, get.headers.get("content-type")], path);
    assertEquals(head.body, null);
    await get.body?.cancel();
  }
});

Deno.test("a name that is not ours is not answered: no DNS rebinding", async () => {
  using test = new TestApp({ hosts: ["Train.Example"] });
  const code = async (host: string) => {
    const response = await test.request("/status", { host });
    await response.body?.cancel();
    return response.status;
  };
  for (
    const host of ["127.0.0.1", "127.0.0.1:9", "localhost:8080", "[::1]:8080", "LOCALHOST", "train.example", "train.example.:80"]
  ) {
    assertEquals(await code(host), 200, host);
  }
  const strangers = [
    "evil.example",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "10.0.0.1",
    "0.0.0.0",
    "",
    "a@127.0.0.1",
  ];
  for (const host of [...strangers, "[::1", "127.0.0.1:x", "train.example/x"]) {
    assertEquals(await code(host), 421, host);
  }
  assertEquals((await test.app.request("/status")).status, 421, "no Host at all");
});

Deno.test("a server that others reach answers to addresses, but not to strange names", async () => {
  using test = new TestApp({ host: "0.0.0.0", token: TOKEN });
  const code = async (host: string) => (await test.request("/status", { host, authorization: `Bearer ${TOKEN}` })).status;
  assertEquals(await code("192.168.7.9:8080"), 200);
  assertEquals(await code("[fe80::1]"), 200);
  assertEquals(await code("evil.example"), 421);
});

Deno.test("other sites may link here, but not load in the background", async () => {
  using test = new TestApp();
  const code = async (site: string, mode: string) =>
    (await test.request("/status", { "sec-fetch-site": site, "sec-fetch-mode": mode })).status;
  assertEquals(await code("same-origin", "cors"), 200);
  assertEquals(await code("none", "navigate"), 200);
  assertEquals(await code("cross-site", "navigate"), 200);
  for (const site of ["cross-site", "same-site"]) {
    for (const mode of ["cors", "no-cors", "websocket"]) assertEquals(await code(site, mode), 403);
  }
});

Deno.test("a token is taken as Bearer or as the password of Basic, and nowhere else", async () => {
  using test = new TestApp({ token: TOKEN });
  const ask = (headers: Record<string, string>, path = "/status") => test.request(path, headers);
  const basic = (text: string) => ({ authorization: `Basic ${btoa(text)}` });
  const right = [
    { authorization: `Bearer ${TOKEN}` },
    { authorization: `bearer  ${TOKEN}` },
    basic(`ada:${TOKEN}`),
    basic(`:${TOKEN}`),
  ];
  for (const headers of right) assertEquals((await ask(headers as Record<string, string>)).status, 200);
  const wrong = [
    {},
    { authorization: TOKEN },
    { authorization: `Bearer ${TOKEN}x` },
    { authorization: `Bearer ${TOKEN.slice(1)}` },
    { authorization: "Bearer" },
    { authorization: "Basic %%%" },
    basic(TOKEN),
    basic(`${TOKEN}:ada`),
    { cookie: `token=${TOKEN}` },
    { "x-token": TOKEN },
  ];
  for (const headers of wrong) {
    const response = await ask(headers as Record<string, string>);
    assertEquals(response.status, 401, JSON.stringify(headers));
    assertMatch(response.headers.get("www-authenticate")!, /^Basic realm="metalora"/);
    assert(!(await response.text()).includes(TOKEN));
  }
  for (const path of [...PATHS.filter((path) => path !== "/healthz"), "/events", `/status?token=${TOKEN}`]) {
    assertEquals((await ask({}, path)).status, 401, path);
  }
});

Deno.test("no file is served, whatever the path looks like", async () => {
  using test = new TestApp();
  for (
    const path of ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/deno.json", "/status/../deno.json", "/lib/status/app.ts"]
  ) {
    assertEquals((await test.request(path)).status, 404, path);
  }
});

Deno.test("the page runs its own script and style only, and both match the policy", async () => {
  using test = new TestApp();
  const response = await test.request("/");
  const html = await response.text();
  const policy = response.headers.get("content-security-policy")!;
  const hash = async (text: string) => {
    const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
    return `'sha256-${new Uint8Array(digest).toBase64()}'`;
  };
  for (const [tag, directive] of [["script", "script-src"], ["style", "style-src"]]) {
    const parts = [...html.matchAll(new RegExp(`<${tag}>(.*?)</${tag}>`, "gs"))];
    assertEquals(parts.length, 1);
    assertStringIncludes(policy, `${directive} ${await hash(parts[0]![1]!)};`);
  }
  assert(!/ (style|on[a-z]+)="/.test(html), "inline styles and handlers would not run");
  assert(!/(src|href)="(?!data:|status"|metrics"|schema")/.test(html), "the page loads nothing");
  const ids = [...html.matchAll(/ id="([^"]+)"/g)].map(([, id]) => id);
  assertEquals(ids.length, new Set(ids).size, "every id is there once");
});
