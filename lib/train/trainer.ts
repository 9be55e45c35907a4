/**
 * The training loop of plain LoRA, the MIX control and META-LORA.
 *
 * META-LORA in one backward pass a batch (algorithms §5.4): every sample's loss is seeded with unit weight, the per-sample
 * gradients ∇ℓ_i are staged, similarities u_i become weights w_i, and Σ w_i ∇ℓ_i is the gradient that Adam gets.
 */
import type { Config } from "../config/schema.ts";
import type { Adam } from "../optim/adam.ts";
import { learningRate, type ScheduleShape } from "../optim/schedule.ts";
import { UserError } from "../errors.ts";
import type { BatchCursor } from "../data/order.ts";
import type { Sample } from "../data/encode.ts";
import type { Similarity } from "../reweight/similarity.ts";
import { effectiveSampleSize, sampleWeights, uniform, type WeightMap } from "../reweight/weights.ts";
import { labelledTokens, type Normalisation } from "./batch.ts";
import type { Engine, SampleLosses } from "./engine.ts";
import { passOptions } from "./build.ts";
import { passesAt, type PassOptions } from "./plan.ts";
import { SampleStatistics } from "./statistics.ts";

/** How the loss of a batch is normalised. */
export type LossNormalisation = "token-mean" | "sample-mean";

/** Everything the loop needs beside engine and data. */
export interface TrainerOptions extends PassOptions {
  readonly steps: number;
  readonly accumulate: number;
  /** Loss of plain steps. */
  readonly loss: LossNormalisation;
  /** Loss of validation batches. */
  readonly validationLoss: LossNormalisation;
  readonly trainOn: boolean;
  /** A training batch whose validation batch made the last step is still trained on (at rate 0), as in the authors' loop. */
  readonly finishBatch: boolean;
  readonly weights: { weights: WeightMap; lambda: number; temperature: number };
  readonly schedule: { lr: number; schedule: ScheduleShape; warmup: number };
}

/** The loop that a configuration asks for, `steps` optimizer steps long. */
export function trainerOptions(config: Config, steps: number): TrainerOptions {
  const { train, reweight, optimizer } = config;
  const { weights, lambda, temperature, validation, preset, method } = reweight;
  // The authors' code differentiates Hugging Face's batch loss on plain steps and on validation batches.
  const loss = preset === "reference" ? "token-mean" : train.loss;
  return {
    ...passOptions(config),
    steps,
    accumulate: train.accumulate,
    loss,
    validationLoss: method === "meta-lora" && preset !== "reference" ? "sample-mean" : loss,
    trainOn: method === "mix" || validation.train_on,
    finishBatch: preset === "reference",
    weights: { weights, lambda, temperature },
    schedule: { lr: optimizer.lr, schedule: optimizer.schedule, warmup: optimizer.warmup },
  };
}

/** What happened in one pass. */
export interface StepReport {
  /** Optimizer steps made so far, this one included. */
  readonly step: number;
  readonly kind: "train" | "validation";
  readonly epoch: number;
  readonly lr: number;
  /** Unweighted loss of the batch in its normalisation, nats. */
  readonly loss: number;
  /** Gradient norm before clipping; null when no step was taken. */
  readonly gradNorm: number | null;
  /** Tokens that went through the model. */
  readonly tokens: number;
  /** Training or validation samples, by index. */
  readonly samples: readonly number[];
  readonly losses: readonly number[];
  readonly similarities: ArrayLike<number> | null;
  readonly weights: ArrayLike<number> | null;
  /** 1 / Σ w². */
  readonly effectiveSampleSize: number | null;
  /** Every weight was 0: the batch is consumed, no step was taken. */
  readonly skipped: boolean;
}

const MAX_SKIPS = 200; // in a row: a third of all small batches may be skipped with clip, so this many mean that nothing helps

/** Runs passes until the planned number of optimizer steps is made. */
export class Trainer {
  readonly statistics: SampleStatistics;
  /** Optimizer steps made. */
  step = 0;
  #consumed = 0;
  #epoch = 0;
  #inEpoch = 0;
  #skips = 0;

  constructor(
    readonly engine: Engine,
    readonly adam: Adam,
    readonly similarity: Similarity | null,
    readonly data: {
      train: readonly Sample[];
      validation: readonly Sample[];
      trainOrder: BatchCursor;
      validationOrder: BatchCursor | null;
    },
    readonly options: TrainerOptions,
  ) {
    this.statistics = new SampleStatistics(data.train.length);
  }

  /** Yields after every pass. */
  *run(): Generator<StepReport> {
    const { trainOrder } = this.data;
    while (this.step < this.options.steps) {
      const { epoch } = trainOrder.state;
      if (epoch !== this.#epoch) this.#inEpoch = 0;
      this.#epoch = epoch;
      const at = { consumed: this.#consumed, inEpoch: this.#inEpoch };
      for (const pass of passesAt(at, this.options)) {
        if (this.step >= this.options.steps && !(pass !== "refresh" && this.options.finishBatch)) return;
        if (pass === "refresh") yield this.#refresh();
        else yield this.#train(pass);
      }
    }
  }

  /** Where the run stands, for a checkpoint. */
  get state() {
    return {
      step: this.step,
      consumed: this.#consumed,
      in_epoch: this.#inEpoch,
      train_order: this.data.trainOrder.state,
      validation_order: this.data.validationOrder?.state ?? null,
    };
  }

  /** A validation batch: its gradient is kept by the similarity, and trained on if so configured. */
  #refresh(): StepReport {
    const { engine, options } = this;
    const order = this.data.validationOrder!;
    const { epoch } = order.state;
    const indices = Array.from(order.next());
    const samples = indices.map((i) => this.data.validation[i]!);
    const normalisation = normalise(options.validationLoss, samples);
    const grad = engine.grad!;
    const losses = engine.sumGradients(samples, normalisation, {
      out: grad,
      observe: (observed) => this.similarity?.observeValidation(observed) ?? null,
    });
    this.#requireFinite(losses, samples, "validation");
    this.similarity?.refresh(grad, samples.length);
    const lr = this.#learningRate();
    const gradNorm = options.trainOn ? this.#update(lr) : null;
    return {
      ...this.#report("validation", { epoch, samples, indices, losses, lr, gradNorm, loss: options.validationLoss }),
      similarities: null,
      weights: null,
      effectiveSampleSize: null,
      skipped: false,
    };
  }

  #train(pass: "plain" | "weighted"): StepReport {
    const order = this.data.trainOrder;
    const { epoch } = order.state;
    const batches = Array.from({ length: this.options.accumulate }, () => Array.from(order.next()));
    this.#consumed++;
    this.#inEpoch++;
    return pass === "plain" ? this.#plain(batches, epoch) : this.#weighted(batches, epoch);
  }

  /** An ordinary step: one normalisation over the whole accumulated batch. */
  #plain(batches: number[][], epoch: number): StepReport {
    const { engine, options } = this;
    const indices = batches.flat();
    const samples = indices.map((i) => this.data.train[i]!);
    const normalisation = normalise(options.loss, samples);
    const parts = batches.map((batch, micro) =>
      engine.sumGradients(batch.map((i) => this.data.train[i]!), normalisation, { out: engine.grad!, accumulate: micro > 0 })
    );
    const losses = concatenate(parts);
    this.#requireFinite(losses, samples, "training");
    const lr = this.#learningRate();
    const gradNorm = this.#update(lr);
    const report = this.#report("train", { epoch, samples, indices, losses, lr, gradNorm, loss: options.loss });
    const n = samples.length;
    this.statistics.note(indices, { losses: report.losses, weights: uniform(n), similarities: null });
    return { ...report, similarities: null, weights: null, effectiveSampleSize: null, skipped: false };
  }

  /** A META-LORA step: stage, compare, weigh, combine. */
  #weighted(batches: number[][], epoch: number): StepReport {
    const { engine, options } = this;
    const similarity = this.similarity!;
    const indices = batches.flat();
    const samples = indices.map((i) => this.data.train[i]!);
    let first = 0;
    const parts = batches.map((batch) => {
      const part = engine.stageGradients(batch.map((i) => this.data.train[i]!), {
        first,
        observe: (observed) => similarity.observeTraining(observed),
      });
      first += batch.length;
      return part;
    });
    const losses = concatenate(parts);
    this.#requireFinite(losses, samples, "training");
    const similarities = similarity.similarities(samples.length, losses.tokens);
    const weights = sampleWeights(similarities, options.weights);
    const ess = effectiveSampleSize(weights);
    const lr = this.#learningRate();
    let gradNorm: number | null = null;
    if (ess > 0) {
      engine.combineStaged(weights);
      gradNorm = this.#update(lr);
      this.#skips = 0;
    } else if (++this.#skips >= MAX_SKIPS) {
      throw new UserError(
        `Cannot continue at step ${this.step}: all weights of ${MAX_SKIPS} training batches in a row are 0, no sample resembles the ` +
          `validation data. Use reweight.weights: mix, a larger train.batch_size, or other validation data`,
      );
    }
    const report = this.#report("train", { epoch, samples, indices, losses, lr, gradNorm, loss: "sample-mean" });
    this.statistics.note(indices, { losses: report.losses, weights, similarities });
    return { ...report, similarities, weights, effectiveSampleSize: ess, skipped: ess === 0 };
  }

  #learningRate(): number {
    return learningRate(this.step, { ...this.options.schedule, total: this.options.steps });
  }

  /** Clip and update by `engine.grad`; the adapters follow. */
  #update(lr: number): number {
    let norm: number;
    try {
      norm = this.adam.update(this.engine.theta, this.engine.grad!, lr);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      throw new UserError(
        `Cannot continue at step ${
          this.step + 1
        }: ${error.message}. Lower optimizer.lr (now ${this.options.schedule.lr}) or check the data`,
      );
    }
    this.engine.model.refresh();
    this.step++;
    return norm;
  }

  #report(
    kind: "train" | "validation",
    { epoch, samples, indices, losses, lr, gradNorm, loss }: {
      epoch: number;
      samples: readonly Sample[];
      indices: readonly number[];
      losses: SampleLosses;
      lr: number;
      gradNorm: number | null;
      loss: LossNormalisation;
    },
  ) {
    const means = Array.from(losses.sums, (sum, i) => sum / losses.tokens[i]!);
    const total = losses.sums.reduce((a, b) => a + b, 0);
    const labelled = losses.tokens.reduce((a, b) => a + b, 0);
    return {
      step: this.step,
      kind,
      epoch,
      lr,
      loss: loss === "token-mean" ? total / labelled : means.reduce((a, b) => a + b, 0) / means.length,
      gradNorm,
      tokens: samples.reduce((sum, { ids }) => sum + ids.length, 0),
      samples: indices,
      losses: means,
    };
  }

  #requireFinite({ sums }: SampleLosses, samples: readonly Sample[], which: string): void {
    const bad = samples.findIndex((_, i) => !Number.isFinite(sums[i]!));
    if (bad < 0) return;
    throw new UserError(
      `Cannot continue at step ${this.step + 1}: the loss of the ${which} sample ${samples[bad]!.id} is ${sums[bad]}. ` +
        `Lower optimizer.lr (now ${this.options.schedule.lr}) or check that sample and the model's weights`,
    );
  }
}

function normalise(loss: LossNormalisation, samples: readonly Sample[]): Normalisation {
  if (loss === "sample-mean") return { per: "sample", samples: samples.length };
  return { per: "token", tokens: samples.reduce((sum, sample) => sum + labelledTokens(sample), 0) };
}

function concatenate(parts: readonly SampleLosses[]): SampleLosses {
  return {
    sums: Float64Array.from(parts.flatMap(({ sums }) => Array.from(sums))),
    tokens: parts.flatMap(({ tokens }) => tokens),
    exact: parts.flatMap(({ exact }) => exact),
  };
}
