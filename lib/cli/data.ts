import { counted } from "../counted.ts";
import type { DatasetFacts } from "../train/events.ts";

/** Such as "train      data.jsonl: 3,038 samples, 12 truncated; dropped 3 (response longer than max_length)". */
export function describeData(name: string, { path, samples, dropped, truncated }: DatasetFacts): string {
  const cut = truncated > 0 ? `, ${truncated.toLocaleString("en")} truncated` : "";
  const lost = dropped.length > 0
    ? `; dropped ${dropped.map(({ reason, count }) => `${count.toLocaleString("en")} (${reason})`).join(", ")}`
    : "";
  return `${name.padEnd(10)} ${path}: ${counted(samples, "sample")}${cut}${lost}`;
}
