/** The status server on a socket. */
import { UserError } from "../errors.ts";
import { type Address, formatAddress, hostRule, isLoopback } from "./address.ts";
import { statusApp } from "./app.ts";
import { Documents } from "./documents.ts";
import type { RunStatus } from "./snapshot.ts";
import { EventStreams, type StreamLimits } from "./streams.ts";
import { SHORTEST_TOKEN, TOKEN_VARIABLE } from "./token.ts";

/** What {@link serveStatus} serves, where and to whom. */
export interface ServeOptions extends Address {
  readonly status: RunStatus;
  /** Names beside the address that the server answers to. */
  readonly hosts?: readonly string[];
  readonly token?: string | null;
  readonly limits?: StreamLimits;
}

/** A server that listens. */
export interface StatusServer {
  /** Of the dashboard, such as `http://127.0.0.1:8080/`. */
  readonly url: string;
  readonly port: number;
  /** Ends all streams, answers what was asked and closes the socket. */
  stop(): Promise<void>;
}

/** Requests that are still being answered may take so long when the server stops, in ms. */
const LAST_WORDS_MS = 1000;

/**
 * Listens.
 *
 * @throws {UserError} Exit code 2: others than this machine could reach the address and there is no token. Exit code 1: nobody can
 * listen there.
 */
export function serveStatus({ host, port, status, hosts = [], token = null, limits }: ServeOptions): StatusServer {
  if (!isLoopback(host) && token === null) {
    throw new UserError(
      `Cannot serve the status on ${
        formatAddress({ host, port })
      }: others can reach this address and there is no token. Put one of at ` +
        `least ${SHORTEST_TOKEN} characters into ${TOKEN_VARIABLE} or a file named by status.token_file, or listen on 127.0.0.1`,
      2,
    );
  }
  const documents: Documents = new Documents(status, { clients: () => streams.clients });
  const streams = new EventStreams(status, documents.status, limits);
  const app = statusApp({ status, documents, streams, token, allowHost: hostRule({ host, port }, hosts) });
  const abort = new AbortController();
  const onListen = () => {}; // the command line says where, in its own words
  let server;
  try {
    server = Deno.serve({ hostname: host, port, signal: abort.signal, onListen }, async (request) => {
      const response = await app.fetch(request);
      return request.method === "HEAD" ? withoutLength(response) : response;
    });
  } catch (error) {
    streams.close();
    throw new UserError(`Cannot serve the status on ${formatAddress({ host, port })}: ${reason(error, host)}`);
  }
  const bound = { host, port: server.addr.port };
  return {
    url: `http://${formatAddress({ ...bound, host: reachable(host) })}/`,
    port: bound.port,
    async stop() {
      streams.close();
      const timer = setTimeout(() => abort.abort(), LAST_WORDS_MS);
      await server.shutdown();
      clearTimeout(timer);
    },
  };
}

/** The answer to HEAD says nothing of a length: that of no body, 0, which Deno would add, is not that of GET's answer. */
function withoutLength(response: Response): Response {
  return new Response(new ReadableStream({ start: (controller) => controller.close() }), response);
}

/** What to type into a browser on this machine. */
function reachable(host: string): string {
  return host === "0.0.0.0" ? "127.0.0.1" : host === "::" ? "::1" : host;
}

function reason(error: unknown, host: string): string {
  if (error instanceof Deno.errors.AddrInUse) return "another program listens there. Use another port, or 0 for any free one";
  if (error instanceof Deno.errors.AddrNotAvailable) return `${host} is no address of this machine. Use 127.0.0.1`;
  if (error instanceof Deno.errors.PermissionDenied) return "the system does not allow it. Use a port from 1024 on";
  if (error instanceof Deno.errors.NotCapable) return "this program was started without the permission to listen (--allow-net)";
  return `${error instanceof Error ? error.message : String(error)}. Use an address of this machine, such as 127.0.0.1:8080`;
}
