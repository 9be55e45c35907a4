/**
 * Area under the ROC curve: the probability that a positive row has a larger score than a negative one, ties counting half.
 * 0.5 is chance, 1 is perfect. Computed from mid-ranks (Mann–Whitney U), O(n log n).
 *
 * @param scores one finite number a row
 * @param positive whether each row is a positive, as long as `scores`
 * @returns a number in 0..1, or NaN when either class is empty
 * @throws {RangeError} when the lengths differ or a score is not finite
 */
export function auc(scores: ArrayLike<number>, positive: ArrayLike<boolean>): number {
  const n = scores.length;
  if (positive.length !== n) {
    throw new RangeError(`Cannot compute the AUC: ${n} scores for ${positive.length} labels`);
  }
  const order = Array.from({ length: n }, (_, i) => i);
  for (const i of order) {
    if (!Number.isFinite(scores[i])) throw new RangeError(`Cannot compute the AUC: score ${i} is ${scores[i]}`);
  }
  order.sort((a, b) => scores[a]! - scores[b]!);

  let positives = 0;
  let rankSum = 0; // ranks of the positives, 1-based, ties sharing the mean of their ranks
  for (let start = 0; start < n;) {
    let end = start + 1;
    while (end < n && scores[order[end]!] === scores[order[start]!]) end++;
    const midRank = (start + 1 + end) / 2;
    for (let k = start; k < end; k++) {
      if (positive[order[k]!]) {
        positives++;
        rankSum += midRank;
      }
    }
    start = end;
  }
  const negatives = n - positives;
  if (positives === 0 || negatives === 0) return NaN;
  return (rankSum - positives * (positives + 1) / 2) / (positives * negatives);
}
