/** The status server as a Hono app: `app.request("/status")` answers without a socket. */
import { type Context, Hono } from "hono";
import type { Documents } from "./documents.ts";
import { METRICS_TYPE } from "./metrics.ts";
import { page } from "./page/page.ts";
import { jsonSchema } from "./schema.ts";
import type { RunStatus } from "./snapshot.ts";
import type { EventStreams } from "./streams.ts";
import { tokenCheck } from "./token.ts";

/** What {@link statusApp} serves and to whom. */
export interface StatusAppOptions {
  readonly status: RunStatus;
  readonly documents: Documents;
  readonly streams: EventStreams;
  /** Whether a `Host` header is answered. */
  readonly allowHost: (header: string | null | undefined) => boolean;
  /** Asked for everywhere but at `/healthz`; null: nobody is asked. */
  readonly token: string | null;
}

const JSON_TYPE = "application/json; charset=utf-8";

/** For every response; the page has a policy of its own. Nothing may be kept, framed, guessed at or used by other sites. */
const HEADERS: Record<string, string> = {
  "cache-control": "no-store",
  "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
  "referrer-policy": "no-referrer",
  "x-content-type-options": "nosniff",
  "x-frame-options": "DENY",
};

/**
 * Routes: `/` the dashboard, `/status`, `/history`, `/samples` and `/schema` JSON, `/events` server-sent events, `/metrics` for
 * Prometheus, `/healthz`. Only GET and HEAD; nothing is read from disk, nothing can be changed.
 */
export function statusApp({ status, documents, streams, allowHost, token }: StatusAppOptions): Hono {
  const app = new Hono();
  const authorized = token === null ? () => true : tokenCheck(token);
  const schema = JSON.stringify(jsonSchema(), null, 2);

  app.use(async (c, next) => {
    const refusal = refuse(c, { allowHost, authorized });
    if (refusal) c.res = refusal;
    else await next();
    for (const [name, value] of Object.entries(HEADERS)) if (!c.res.headers.has(name)) c.res.headers.set(name, value);
  });

  app.get(
    "/",
    (c) => c.body(page.html, 200, { "content-type": "text/html; charset=utf-8", "content-security-policy": page.policy }),
  );
  app.get("/status", (c) => c.body(documents.status(), 200, { "content-type": JSON_TYPE }));
  app.get("/history", (c) => c.body(documents.history(), 200, { "content-type": JSON_TYPE }));
  app.get("/schema", (c) => c.body(schema, 200, { "content-type": "application/schema+json; charset=utf-8" }));
  app.get("/metrics", (c) => c.body(documents.metrics(), 200, { "content-type": METRICS_TYPE }));
  app.get("/healthz", (c) => {
    const { state } = status.snapshot();
    return c.text(state === "failed" ? "failed\n" : "ok\n", state === "failed" ? 503 : 200);
  });
  app.get("/samples", (c) => {
    if (status.samplesAllowed) return c.body(documents.samples(), 200, { "content-type": JSON_TYPE });
    return problem(c, 403, "Samples are not told: set status.samples to true in the configuration to allow it");
  });
  app.get("/events", (c) => {
    const headers = { "content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no" };
    if (c.req.raw.method === "HEAD") return c.body(null, 200, headers);
    const stream = streams.open();
    if (stream) return c.body(stream, 200, headers);
    c.header("retry-after", "5");
    return problem(c, 503, "Too many streams are open: poll /status instead");
  });
  app.notFound((c) =>
    problem(c, 404, "There is nothing here: see /, /status, /history, /samples, /events, /metrics, /schema, /healthz")
  );
  app.onError((_, c) => problem(c, 500, "This is a defect of metalora"));
  return app;
}

type Checks = Pick<StatusAppOptions, "allowHost"> & { authorized: (header: string | undefined) => boolean };

/** The answer to a request that may not be served; null: it may. */
function refuse(c: Context, { allowHost, authorized }: Checks): Response | null {
  const header = (name: string) => c.req.header(name);
  if (!allowHost(header("host"))) {
    return problem(c, 421, "This server does not go by that name: add it to status.hosts in the configuration");
  }
  if (c.req.method !== "GET" && c.req.method !== "HEAD") {
    c.header("allow", "GET, HEAD");
    return problem(c, 405, "Only GET and HEAD: nothing can be changed here");
  }
  // Browsers say who asks. Another site may link here, but not load anything from here in the background.
  const site = header("sec-fetch-site");
  if (site !== undefined && site !== "same-origin" && site !== "none" && header("sec-fetch-mode") !== "navigate") {
    return problem(c, 403, "Other sites may not load this");
  }
  if (c.req.path !== "/healthz" && !authorized(header("authorization"))) {
    c.header("www-authenticate", `Basic realm="metalora", charset="UTF-8"`);
    return problem(c, 401, "A token is needed: 'Authorization: Bearer TOKEN', or as the password of any user name");
  }
  return null;
}

function problem(c: Context, code: 401 | 403 | 404 | 405 | 421 | 500 | 503, error: string): Response {
  return c.body(JSON.stringify({ error }) + "\n", code, { "content-type": JSON_TYPE });
}
