/** Which matrices get adapters, how they start, and their way to and from PEFT's format. */
import type { Config } from "../config/schema.ts";
import { Rng } from "../data/random.ts";
import { UserError } from "../errors.ts";
import type { LoadedPeftAdapter, PeftAdapter } from "../export/peft.ts";
import type { ModelConfig } from "../model/config.ts";
import type { AdaptedMatrix, AdapterOf } from "../model/linear.ts";
import { linearNames } from "../model/names.ts";
import { didYouMean } from "../nearest.ts";

type AdapterConfig = Config["adapter"];

/** s = alpha / r, or alpha / √r for rank-stabilised LoRA. */
export function adapterScale({ rank, alpha, rslora }: { rank: number; alpha: number; rslora: boolean }): number {
  return alpha / (rslora ? Math.sqrt(rank) : rank);
}

/**
 * Rank and scale by module name, from `adapter` of a configuration.
 * @throws {UserError} when a target names no matrix of the model
 */
export function adapterOf(config: AdapterConfig, { family }: Pick<ModelConfig, "family">): AdapterOf {
  const names = linearNames(family);
  const targets = config.targets === "all-linear" ? names : config.targets;
  for (const target of targets) {
    const last = target.split(".").at(-1)!;
    if (!names.includes(last)) {
      throw new UserError(
        `Cannot use adapter.targets: the model has no matrix '${target}'.${didYouMean(last, names)} Names: ${names.join(", ")}`,
        2,
      );
    }
  }
  const scale = adapterScale(config);
  return (name) => targets.some((target) => name === target || name.endsWith(`.${target}`)) ? { rank: config.rank, scale } : NONE;
}

const NONE = { rank: 0, scale: 1 };

/** No adapters at all: the base model. */
export const noAdapters: AdapterOf = () => NONE;

/** Rank and scale by module name of a saved adapter. */
export function adapterOfPeft(adapter: LoadedPeftAdapter): AdapterOf {
  const modules = new Map(adapter.modules.map((module) => [module.name, module]));
  return (name) => {
    const module = modules.get(name);
    if (!module) return NONE;
    const { rank, alpha } = module;
    return { rank, scale: adapterScale({ rank, alpha, rslora: adapter.rslora }) };
  };
}

/**
 * The start of θ [P]: B = 0 and A uniform, within ±1/√dIn (PEFT: kaiming with a = √5) or ±1/√r (the authors' code,
 * algorithms §1.5).
 */
export function initialAdapters(
  matrices: readonly AdaptedMatrix[],
  P: number,
  { init, seed }: { init: "kaiming" | "reference"; seed: number },
): Float32Array<ArrayBuffer> {
  const theta = new Float32Array(P);
  for (const { name, rank, dIn, aOffset } of matrices) {
    const rng = new Rng(seed, `adapter ${name}`);
    const bound = 1 / Math.sqrt(init === "kaiming" ? dIn : rank);
    for (let j = 0; j < rank * dIn; j++) theta[aOffset + j] = bound * (2 * rng.uniform() - 1);
  }
  return theta;
}

/** Adapter gradients or weights [P] as PEFT names and shapes them. */
export function toPeft(
  theta: Float32Array<ArrayBuffer>,
  matrices: readonly AdaptedMatrix[],
  { model, adapter }: { model: string; adapter: AdapterConfig },
): PeftAdapter {
  const targets = [...new Set(matrices.map(({ name }) => name.split(".").at(-1)!))];
  return {
    model,
    rank: adapter.rank,
    alpha: adapter.alpha,
    rslora: adapter.rslora,
    targets: adapter.targets === "all-linear" ? targets : adapter.targets,
    modules: matrices.map(({ name, rank, dIn, dOut, aOffset, bOffset }) => ({
      name,
      A: theta.subarray(aOffset, aOffset + rank * dIn),
      B: theta.subarray(bOffset, bOffset + dOut * rank),
      rank,
    })),
  };
}

/**
 * θ [P] out of a saved adapter.
 * @throws {UserError} when the adapter belongs to another model
 */
export function fromPeft(
  adapter: LoadedPeftAdapter,
  matrices: readonly AdaptedMatrix[],
  { P, config, dir }: { P: number; config: ModelConfig; dir: string },
): Float32Array<ArrayBuffer> {
  const theta = new Float32Array(P);
  const known = new Map(matrices.map((matrix) => [matrix.name, matrix]));
  for (const { name, A, B, inFeatures, outFeatures } of adapter.modules) {
    const matrix = known.get(name);
    if (!matrix) {
      const shape = `${config.L} layers of ${linearNames(config.family).join(", ")}`;
      throw new UserError(
        `Cannot use the adapter in ${dir}: the model has no matrix '${name}' (it has ${shape}). Use the model it was trained on`,
        2,
      );
    }
    if (matrix.dIn !== inFeatures || matrix.dOut !== outFeatures) {
      throw new UserError(
        `Cannot use the adapter in ${dir}: it adapts ${name} as [${outFeatures}, ${inFeatures}], but the model's is ` +
          `[${matrix.dOut}, ${matrix.dIn}]. Use the model it was trained on`,
        2,
      );
    }
    theta.set(A, matrix.aOffset);
    theta.set(B, matrix.bOffset);
  }
  return theta;
}
