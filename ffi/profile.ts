/** Device time by operator: every operator runs between two marks. */
import type { Native } from "./native.ts";

const PAIRS = 32; // ML_MARKS / 2: as many operators are in flight before their times are read

/** Functions that compute nothing on the device. */
const UNTIMED =
  /^ml_(abi|create|destroy|last|device|activation|synchronize|report|mark|elapsed|graph|alloc|free|allocated|memory|head_work)/;

/** Wraps a library's symbols so that operators leave their device time behind. */
export class Profiler {
  readonly symbols: Native["symbols"];
  readonly #times = new Map<string, { ms: number; calls: number }>();
  readonly #pending: string[] = [];

  constructor(
    readonly native: Native["symbols"],
    readonly ctx: Deno.PointerValue,
    readonly check: (status: number) => void,
  ) {
    const wrapped: Record<string, unknown> = { ...native };
    for (const [name, call] of Object.entries(native)) {
      if (UNTIMED.test(name)) continue;
      wrapped[name] = (...values: unknown[]) => {
        if (this.#pending.length === PAIRS) this.#collect();
        const slot = 2 * this.#pending.length;
        this.check(native.ml_mark(ctx, slot));
        const status = (call as (...values: unknown[]) => number)(...values);
        this.check(native.ml_mark(ctx, slot + 1));
        this.#pending.push(name);
        return status;
      };
    }
    this.symbols = wrapped as Native["symbols"];
  }

  #collect(): void {
    const out = new Float64Array(1);
    this.#pending.forEach((name, i) => {
      this.check(this.native.ml_elapsed(this.ctx, 2 * i, 2 * i + 1, out));
      const sum = this.#times.get(name) ?? { ms: 0, calls: 0 };
      this.#times.set(name, { ms: sum.ms + out[0]!, calls: sum.calls + 1 });
    });
    this.#pending.length = 0;
  }

  /** The times so far, longest first. */
  finish(): Map<string, { ms: number; calls: number }> {
    this.#collect();
    return new Map([...this.#times].sort(([, a], [, b]) => b.ms - a.ms));
  }
}
