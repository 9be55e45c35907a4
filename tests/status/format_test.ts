import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import {
  formatCount,
  formatDuration,
  formatNumber,
  formatPercent,
  formatSize,
  roundTicks,
  smoothed,
} from "../../lib/status/page/format.js";

Deno.test("numbers of the dashboard are short and can be read", () => {
  const cases: [number | null, string][] = [
    [null, "–"],
    [0, "0"],
    [1.23456, "1.235"],
    [0.025, "0.025"],
    [0.00026174, "2.62e-4"],
    [5e-7, "5e-7"],
    [123.456, "123.5"],
    [12345.6, "12,346"],
    [-0.5, "-0.5"],
    [2.5e9, "2.5e9"],
  ];
  for (const [value, text] of cases) assertEquals(formatNumber(value), text);
  assertEquals([formatCount(1234567.8), formatCount(null)], ["1,234,568", "–"]);
  assertEquals([0, 0.0004, 0.05, 0.999, 1].map(formatPercent), ["0 %", "0.0 %", "5.0 %", "99 %", "100 %"]);
  assertEquals([5 * 2 ** 20, 512 * 2 ** 20, 18.3 * 2 ** 30, 200 * 2 ** 30].map(formatSize), [
    "5.0 MiB",
    "512 MiB",
    "18.3 GiB",
    "200 GiB",
  ]);
});

Deno.test("durations have two units at most, and never 60 of one", () => {
  const cases: [number | null, string][] = [
    [null, "–"],
    [0.4, "0 s"],
    [59.6, "1 min 00 s"],
    [119, "1 min 59 s"],
    [3599, "59 min"],
    [3600, "1 h 00 min"],
    [47.99 * 3600, "47 h 59 min"],
    [50 * 3600, "2 d 2 h"],
  ];
  for (const [seconds, text] of cases) assertEquals(formatDuration(seconds), text);
});

Deno.test("ticks are round and lie inside", () => {
  assertEquals(roundTicks(0, 10, 5), [0, 2, 4, 6, 8, 10]);
  assertEquals(roundTicks(0.013, 0.048, 4), [0.02, 0.03, 0.04]);
  assertEquals(roundTicks(3, 3, 5), [3]);
  for (const [least, most] of [[0, 5.4e-4], [1, 613], [-2, 3], [0.5, 1e9]] as const) {
    const ticks = roundTicks(least, most, 5);
    assert(ticks.length >= 2 && ticks.length <= 11, `${ticks}`);
    assert(ticks.every((tick: number) => tick >= least - 1e-12 && tick <= most * (1 + 1e-9)), `${ticks}`);
  }
});

Deno.test("smoothed() averages neighbours and keeps gaps", () => {
  assertEquals(smoothed([1, 2, 3, 4, 5], 1), [1, 2, 3, 4, 4.5]);
  assertEquals(smoothed([1, null, 3], 1), [1, null, 3]);
  assertEquals(smoothed([4, 8], 0), [4, 8]);
  assertEquals(smoothed([], 3), []);
  const noisy = Array.from({ length: 100 }, (_, i) => 1 + (i % 2 === 0 ? 0.5 : -0.5));
  for (const value of smoothed(noisy, 10).slice(10)) assertAlmostEquals(value!, 1, 0.06);
});
