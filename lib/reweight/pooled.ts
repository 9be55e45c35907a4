/**
 * The paper's one-dimensional similarity: per adapted matrix, activations z = h and gradients g = dℓ/dh are averaged over
 * tokens, and u_i = Σ_l (z_i·z_v)(g_i·g_v) (paper, equations 17 and 18; the authors' code, algorithms §1.3). 0 while B = 0.
 *
 * The paper and its code read the validation side differently:
 *   product-of-means (the code): z and g are averaged over the validation samples first, each on its own, then multiplied;
 *   mean-of-products (equation 17): (1/m) Σ_j Σ_l (z_j·z_i)(g_j·g_i).
 */
import { type Device, Tensor } from "../../ffi/device.ts";
import { download, type Pieces, segmentMean } from "../../ffi/operators.ts";
import type { Decoder, GradientSink } from "../model/decoder.ts";
import type { Linear } from "../model/linear.ts";
import type { Arena } from "../tensor/arena.ts";
import type { Modules, Observed, Similarity, SimilarityState } from "./similarity.ts";

/** How a pooled similarity reads its statistics. */
export interface PooledOptions {
  readonly ema: number;
  readonly modules: Modules;
  readonly reduction: "product-of-means" | "mean-of-products";
  /** Whose gradient g is: the sample's own mean loss, or the batch mean over tokens (then g_i carries n_i / Σ n_k). */
  readonly loss: "sample-mean" | "token-mean";
}

/** One pooled row: z and g of every adapted matrix, [Q] each, Q = Σ rank. */
interface Row {
  z: Float32Array;
  g: Float32Array;
}

/** Pooled similarity; the statistics are 2Q numbers a sample and live on the host. */
export class PooledSimilarity implements Similarity {
  readonly needsPlainStart = true;
  readonly #means: Tensor; // [samples,2Q]: z, then g
  readonly #Q: number;
  readonly #columns = new Map<Linear, number>();
  /** First column and length of each adapted matrix that takes part. */
  readonly #ranges: { first: number; rank: number }[] = [];
  #cache: Row[] = [];

  constructor(readonly dev: Device, arena: Arena, model: Decoder, readonly samples: number, readonly options: PooledOptions) {
    let Q = 0;
    for (const linear of model.linears()) {
      this.#columns.set(linear, Q);
      for (const { rank, kind } of linear.adapters) {
        if (options.modules === "all" || options.modules === kind) this.#ranges.push({ first: Q, rank });
        Q += rank;
      }
    }
    this.#Q = Q;
    this.#means = arena.reserve("reweighting", samples, 2 * Q);
  }

  get ready(): boolean {
    return this.#cache.length > 0;
  }

  observeTraining(observed: Observed): GradientSink {
    return this.#sink(observed);
  }

  observeValidation(observed: Observed): GradientSink {
    return this.#sink(observed);
  }

  /** `samples` of the validation batch were seeded with their share of the batch loss. */
  refresh(_gradient: Tensor | Pieces, samples: number): void {
    // Under sample-mean, undo the 1/m of the batch loss: g_j belongs to the sample's own mean loss.
    const unit = this.options.loss === "sample-mean" ? samples : 1;
    const rows = this.#read(samples).map(({ z, g }) => ({ z, g: g.map((value) => value * unit) }));
    if (this.options.reduction === "mean-of-products") {
      this.#cache = rows;
      return;
    }
    const keep = this.ready ? this.options.ema : 0;
    const mean = (part: "z" | "g") => {
      const old = this.#cache[0]?.[part];
      return new Float32Array(this.#Q).map((_, q) => {
        const fresh = rows.reduce((sum, row) => sum + row[part][q]!, 0) / samples;
        return keep * (old?.[q] ?? 0) + (1 - keep) * fresh;
      });
    };
    this.#cache = [{ z: mean("z"), g: mean("g") }];
  }

  similarities(n: number, tokens: readonly number[]): Float64Array<ArrayBuffer> {
    const all = tokens.reduce((sum, count) => sum + count, 0);
    return Float64Array.from(this.#read(n), (row, i) => {
      const share = this.options.loss === "token-mean" ? tokens[i]! / all : 1;
      const sum = this.#cache.reduce((total, cached) => total + this.#product(row, cached), 0);
      return share * sum / this.#cache.length;
    });
  }

  save(): SimilarityState {
    const flat = (part: "z" | "g") => {
      const all = new Float32Array(this.#cache.length * this.#Q);
      this.#cache.forEach((row, i) => all.set(row[part], i * this.#Q));
      return all;
    };
    return new Map(this.ready ? [["z", flat("z")], ["g", flat("g")]] : []);
  }

  restore(state: SimilarityState): boolean {
    const z = state.get("z") ?? new Float32Array(0), g = state.get("g") ?? new Float32Array(0);
    const Q = this.#Q, count = z.length / Q;
    if (state.size > 0 && (count === 0 || !Number.isInteger(count) || g.length !== z.length)) return false;
    this.#cache = Array.from({ length: count }, (_, i) => ({
      z: z.slice(i * Q, (i + 1) * Q),
      g: g.slice(i * Q, (i + 1) * Q),
    }));
    return true;
  }

  /** Σ_l (z·z')(g·g') over the modules that take part. */
  #product(a: Row, b: Row): number {
    let total = 0;
    for (const { first, rank } of this.#ranges) {
      let z = 0, g = 0;
      for (let q = first; q < first + rank; q++) {
        z += a.z[q]! * b.z[q]!;
        g += a.g[q]! * b.g[q]!;
      }
      total += z * g;
    }
    return total;
  }

  #read(samples: number): Row[] {
    const Q = this.#Q;
    const host = new Float32Array(samples * 2 * Q);
    download(this.dev, host, this.#means);
    return Array.from({ length: samples }, (_, i) => ({
      z: host.slice(i * 2 * Q, i * 2 * Q + Q),
      g: host.slice(i * 2 * Q + Q, (i + 1) * 2 * Q),
    }));
  }

  #sink({ cu, samples, first }: Observed): GradientSink {
    const out = this.#means.rowRange(first, samples);
    return {
      linear: (linear, _T, { h, gh }) => {
        if (linear.rank === 0) return;
        const column = this.#columns.get(linear)!;
        const mean = (a: Tensor, to: number) =>
          segmentMean(this.dev, samples, { cu, q: linear.rank, a, out: out.columns(to, linear.rank) });
        mean(h!, column);
        mean(gh, this.#Q + column);
      },
    };
  }
}
