/** Status of a training run, as the command line starts it. */
import type { RunListener } from "../train/events.ts";
import { parseAddress } from "./address.ts";
import { recallRun } from "./recall.ts";
import { serveStatus } from "./server.ts";
import { RunStatus } from "./snapshot.ts";
import { readToken } from "./token.ts";

/** The keys `status` of a configuration that the server is made from. */
export interface StatusConfig {
  readonly token_file: string | null;
  readonly samples: boolean;
  readonly hosts: readonly string[];
}

/** A status server that follows one run; disposing of it tells the end to all who listen and closes the socket. */
export interface StatusOfRun extends AsyncDisposable {
  /** Of the dashboard. */
  readonly url: string;
  /** For the events of the run. */
  readonly listen: RunListener;
  /** A signal arrived: the run is about to stop. */
  stopping(): void;
}

/**
 * Starts the server before the model is loaded: an address that cannot be used fails at once.
 *
 * @param listen `HOST:PORT`, of the command line or of the configuration.
 * @throws {UserError} Exit code 2: a bad address, or one that needs a token without one. Exit code 1: nobody can listen there.
 */
export function startStatus(config: StatusConfig, listen: string): StatusOfRun {
  const { host, port } = parseAddress(listen);
  const token = readToken(config.token_file);
  const status = new RunStatus({ samples: config.samples, secrets: token === null ? [] : [token] });
  const server = serveStatus({ host, port, status, hosts: config.hosts, token });
  return {
    url: server.url,
    listen(event) {
      // Before its first step, so that the history is in order.
      if (event.type === "started" && event.resumedAt > 0) status.recall(recallRun(event));
      status.apply(event);
    },
    stopping: () => status.apply({ type: "stopping" }),
    [Symbol.asyncDispose]: () => server.stop(),
  };
}
