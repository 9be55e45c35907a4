/** A status app on a fake run and a fake clock, without a socket. */
import type { Hono } from "hono";
import { hostRule } from "../../lib/status/address.ts";
import { statusApp } from "../../lib/status/app.ts";
import { Documents } from "../../lib/status/documents.ts";
import { RunStatus } from "../../lib/status/snapshot.ts";
import { EventStreams, type StreamLimits } from "../../lib/status/streams.ts";
import { FakeClock, type FakeOptions, FakeRun } from "./fake_run.ts";

/** What a test may set. */
export interface AppOptions {
  readonly token?: string | null;
  readonly host?: string;
  readonly hosts?: readonly string[];
  readonly samples?: boolean;
  readonly limits?: StreamLimits;
  readonly run?: FakeOptions;
}

/** An app and everything behind it. */
export class TestApp implements Disposable {
  readonly clock = new FakeClock();
  readonly run: FakeRun;
  readonly status: RunStatus;
  readonly streams: EventStreams;
  readonly app: Hono;

  constructor({ token = null, host = "127.0.0.1", hosts = [], samples = false, limits, run }: AppOptions = {}) {
    this.run = new FakeRun(run);
    const { now, wall } = this.clock;
    this.status = new RunStatus({ samples, now, wall, secrets: token === null ? [] : [token] });
    const documents: Documents = new Documents(this.status, { clients: () => this.streams.clients, now });
    this.streams = new EventStreams(this.status, documents.status, limits);
    const allowHost = hostRule({ host, port: 8080 }, hosts);
    this.app = statusApp({ status: this.status, documents, streams: this.streams, token, allowHost });
  }

  /** Lets the run go on to a step; the clock goes along. */
  advance(step: number): void {
    for (const event of this.run.until(step)) {
      if (event.type === "stepped") this.clock.ms = 1000 + 1000 * event.seconds;
      this.status.apply(event);
    }
  }

  /** Asks as a program on this machine would. */
  async request(path: string, headers: Record<string, string> = {}, method = "GET"): Promise<Response> {
    return await this.app.request(path, { method, headers: { host: "127.0.0.1:8080", ...headers } });
  }

  // deno-lint-ignore no-explicit-any
  async json(path: string, headers: Record<string, string> = {}): Promise<any> {
    return await (await this.request(path, headers)).json();
  }

  [Symbol.dispose](): void {
    this.streams.close();
  }
}
