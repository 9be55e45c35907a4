/**
 * Recorded work: a pass over a batch of one shape is a fixed list of a thousand kernels, and launching them one by one from here
 * costs 4–5 µs each. On CUDA the list is recorded once per shape and replayed. (Design §4.)
 */
import type { Device } from "../../ffi/device.ts";
import { Graph } from "../../ffi/graph.ts";

const MOST = 64; // shapes; the one replayed longest ago goes first

/** Graphs by shape. On a device without graphs everything simply runs. */
export class Graphs implements Disposable {
  readonly #graphs = new Map<string, Graph>(); // the one replayed last is last
  readonly #seen = new Set<string>();

  constructor(readonly dev: Device, readonly enabled: boolean) {}

  /**
   * Runs `work`, which must do the same whenever `key` is the same: only operators, on the same addresses. The first time it runs as
   * it is (libraries set themselves up then), the second time it is recorded, from then on replayed.
   */
  run(key: string, work: () => void): void {
    if (!this.enabled || this.dev.profiling) return work();
    const known = this.#graphs.get(key);
    if (known) {
      this.#graphs.delete(key);
      this.#graphs.set(key, known);
      return known.launch();
    }
    if (!this.#seen.has(key)) {
      this.#seen.add(key);
      return work();
    }
    if (this.#graphs.size >= MOST) {
      const [oldest, unused] = this.#graphs.entries().next().value!;
      unused.close();
      this.#graphs.delete(oldest);
    }
    const graph = Graph.record(this.dev, work);
    this.#graphs.set(key, graph);
    graph.launch();
  }

  [Symbol.dispose](): void {
    for (const graph of this.#graphs.values()) graph.close();
    this.#graphs.clear();
  }
}
