/**
 * Keeps training, validation and test data apart.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { UserError } from "../errors.ts";
import { type Dataset, type Sample, withSamples } from "./dataset.ts";
import { permutation, Rng } from "./random.ts";

/**
 * A hash of what a sample says, the same for texts that differ only in case, spacing or Unicode form. 128 bits: a chance
 * agreement among a billion samples has a probability of 10^-21.
 */
export function contentKey({ prompt, response }: Pick<Sample, "prompt" | "response">): string {
  const normal = (text: string) => text.normalize("NFKC").toLowerCase().replace(/\s+/g, " ").trim();
  return createHash("sha256").update(`${normal(prompt)}\0${normal(response)}`).digest("base64").slice(0, 22);
}

/** What to do with a sample that is in two datasets. */
export type OnOverlap = "error" | "drop" | "allow";

/**
 * Looks for samples of `dataset` that `trusted` has, too.
 *
 * @param dataset The larger one, which may lose samples.
 * @param trusted The one that it must not share a sample with.
 * @param on "error": refuse; "drop": leave them out of `dataset`; "allow": do nothing.
 * @param names How to call the two in messages, such as "training" and "validation".
 * @returns `dataset`, or what is left of it.
 * @throws {UserError} With the number of samples and the first ids; also when "drop" leaves nothing.
 */
export function separate(
  dataset: Dataset,
  trusted: Dataset,
  { on, names: [name, trustedName] }: { on: OnOverlap; names: readonly [string, string] },
): Dataset {
  if (on === "allow") return dataset;
  const keys = new Set(trusted.samples.map(contentKey));
  const kept = dataset.samples.filter((sample) => !keys.has(contentKey(sample)));
  const count = dataset.samples.length - kept.length;
  if (count === 0) return dataset;
  if (on === "drop" && kept.length > 0) return withSamples(dataset, kept, `also in the ${trustedName} data`);
  const shared = dataset.samples.filter((sample) => keys.has(contentKey(sample)));
  const ids = shared.slice(0, 3).map(({ id }) => id).join(", ");
  const advice = on === "drop"
    ? "Nothing would be left: give other data"
    : "Remove them, or set data.on_overlap to drop (leaves them out) or allow";
  throw new UserError(
    `Cannot use ${dataset.path} as ${name} data: ${count} of its ${dataset.samples.length} samples are in the ${trustedName} data ` +
      `${trusted.path}, too (${ids}${count > 3 ? ", …" : ""}). ${advice}`,
    2,
  );
}

/**
 * Takes validation samples out of the training data. Samples that say the same stay on one side, so the two never overlap.
 *
 * @param dataset The training data.
 * @param size A share of the samples if below 1, else their number.
 * @param seed The same seed draws the same samples.
 * @returns Both parts, each in file order.
 * @throws {UserError} When one part would be empty.
 */
export function splitDataset(dataset: Dataset, size: number, seed: number): { train: Dataset; validation: Dataset } {
  const n = dataset.samples.length;
  const wanted = size < 1 ? Math.max(1, Math.round(n * size)) : Math.round(size);
  const groups = new Map<string, number[]>();
  dataset.samples.forEach((sample, i) => {
    const key = contentKey(sample);
    const members = groups.get(key);
    if (members === undefined) groups.set(key, [i]);
    else members.push(i);
  });
  const lists = [...groups.values()];
  const chosen = new Set<number>();
  for (const g of permutation(new Rng(seed, "validation split"), lists.length)) {
    const members = lists[g]!;
    if (chosen.size + members.length > wanted) continue; // a smaller group may still fit
    for (const i of members) chosen.add(i);
    if (chosen.size === wanted) break;
  }
  if (chosen.size === 0 || chosen.size === n) {
    throw new UserError(
      `Cannot hold out ${size} of ${dataset.path} for validation: it has ${n} samples, ${lists.length} of them different. ` +
        `Set data.validation_split so that both parts have samples`,
      2,
    );
  }
  return {
    train: withSamples(dataset, dataset.samples.filter((_, i) => !chosen.has(i))),
    validation: { ...withSamples(dataset, dataset.samples.filter((_, i) => chosen.has(i))), dropped: [] },
  };
}
