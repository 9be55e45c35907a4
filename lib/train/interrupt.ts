/** The flag that asks a run in a worker to stop: shared memory, because a worker that computes hears no messages. */

/** Ends a pass between two micro-batches; what the pass had begun counts as not done. */
export class Interrupted extends Error {
  override readonly name = "Interrupted";
}

/** A flag in memory that both threads see. */
export class StopFlag {
  readonly #cell: Int32Array<SharedArrayBuffer>; // [1]: 0 go on, 1 stop

  /** @param memory The memory of another thread's flag; a new one when omitted. */
  constructor(readonly memory: SharedArrayBuffer = new SharedArrayBuffer(4)) {
    this.#cell = new Int32Array(memory);
  }

  /** Asks to stop. */
  raise(): void {
    Atomics.store(this.#cell, 0, 1);
  }

  /** Whether somebody asked to stop. */
  get raised(): boolean {
    return Atomics.load(this.#cell, 0) === 1;
  }

  /** @throws {Interrupted} when somebody asked to stop */
  check(): void {
    if (this.raised) throw new Interrupted();
  }
}
