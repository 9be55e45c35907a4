/** Counts what data sets have in common. */
import type { RunData } from "../data/load.ts";
import type { Dataset } from "../data/dataset.ts";
import { contentKey } from "../data/overlap.ts";
import type { OverlapCount } from "./input.ts";

/** Every pair of data sets of a run; case, spacing and Unicode form do not count. */
export function countOverlaps({ train, validation, test }: RunData): OverlapCount[] {
  const pairs: [Dataset | null, string, Dataset | null, string][] = [
    [train, "training", validation, "validation"],
    [train, "training", test, "test"],
    [validation, "validation", test, "test"],
  ];
  return pairs.flatMap(([first, of, second, and]) => {
    if (!first || !second) return [];
    const samples = new Set(second.samples.map(contentKey));
    const prompts = new Set(second.samples.map(({ prompt }) => contentKey({ prompt, response: "" })));
    const shared = first.samples.filter((sample) => samples.has(contentKey(sample)));
    const near = first.samples.filter(({ prompt, response }) =>
      prompts.has(contentKey({ prompt, response: "" })) && !samples.has(contentKey({ prompt, response }))
    );
    const leftOut = first.dropped.find(({ reason }) => reason === `also in the ${and} data`)?.count ?? 0;
    return [{ of, and, samples: shared.length, prompts: near.length, leftOut }];
  });
}
