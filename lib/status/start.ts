/** Status of a training run, as the command line starts it. */
import type { RunListener } from "../train/events.ts";
import { parseAddress } from "./address.ts";
import { serveStatus } from "./server.ts";
import { RunStatus } from "./snapshot.ts";
import { readToken, TOKEN_VARIABLE } from "./token.ts";

/** The keys `status` of a configuration. */
export interface StatusConfig {
  readonly listen: string | null;
  readonly token_file: string | null;
  readonly samples: boolean;
  readonly hosts: readonly string[];
}

/** A status server that follows one run. */
export interface StatusOfRun {
  /** Of the dashboard. */
  readonly url: string;
  /** For the events of the run. */
  readonly listen: RunListener;
  /** A signal arrived: the run is about to stop. */
  stopping(): void;
  /** Tells the end to all who listen and closes the socket. */
  stop(): Promise<void>;
}

/**
 * Starts the server that a configuration asks for, before the model is loaded: an address that cannot be used fails at once.
 *
 * @param listen `HOST:PORT` of the command line; it goes before that of the configuration.
 * @returns null when neither names an address.
 * @throws {UserError} Exit code 2: a bad address, or one that needs a token without one. Exit code 1: nobody can listen there.
 */
export function startStatus(config: StatusConfig, listen: string | null = null): StatusOfRun | null {
  const address = listen ?? config.listen;
  if (address === null) return null;
  const { host, port } = parseAddress(address);
  const token = readToken(config.token_file);
  if (token !== null && Deno.env.get(TOKEN_VARIABLE) === token) Deno.env.delete(TOKEN_VARIABLE); // nobody started by us needs it
  const status = new RunStatus({ samples: config.samples, secrets: token === null ? [] : [token] });
  const server = serveStatus({ host, port, status, hosts: config.hosts, token });
  return {
    url: server.url,
    listen: (event) => status.apply(event),
    stopping: () => status.apply({ type: "stopping" }),
    stop: () => server.stop(),
  };
}
