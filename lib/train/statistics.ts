/** What a run learned about every training sample: the lines of weights.jsonl. */

/** One sample's history. */
export interface SampleRecord {
  seen: number;
  /** Sum and last of its weights; weights of a batch sum to 1. */
  weightSum: number;
  lastWeight: number;
  /** Times it had a similarity, and their sum. */
  compared: number;
  similaritySum: number;
  lastLoss: number;
}

/** Histories of all training samples. */
export class SampleStatistics {
  readonly records: SampleRecord[];

  constructor(count: number) {
    this.records = Array.from({ length: count }, () => ({
      seen: 0,
      weightSum: 0,
      lastWeight: 0,
      compared: 0,
      similaritySum: 0,
      lastLoss: 0,
    }));
  }

  /** Notes a batch: samples by index, their mean losses, weights and, where they were compared, similarities. */
  note(indices: readonly number[], { losses, weights, similarities }: {
    losses: readonly number[];
    weights: ArrayLike<number>;
    similarities: ArrayLike<number> | null;
  }): void {
    indices.forEach((index, i) => {
      const record = this.records[index]!;
      record.seen++;
      record.lastLoss = losses[i]!;
      if (!similarities) return;
      record.weightSum += weights[i]!;
      record.lastWeight = weights[i]!;
      record.compared++;
      record.similaritySum += similarities[i]!;
    });
  }

  /** Columns of the table of records, [samples] each, for a checkpoint. */
  save(): Record<keyof SampleRecord, Float64Array<ArrayBuffer>> {
    const column = (key: keyof SampleRecord) => Float64Array.from(this.records, (record) => record[key]);
    return {
      seen: column("seen"),
      weightSum: column("weightSum"),
      lastWeight: column("lastWeight"),
      compared: column("compared"),
      similaritySum: column("similaritySum"),
      lastLoss: column("lastLoss"),
    };
  }

  /** Continues from saved columns of as many samples. */
  restore(columns: Record<keyof SampleRecord, Float64Array>): void {
    this.records.forEach((record, i) => {
      for (const key of Object.keys(record) as (keyof SampleRecord)[]) record[key] = columns[key][i]!;
    });
  }

  /** Lines of weights.jsonl, one a sample. */
  lines(samples: readonly { id: string; source: string | null }[]): string {
    return samples.map(({ id, source }, i) => {
      const { seen, compared, weightSum, lastWeight, similaritySum, lastLoss } = this.records[i]!;
      const mean = (sum: number) => compared === 0 ? null : sum / compared;
      const weights = {
        weight: mean(weightSum),
        last_weight: compared === 0 ? null : lastWeight,
        similarity: mean(similaritySum),
      };
      return JSON.stringify({ id, seen, ...weights, loss: seen === 0 ? null : lastLoss, source }) + "\n";
    }).join("");
  }
}
