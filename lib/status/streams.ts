/** Server-sent events: every open stream gets the newest status, at most a few times a second, and a sign of life in between. */
import type { RunStatus } from "./snapshot.ts";

/** Limits of {@link EventStreams}; all times in ms. */
export interface StreamLimits {
  /** Streams at once. */
  readonly clients?: number;
  /** Between two comments that keep a connection open. */
  readonly heartbeat?: number;
  /** Between two events. */
  readonly interval?: number;
  /** A reader that takes nothing for so long is cut off. */
  readonly patience?: number;
}

type Timer = ReturnType<typeof setTimeout>;

interface Client {
  readonly controller: ReadableStreamDefaultController<Uint8Array>;
  stuckSince: number | null;
}

/** Bytes that wait for a reader before it is passed over. */
const BUFFER = 64 * 1024;
const encoder = new TextEncoder();

/** All open streams of a server. */
export class EventStreams {
  readonly #clients = new Set<Client>();
  readonly #limits: Required<StreamLimits>;
  readonly #status: () => string;
  readonly #run: RunStatus;
  readonly #unsubscribe: () => void;
  #heartbeat: Timer | undefined;
  #pending: Timer | undefined;
  #sent = -Infinity;
  #closed = false;

  /**
   * @param run whose changes are told
   * @param status text of an event
   */
  constructor(
    run: RunStatus,
    status: () => string,
    { clients = 16, heartbeat = 15_000, interval = 250, patience = 60_000 }: StreamLimits = {},
  ) {
    this.#run = run;
    this.#status = status;
    this.#limits = { clients, heartbeat, interval, patience };
    this.#unsubscribe = run.subscribe(() => this.#changed());
  }

  /** Open streams. */
  get clients(): number {
    return this.#clients.size;
  }

  /** A new stream, which starts with the status as it is; null when there are too many. */
  open(): ReadableStream<Uint8Array> | null {
    if (this.#closed || this.#clients.size >= this.#limits.clients) return null;
    let client: Client;
    return new ReadableStream<Uint8Array>({
      start: (controller) => {
        client = { controller, stuckSince: null };
        this.#clients.add(client);
        this.#heartbeat ??= setInterval(() => this.#send(": still here\n\n"), this.#limits.heartbeat);
        controller.enqueue(encoder.encode(`retry: 2000\n\n${this.#message()}`));
      },
      cancel: () => this.#drop(client),
    }, new ByteLengthQueuingStrategy({ highWaterMark: BUFFER }));
  }

  /** Ends every stream; none can be opened afterwards. */
  close(): void {
    this.#closed = true;
    this.#unsubscribe();
    clearTimeout(this.#pending);
    for (const client of [...this.#clients]) {
      this.#drop(client);
      client.controller.close();
    }
  }

  #message(): string {
    return `event: status\nid: ${this.#run.revision}\ndata: ${this.#status()}\n\n`;
  }

  #changed(): void {
    if (this.#clients.size === 0) return;
    const wait = this.#run.over ? 0 : this.#sent + this.#limits.interval - performance.now();
    if (wait <= 0) return this.#tell();
    this.#pending ??= setTimeout(() => this.#tell(), wait);
  }

  #tell(): void {
    clearTimeout(this.#pending);
    this.#pending = undefined;
    this.#sent = performance.now();
    this.#send(this.#message());
  }

  /** To everybody who takes it: whoever is behind gets a later, newer status instead. */
  #send(text: string): void {
    const bytes = encoder.encode(text);
    const now = performance.now();
    for (const client of [...this.#clients]) {
      if ((client.controller.desiredSize ?? 0) > 0) {
        client.stuckSince = null;
        client.controller.enqueue(bytes);
      } else if (now - (client.stuckSince ??= now) >= this.#limits.patience) {
        this.#drop(client);
        client.controller.error(new Error("the reader takes nothing"));
      }
    }
  }

  #drop(client: Client): void {
    this.#clients.delete(client);
    if (this.#clients.size > 0) return;
    clearInterval(this.#heartbeat);
    clearTimeout(this.#pending);
    this.#heartbeat = this.#pending = undefined;
  }
}
