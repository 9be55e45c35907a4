/** The served texts, made at most once for an event, however many requests come. */
import type { RunStatus } from "./snapshot.ts";
import { prometheusText } from "./metrics.ts";

/** Longer documents are made at most this often, in ms. */
const SLOW_MS = 250;
/** Without events a text grows old: elapsed and remaining time go on. */
const FRESH_MS = 1000;

/** Texts of a run's documents. */
export class Documents {
  /** `/status`: one line of JSON. */
  readonly status: () => string;
  /** `/history`. */
  readonly history: () => string;
  /** `/samples`. */
  readonly samples: () => string;
  /** `/metrics`. */
  readonly metrics: () => string;

  /** @param clients number of open streams, for the metrics */
  constructor(status: RunStatus, { clients, now = () => performance.now() }: { clients: () => number; now?: () => number }) {
    const kept = (make: () => string, least: number) => {
      let text = "", revision = -1, made = -Infinity;
      return () => {
        const age = now() - made;
        const over = status.over && revision !== status.revision; // the end is told at once
        if (over || age >= FRESH_MS || (status.revision !== revision && age >= least)) {
          text = make();
          revision = status.revision;
          made = now();
        }
        return text;
      };
    };
    this.status = kept(() => JSON.stringify(status.snapshot()), 0);
    this.history = kept(() => JSON.stringify(status.history()), SLOW_MS);
    this.samples = kept(() => JSON.stringify(status.samples()), SLOW_MS);
    this.metrics = kept(() => prometheusText(status.snapshot(), { clients: clients() }), 0);
  }
}
