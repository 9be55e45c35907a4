/** A recorded list of operators that the device replays (CUDA graphs). */
import type { Device } from "./device.ts";

/** Owns a native graph; close it before its device, or declare it with `using`. */
export class Graph implements Disposable {
  #handle: Deno.PointerObject | null;

  private constructor(readonly dev: Device, handle: Deno.PointerObject) {
    this.#handle = handle;
  }

  /**
   * Records the operators that `work` calls; none of them runs. `work` must not upload, download or allocate.
   * @throws {NativeError} when the device has no graphs, or an operator cannot be recorded
   */
  static record(dev: Device, work: () => void): Graph {
    dev.check(dev.symbols.ml_graph_begin(dev.ctx));
    const out = new BigUint64Array(1);
    try {
      work();
    } catch (error) {
      const status = dev.symbols.ml_graph_end(dev.ctx, out); // ends the recording, whatever it holds
      if (status === 0) dev.symbols.ml_graph_free(dev.ctx, Deno.UnsafePointer.create(out[0]!));
      throw error;
    }
    dev.check(dev.symbols.ml_graph_end(dev.ctx, out));
    return new Graph(dev, Deno.UnsafePointer.create(out[0]!)!);
  }

  /** Enqueues the recorded operators. */
  launch(): void {
    this.dev.check(this.dev.symbols.ml_graph_launch(this.dev.ctx, this.#handle));
  }

  close(): void {
    if (this.#handle === null) return;
    this.dev.check(this.dev.symbols.ml_graph_free(this.dev.ctx, this.#handle));
    this.#handle = null;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
