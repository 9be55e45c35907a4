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
import type { BatchCursor, CursorState } from "../data/order.ts";
import type { Sample } from "../data/encode.ts";
import type { Similarity } from "../reweight/similarity.ts";
import { effectiveSampleSize, sampleWeights, uniform, type WeightMap } from "../reweight/weights.ts";
import type { Engine } from "./engine.ts";
import { passOptions } from "./build.ts";
import { type FaultOptions, type FaultState, FaultWatch } from "./faults.ts";
import {
  type Batch,
  batchLoss,
  concatenate,
  type LossNormalisation,
  normalise,
  notFinite,
  reportOf,
  type StepReport,
  UNWEIGHTED,
} from "./pass.ts";
import { type Pass, passesAt, type PassOptions } from "./plan.ts";
import { SampleStatistics } from "./statistics.ts";

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
  /** The first faulty batch ends the run when omitted. */
  readonly faults?: FaultOptions;
}

/** The loop that a configuration asks for, `steps` optimizer steps long. */
export function trainerOptions(config: Config, steps: number): TrainerOptions {
  const { train, reweight, optimizer, faults } = config;
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
    faults: { spike: faults.spike, giveUp: faults.give_up },
  };
}

/** Where the loop stands between two passes; beside θ, the moments, the similarity's state and the statistics. */
export interface TrainerState {
  /** Optimizer steps made. */
  readonly step: number;
  /** Training batches consumed, in all and of the epoch `epoch`. */
  readonly consumed: number;
  readonly epoch: number;
  readonly in_epoch: number;
  /** Passes made of those due with the next training batch. */
  readonly passes: number;
  /** Batches in a row whose weights were all 0. */
  readonly skips: number;
  readonly train_order: CursorState;
  readonly validation_order: CursorState | null;
  readonly faults: FaultState;
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
  #passes = 0;
  #skips = 0;
  /** Why no pass follows the last one. */
  #end: UserError | null = null;
  readonly #watch: FaultWatch;

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
    this.#watch = new FaultWatch(options.faults ?? { spike: 0, giveUp: 1 });
  }

  /** Yields after every pass. */
  *run(): Generator<StepReport> {
    for (let report = this.next(); report !== null; report = this.next()) yield report;
  }

  /** Whether no pass is left. */
  get done(): boolean {
    return this.#due() === null;
  }

  /**
   * Makes the next pass.
   * @returns null when none is left
   * @throws whatever `engine.beforePass` throws; the pass counts as not begun then
   * @throws {UserError} when the run cannot go on
   */
  next(): StepReport | null {
    if (this.#end) throw this.#end;
    const due = this.#due();
    if (due === null) return null;
    const { trainOrder, validationOrder } = this.data;
    const train = trainOrder.state, validation = validationOrder?.state;
    try {
      const report = due === "refresh" ? this.#refresh() : this.#train(due);
      this.#advance(due);
      return report;
    } catch (error) {
      trainOrder.restore(train);
      if (validation) validationOrder!.restore(validation);
      throw error;
    }
  }

  /** The pass that comes next. */
  #due(): Pass | null {
    const { finishBatch, steps } = this.options;
    const planned = this.#planned();
    // A resumed run whose plan was allowed to change may have fewer passes here than it has made.
    const pass = planned[Math.min(this.#passes, planned.length - 1)]!;
    if (this.step >= steps && !(this.#passes > 0 && pass !== "refresh" && finishBatch)) return null;
    // After a faulty first validation batch there is nothing to compare with yet.
    return pass === "weighted" && !this.similarity!.ready ? "refresh" : pass;
  }

  /** The passes due before and with the next training batch. */
  #planned(): Pass[] {
    const { epoch } = this.data.trainOrder.state;
    if (epoch !== this.#epoch) this.#inEpoch = 0;
    this.#epoch = epoch;
    return passesAt({ consumed: this.#consumed, inEpoch: this.#inEpoch }, this.options);
  }

  #advance(made: Pass): void {
    if (made === "refresh") {
      // One that was made because nothing was there to compare with stands for none of those planned.
      if (this.#planned()[this.#passes] === "refresh") this.#passes++;
      return;
    }
    this.#passes = 0;
    this.#consumed++;
    this.#inEpoch++;
  }

  /** Where the loop stands, for a checkpoint. */
  get state(): TrainerState {
    return {
      step: this.step,
      consumed: this.#consumed,
      epoch: this.#epoch,
      in_epoch: this.#inEpoch,
      passes: this.#passes,
      skips: this.#skips,
      train_order: this.data.trainOrder.state,
      validation_order: this.data.validationOrder?.state ?? null,
      faults: this.#watch.state,
    };
  }

  /** Continues where another loop of the same configuration stood. */
  restore(state: TrainerState): void {
    this.step = state.step;
    this.#consumed = state.consumed;
    this.#epoch = state.epoch;
    this.#inEpoch = state.in_epoch;
    this.#passes = state.passes;
    this.#skips = state.skips;
    this.data.trainOrder.restore(state.train_order);
    if (state.validation_order) this.data.validationOrder?.restore(state.validation_order);
    this.#watch.restore(state.faults);
  }

  /** A validation batch: its gradient is kept by the similarity, and trained on if so configured. */
  #refresh(): StepReport {
    const { engine, options } = this;
    const order = this.data.validationOrder!;
    const { epoch } = order.state;
    const indices = Array.from(order.next());
    const samples = indices.map((i) => this.data.validation[i]!);
    const normalisation = normalise(options.validationLoss, samples);
    const losses = engine.sumGradients(samples, normalisation, {
      observe: (observed) => this.similarity?.observeValidation(observed) ?? null,
    });
    const lr = this.#learningRate();
    const about = { epoch, samples, indices, losses, lr, loss: options.validationLoss };
    const fault = notFinite(losses, samples, "validation");
    if (fault !== null) return this.#faulty("validation", about, fault);
    // The update comes first: it refuses a gradient that would spoil what the similarity keeps. It leaves the gradient as it is.
    const made = options.trainOn ? this.#update(lr) : { norm: null };
    if ("fault" in made) return this.#faulty("validation", about, made.fault);
    this.similarity?.refresh(engine.grad!.rows, samples.length);
    this.#watch.sound(null);
    return { ...reportOf("validation", this.step, { ...about, gradNorm: made.norm }), ...UNWEIGHTED };
  }

  #train(pass: "plain" | "weighted"): StepReport {
    const order = this.data.trainOrder;
    const { epoch } = order.state;
    const batches = Array.from({ length: this.options.accumulate }, () => Array.from(order.next()));
    return pass === "plain" ? this.#plain(batches, epoch) : this.#weighted(batches, epoch);
  }

  /** An ordinary step: one normalisation over the whole accumulated batch. */
  #plain(batches: number[][], epoch: number): StepReport {
    const { engine, options } = this;
    const indices = batches.flat();
    const samples = indices.map((i) => this.data.train[i]!);
    const normalisation = normalise(options.loss, samples);
    const parts = batches.map((batch, micro) =>
      engine.sumGradients(batch.map((i) => this.data.train[i]!), normalisation, { accumulate: micro > 0 })
    );
    const losses = concatenate(parts);
    const lr = this.#learningRate();
    const about = { epoch, samples, indices, losses, lr, loss: options.loss };
    const fault = this.#faultOf(about);
    if (fault !== null) return this.#faulty("train", about, fault);
    const made = this.#update(lr);
    if ("fault" in made) return this.#faulty("train", about, made.fault);
    const report = reportOf("train", this.step, { ...about, gradNorm: made.norm });
    this.#watch.sound(report.loss);
    this.statistics.note(indices, { losses: report.losses, weights: uniform(samples.length), similarities: null });
    return { ...report, ...UNWEIGHTED };
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
    const lr = this.#learningRate();
    const about = { epoch, samples, indices, losses, lr, loss: "sample-mean" as const };
    const fault = this.#faultOf(about);
    if (fault !== null) return this.#faulty("train", about, fault);
    const similarities = similarity.similarities(samples.length, losses.tokens);
    const odd = similarities.findIndex((value) => !Number.isFinite(value));
    if (odd >= 0) return this.#faulty("train", about, `the similarity of the training sample ${samples[odd]!.id} is no number`);
    const weights = sampleWeights(similarities, options.weights);
    const ess = effectiveSampleSize(weights);
    let gradNorm: number | null = null;
    if (ess > 0) {
      engine.combineStaged(weights);
      const made = this.#update(lr);
      if ("fault" in made) return this.#faulty("train", about, made.fault);
      gradNorm = made.norm;
      this.#skips = 0;
    } else if (++this.#skips >= MAX_SKIPS) {
      throw new UserError(
        `Cannot continue at step ${this.step}: all weights of ${MAX_SKIPS} training batches in a row are 0, no sample resembles the ` +
          `validation data. Use reweight.weights: mix, a larger train.batch_size, or other validation data`,
      );
    }
    const report = reportOf("train", this.step, { ...about, gradNorm });
    this.#watch.sound(report.loss);
    this.statistics.note(indices, { losses: report.losses, weights, similarities });
    return { ...report, similarities, weights, effectiveSampleSize: ess, skipped: ess === 0, fault: null };
  }

  /** What is wrong with the losses of a training batch; null when nothing is. */
  #faultOf({ samples, losses, loss }: Batch): string | null {
    return notFinite(losses, samples, "training") ?? this.#watch.spike(batchLoss(losses, loss));
  }

  /** Consumes a batch without a step. When there were too many such in a row, the run ends behind the report of the last. */
  #faulty(kind: "train" | "validation", about: Batch, fault: string): StepReport {
    const first = this.#watch.faulty(fault);
    if (first !== null) {
      const { giveUp } = this.#watch.options;
      this.#end = new UserError(
        `Cannot continue at step ${
          this.step + 1
        }: ${first}. Lower optimizer.lr (now ${this.options.schedule.lr}) or check that ` +
          `${first.includes(" sample ") ? "sample" : "batch"} and the model's weights; ` +
          `${giveUp} ${giveUp === 1 ? "batch" : "batches in a row"} could not be used (faults.give_up)`,
      );
    }
    return { ...reportOf(kind, this.step, { ...about, gradNorm: null }), ...UNWEIGHTED, skipped: true, fault };
  }

  #learningRate(): number {
    return learningRate(this.step, { ...this.options.schedule, total: this.options.steps });
  }

  /** Clip and update by `engine.grad`; the adapters follow. A gradient that is no number changes nothing. */
  #update(lr: number): { norm: number } | { fault: string } {
    let norm: number;
    try {
      norm = this.adam.update(this.engine.theta, this.engine.grad!.rows, lr);
    } catch (error) {
      if (error instanceof RangeError) return { fault: error.message };
      throw error;
    }
    this.engine.refresh();
    this.step++;
    return { norm };
  }
}
