/**
 * The name that a person most likely meant.
 *
 * @param name What was typed.
 * @param known The names that exist.
 * @returns The known name with the smallest edit distance (case and `-`/`_` aside), if it is close enough to be worth
 * offering: at most a third of the longer name, at least one letter; otherwise undefined.
 */
export function nearest(name: string, known: Iterable<string>): string | undefined {
  const wanted = plain(name);
  let best: string | undefined;
  let bestDistance = Infinity;
  for (const candidate of known) {
    const other = plain(candidate);
    const limit = Math.max(1, Math.floor(Math.max(wanted.length, other.length) / 3));
    const close = editDistance(wanted, other);
    // A long common beginning ("valid" for "validation") is worth offering, too.
    const distance = close <= limit ? close : wanted.length >= 3 && other.startsWith(wanted) ? limit + 1 : Infinity;
    if (distance < bestDistance) [best, bestDistance] = [candidate, distance];
  }
  return best;
}

function plain(name: string): string {
  return name.toLowerCase().replaceAll(/[-_]/g, "");
}

/**
 * Fewest insertions, deletions, replacements and swaps of neighbours that turn one text into the other
 * (optimal string alignment: no part is edited twice).
 */
export function editDistance(a: string, b: string): number {
  let before: number[] = [];
  let previous = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const cost = a[i - 1] === b[j - 1] ? 0 : 1;
      row[j] = Math.min(previous[j]! + 1, row[j - 1]! + 1, previous[j - 1]! + cost);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) row[j] = Math.min(row[j]!, before[j - 2]! + 1);
    }
    before = previous;
    previous = row;
  }
  return previous[b.length]!;
}

/** " Did you mean 'x'?" or an empty text, to be put behind an error's message. */
export function didYouMean(name: string, known: Iterable<string>): string {
  const guess = nearest(name, known);
  return guess === undefined ? "" : ` Did you mean '${guess}'?`;
}
