/**
 * AdamW over the flat vector of adapter parameters (Kingma & Ba 2014; Loshchilov & Hutter 2019). TypeScript owns the
 * hyperparameters, the step count, bias correction and clipping. The update itself runs where `placement` says: on host
 * arrays in TypeScript, or as one fused native operator on the device. Both do the same arithmetic in double precision
 * in the same order, so that they give the same bits.
 */
import type { Device, Tensor } from "../../ffi/device.ts";
import { adam, type AdamNumbers, download, downloadRow, type Pieces, rowDots, upload } from "../../ffi/operators.ts";
import type { Arena } from "../tensor/arena.ts";

/** Hyperparameters, from `optimizer` of the configuration. */
export interface AdamOptions {
  readonly betas: readonly [number, number];
  readonly eps: number;
  readonly weightDecay: number;
  /** Largest global gradient norm; 0 does not clip. */
  readonly clip: number;
  readonly placement: "device" | "host";
}

/** First and second moment, wherever they live. */
type Moments =
  | { placement: "device"; m: Tensor; v: Tensor }
  | { placement: "host"; m: Float32Array<ArrayBuffer>; v: Float32Array<ArrayBuffer> };

/** The optimizer of P adapter parameters. */
export class Adam {
  /** Updates made so far. */
  step = 0;
  readonly #moments: Moments;
  readonly #sums: Tensor;
  /** Host copies for `placement: host`. */
  readonly #host: { theta: Float32Array<ArrayBuffer>; grad: Float32Array<ArrayBuffer> } | null;

  constructor(readonly dev: Device, arena: Arena, readonly P: number, readonly options: AdamOptions) {
    if (options.placement === "device") {
      const moment = () => arena.reserve("optimizer", 1, P);
      this.#moments = { placement: "device", m: moment(), v: moment() };
      this.#host = null;
    } else {
      this.#moments = { placement: "host", m: new Float32Array(P), v: new Float32Array(P) };
      this.#host = { theta: new Float32Array(P), grad: new Float32Array(P) };
    }
    this.#sums = arena.reserve("workspace", 1, 1, { dtype: "f64" });
  }

  /** Bytes of host memory that the moments and their working copies take. */
  static hostBytes(P: number, placement: "device" | "host"): number {
    return placement === "host" ? 16 * P : 0;
  }

  /**
   * One update: clips grad, whose first row [P] counts, to the global norm and moves theta [P].
   * @returns the gradient norm before clipping
   * @throws {RangeError} when the norm is not finite; theta is untouched then
   */
  update(theta: Tensor, grad: Tensor | Pieces, lr: number): number {
    const [beta1, beta2] = this.options.betas;
    const { eps, weightDecay, clip } = this.options;
    const norm = Math.sqrt(rowDots(this.dev, 1, { a: grad, b: null, out: this.#sums })[0]!);
    if (!Number.isFinite(norm)) throw new RangeError(`the gradient norm is ${norm}`);
    // torch.nn.utils.clip_grad_norm_ divides by (norm + 1e-6)
    const gradScale = clip > 0 ? Math.min(1, clip / (norm + 1e-6)) : 1;
    this.step++;
    const bias1 = 1 - beta1 ** this.step, bias2 = 1 - beta2 ** this.step;
    const numbers = { lr, beta1, beta2, eps, weightDecay, bias1, bias2, gradScale };
    if (this.#moments.placement === "device") {
      adam(this.dev, { theta, grad, m: this.#moments.m, v: this.#moments.v }, numbers);
    } else {
      const host = this.#host!;
      download(this.dev, host.theta, theta);
      downloadRow(this.dev, host.grad, grad);
      adamOnHost(host.theta, host.grad, this.#moments.m, this.#moments.v, numbers);
      upload(this.dev, theta, host.theta);
    }
    return norm;
  }

  /** Bias correction of the second moment at the current step. */
  get bias2(): number {
    return 1 - this.options.betas[1] ** this.step;
  }

  /** The second moment on the device, for `similarity: exact-adam`; uploads it into `scratch` when it lives on the host. */
  secondMoment(scratch: Tensor): Tensor {
    if (this.#moments.placement === "device") return this.#moments.v;
    upload(this.dev, scratch, this.#moments.v);
    return scratch;
  }

  /** Continues from a saved state. The arena must be allocated. */
  restore({ step, m, v }: { step: number; m: Float32Array<ArrayBuffer>; v: Float32Array<ArrayBuffer> }): void {
    this.step = step;
    const moments = this.#moments;
    if (moments.placement === "host") {
      moments.m.set(m);
      moments.v.set(v);
    } else {
      upload(this.dev, moments.m, m);
      upload(this.dev, moments.v, v);
    }
  }

  /** Copies of both moments, for a checkpoint. */
  state(): { m: Float32Array<ArrayBuffer>; v: Float32Array<ArrayBuffer> } {
    const copy = (moment: Tensor | Float32Array<ArrayBuffer>) => {
      if (moment instanceof Float32Array) return moment.slice();
      const host = new Float32Array(this.P);
      download(this.dev, host, moment);
      return host;
    };
    return { m: copy(this.#moments.m), v: copy(this.#moments.v) };
  }
}

/** The update of metalora.h's ml_adam on host arrays, element by element in double precision. */
export function adamOnHost(
  theta: Float32Array,
  grad: Float32Array,
  m: Float32Array,
  v: Float32Array,
  { lr, beta1, beta2, eps, weightDecay, bias1, bias2, gradScale }: AdamNumbers,
): void {
  for (let j = 0; j < theta.length; j++) {
    const g = gradScale * grad[j]!;
    m[j] = beta1 * m[j]! + (1 - beta1) * g;
    v[j] = beta2 * v[j]! + (1 - beta2) * (g * g);
    const decayed = theta[j]! - lr * weightDecay * theta[j]!;
    theta[j] = decayed - lr * (m[j]! / bias1) / (Math.sqrt(v[j]! / bias2) + eps);
  }
}
