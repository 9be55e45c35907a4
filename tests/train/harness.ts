/** Shared by the tests that run the real model stories260K against PyTorch fixtures. */
import { Device } from "../../ffi/device.ts";
import { Native } from "../../ffi/native.ts";
import type { ModelConfig } from "../../lib/model/config.ts";
import { loadModelConfig } from "../../lib/model/config.ts";
import type { AdaptedMatrix, AdapterOf } from "../../lib/model/linear.ts";
import { loadWeights } from "../../lib/model/load.ts";
import { openCheckpoint } from "../../lib/tensor/checkpoint.ts";
import { openSafetensors } from "../../lib/tensor/safetensors.ts";
import { toFloat32 } from "../../lib/tensor/dtypes.ts";
import type { Tokens } from "../../lib/train/batch.ts";
import { Engine, limitsFor } from "../../lib/train/engine.ts";

Native.load("cpu"); // before any test, whose sanitizer would take the library for a leak

const MODEL = new URL("../../../shared/models/stories260K", import.meta.url).pathname;

/** Whether the real model lies beside the project; tests that need it are skipped with a message otherwise. */
export const hasModel = (() => {
  try {
    return Deno.statSync(MODEL).isDirectory;
  } catch {
    console.log("skipped: ../shared/models/stories260K is not here");
    return false;
  }
})();

export const modelConfig = (): ModelConfig => loadModelConfig(MODEL);

/** Loads stories260K's weights into a laid-out engine. */
export function loadStories(dev: Device, engine: Engine): void {
  using checkpoint = openCheckpoint(MODEL);
  engine.allocate();
  loadWeights(dev, engine.model, checkpoint);
}

/** JSON of a fixture. */
// deno-lint-ignore no-explicit-any
export function fixtureJson(name: string): any {
  return JSON.parse(Deno.readTextFileSync(new URL(`../fixtures/${name}.json`, import.meta.url)));
}

/** Tensors of a fixture, widened to f32. */
export class FixtureTensors implements Disposable {
  readonly #file;

  constructor(name: string) {
    this.#file = openSafetensors(new URL(`../fixtures/${name}.safetensors`, import.meta.url).pathname);
  }

  has(name: string): boolean {
    return this.#file.tensors.has(name);
  }

  get names(): string[] {
    return [...this.#file.tensors.keys()];
  }

  get(name: string): Float32Array<ArrayBuffer> {
    const info = this.#file.tensors.get(name);
    if (!info) throw new Error(`the fixture has no tensor ${name}`);
    const bytes = new Uint8Array(info.bytes);
    this.#file.read(name, bytes);
    return toFloat32(info.dtype, bytes);
  }

  /** f64 tensors, unrounded. */
  doubles(name: string): Float64Array {
    const info = this.#file.tensors.get(name);
    if (!info) throw new Error(`the fixture has no tensor ${name}`);
    const bytes = new Uint8Array(info.bytes);
    this.#file.read(name, bytes);
    return info.dtype === "F64" ? new Float64Array(bytes.buffer) : Float64Array.from(toFloat32(info.dtype, bytes));
  }

  /** θ out of tensors named as PEFT names them behind a prefix; where the fixture has none, `missing` serves. */
  theta(
    prefix: string,
    matrices: readonly AdaptedMatrix[],
    P: number,
    { missing }: { missing?: Float32Array<ArrayBuffer> } = {},
  ): Float32Array<ArrayBuffer> {
    const theta = missing ? missing.slice() : new Float32Array(P);
    for (const { name, aOffset, bOffset } of matrices) {
      if (missing && !this.has(`${prefix}/base_model.model.${name}.lora_A.weight`)) continue;
      theta.set(this.get(`${prefix}/base_model.model.${name}.lora_A.weight`), aOffset);
      theta.set(this.get(`${prefix}/base_model.model.${name}.lora_B.weight`), bOffset);
    }
    return theta;
  }

  [Symbol.dispose](): void {
    this.#file[Symbol.dispose]();
  }
}

/** A sample as fixtures store it. */
export function tokensOf({ ids, labels }: { ids: number[]; labels: number[] }): Tokens {
  return { ids: Int32Array.from(ids), labels: Int32Array.from(labels) };
}

/** Adapters of one rank and scale on the named matrices. */
export function uniformAdapters(targets: readonly string[], rank: number, alpha: number): AdapterOf {
  return (name) => targets.includes(name.split(".").at(-1)!) ? { rank, scale: alpha / rank } : { rank: 0, scale: 1 };
}

/** A training engine over samples, laid out but not allocated. */
export function trainingEngine(
  dev: Device,
  samples: readonly Tokens[],
  { adapterOf, batchSize, staged = 0, padding = null }: {
    adapterOf: AdapterOf;
    batchSize: number;
    staged?: number;
    padding?: { id: number } | null;
  },
): Engine {
  const limits = limitsFor(samples, samples, { batchSize, padded: padding !== null });
  return new Engine(dev, modelConfig(), { adapterOf, weightDtype: "f32", limits, purpose: "train", staged, padding });
}

/** Largest |a − b| relative to the largest |b|. */
export function relativeError(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let difference = 0, scale = 0;
  for (let i = 0; i < b.length; i++) {
    difference = Math.max(difference, Math.abs(a[i]! - b[i]!));
    scale = Math.max(scale, Math.abs(b[i]!));
  }
  return difference / (scale || 1);
}

/** Asserts closeness and says by how much it fails. */
export function assertClose(what: string, actual: ArrayLike<number>, expected: ArrayLike<number>, tolerance: number): void {
  if (actual.length !== expected.length) throw new Error(`${what}: ${actual.length} values, expected ${expected.length}`);
  const error = relativeError(actual, expected);
  if (!(error <= tolerance)) {
    throw new Error(
      `${what}: relative error ${error.toExponential(2)} exceeds ${tolerance} (${Array.from(actual).slice(0, 4)} … for ${
        Array.from(expected).slice(0, 4)
      } …)`,
    );
  }
}

/** Both factors of every adapter: name, and range in θ. */
export function factors(adapters: Engine["adapters"]): { name: string; offset: number; length: number }[] {
  return adapters.flatMap(({ name, aOffset, bOffset, rank, dIn, dOut }) => [
    { name: `${name}.A`, offset: aOffset, length: rank * dIn },
    { name: `${name}.B`, offset: bOffset, length: rank * dOut },
  ]);
}
