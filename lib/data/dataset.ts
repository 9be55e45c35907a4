/**
 * Data files as samples: read, put into a template, tokenised, split, and checked against each other.
 *
 * @module
 */

import type { DataSource } from "../config/schema.ts";
import { UserError } from "../errors.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { type EncodeOptions, encodeSample, type Sample } from "./encode.ts";
import { toExample } from "./formats.ts";
import { readRows, sha256OfFile } from "./readers.ts";
import { render, type TemplateName } from "./template.ts";

export { IGNORED, type Sample } from "./encode.ts";

/** The usable samples of one file. */
export interface Dataset {
  readonly path: string;
  /** SHA-256 of the whole file, hexadecimal. */
  readonly sha256: string;
  /** In file order. */
  readonly samples: readonly Sample[];
  /** Rows that could not be used, by reason. */
  readonly dropped: readonly { readonly reason: string; readonly count: number }[];
  /** Samples that lost tokens to the limit of length. */
  readonly truncated: number;
}

/** Which rows {@linkcode loadDataset} reads: a source of the configuration, without what only training uses. */
export type DataSpec = Pick<DataSource, "path" | "format" | "fields" | "limit">;

/** How {@linkcode loadDataset} makes samples of rows. */
export interface DatasetOptions extends EncodeOptions {
  readonly template: TemplateName;
  /** Stop reading when there are so many samples; all when omitted. */
  readonly maxSamples?: number;
}

/**
 * Reads a data file into samples.
 *
 * @param spec File, format, names of the fields, and how many rows to read.
 * @param tokenizer Tokenizer of the model.
 * @param options Template, lengths, EOS.
 * @throws {UserError} With `file:line` for a row that cannot be read; when the file has no rows, or no sample is left; when
 * EOS is wanted and the tokenizer has none.
 */
export function loadDataset(spec: DataSpec, tokenizer: Tokenizer, options: DatasetOptions): Dataset {
  const { path } = spec;
  if (options.appendEos && tokenizer.eosId === null) {
    throw new UserError(`Cannot end the answers of ${path} with EOS: the tokenizer has none. Set data.append_eos to false`, 2);
  }
  const samples: Sample[] = [];
  const dropped = new Map<string, number>();
  const seen = new Set<string>();
  let rows = 0;
  for (const row of readRows(path)) {
    rows++;
    const example = toExample(row, spec);
    const rendered = render(options.template, example);
    const encoded = encodeSample(rendered, tokenizer, options);
    if ("dropped" in encoded) {
      dropped.set(encoded.dropped, (dropped.get(encoded.dropped) ?? 0) + 1);
    } else {
      // Ids name samples in weights.jsonl; a repeated one gets the place of its row.
      const id = seen.has(example.id) ? `${example.id}#${row.index}` : example.id;
      seen.add(id);
      samples.push({ id, line: row.index + 1, ...encoded, ...rendered, source: example.source });
    }
    if (rows === spec.limit || samples.length === options.maxSamples) break;
  }
  const reasons = [...dropped].map(([reason, count]) => ({ reason, count }));
  if (rows === 0) throw new UserError(`Cannot use the data ${path}: it has no rows. Give a file with at least one sample`, 2);
  if (samples.length === 0) refuseEmpty(path, rows, reasons, options.maxLength);
  return { path, sha256: sha256OfFile(path), samples, dropped: reasons, truncated: countTruncated(samples) };
}

function refuseEmpty(path: string, rows: number, dropped: Dataset["dropped"], maxLength: number): never {
  const why = dropped.map(({ reason, count }) => `${count} ${reason}`).join(", ");
  const tooLong = dropped.some(({ reason }) => reason === "response longer than max_length");
  const advice = tooLong ? `Raise data.max_length (now ${maxLength})` : "Check the field of the answer";
  throw new UserError(`Cannot use the data ${path}: none of its ${rows} rows is left (${why}). ${advice}`, 2);
}

const countTruncated = (samples: readonly Sample[]): number => samples.filter(({ truncated }) => truncated).length;

/** The same dataset with other samples. */
export function withSamples(dataset: Dataset, samples: readonly Sample[], reason?: string): Dataset {
  const count = dataset.samples.length - samples.length;
  const dropped = reason === undefined || count === 0 ? dataset.dropped : [...dataset.dropped, { reason, count }];
  return { ...dataset, samples, dropped, truncated: countTruncated(samples) };
}
