/** A run of the real program that a test watches, interrupts, or puts into a changing world. */
import { assert } from "@std/assert";
import { programArguments, STREAMS, type Workspace } from "./harness.ts";

const PATIENCE = 60_000; // milliseconds until something that takes less than one second has failed

/** How an endless run is started. */
export interface Start {
  command?: "train" | "retrain";
  options?: readonly string[];
  /** A program, with arguments, that starts it, such as nohup. */
  starter?: readonly string[];
}

/** A run that goes on until it is stopped, or for as many steps as `sets` say. */
export class Endless implements AsyncDisposable {
  readonly child: Deno.ChildProcess;
  #stderr = "";
  readonly #read: Promise<void>;
  #waiting: { text: string; found: () => void } | undefined;

  constructor(
    space: Workspace,
    output: string,
    sets: readonly string[] = [],
    { command = "train", options = [], starter = [] }: Start = {},
  ) {
    const all = [`output=${output}`, "train.steps=1000000", "train.log_every=10", "reweight.method=meta-lora", ...sets];
    const args = programArguments([
      command,
      "run.yaml",
      "--threads=1",
      "--device=cpu",
      ...options,
      ...all.flatMap((set) => ["--set", set]),
    ]);
    const [program, ...words] = [...starter, Deno.execPath(), ...args];
    this.child = new Deno.Command(program!, { args: words, cwd: space.path, ...STREAMS }).spawn();
    this.#read = this.#collect();
  }

  async #collect(): Promise<void> {
    for await (const text of this.child.stderr.pipeThrough(new TextDecoderStream())) {
      this.#stderr += text;
      if (this.#waiting && this.#stderr.includes(this.#waiting.text)) this.#waiting.found();
    }
    this.#waiting?.found(); // it has ended; the caller sees by what it says
  }

  /** What it has said, once it has said `text`. */
  async says(text: string): Promise<string> {
    if (!this.#stderr.includes(text)) {
      const { promise, resolve } = Promise.withResolvers<void>();
      const deadline = setTimeout(resolve, PATIENCE);
      this.#waiting = { text, found: resolve };
      await promise;
      clearTimeout(deadline);
    }
    assert(this.#stderr.includes(text), `'${text}' is not in: ${this.#stderr}`);
    return this.#stderr;
  }

  /** Stops it. @returns its exit code, and the signal that it ended by when it did not end by itself */
  stop(signal: Deno.Signal): Promise<{ code: number; signal: string | null; err: string }> {
    this.child.kill(signal);
    return this.ended();
  }

  /** Waits for its end. */
  async ended(): Promise<{ code: number; signal: string | null; err: string }> {
    const [status] = await Promise.all([this.child.status, this.#read, this.child.stdout.cancel()]);
    return { code: status.code, signal: status.signal, err: this.#stderr };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.stop("SIGKILL");
    } catch { // it has been stopped
    }
  }
}
