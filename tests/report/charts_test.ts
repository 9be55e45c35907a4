import fc from "fast-check";
import { assert, assertEquals } from "@std/assert";
import { histogram, lineChart, number, smooth, thin, ticks } from "../../lib/report/charts.ts";

const AXES = { label: "label", x: "x", y: "y" };

Deno.test("ticks() are round numbers within the range", () => {
  assertEquals(ticks(0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1]);
  assertEquals(ticks(0, 405), [0, 100, 200, 300, 400]);
  assertEquals(ticks(-3, 3), [-2, 0, 2]);
  assertEquals(ticks(0.101, 0.119), [0.105, 0.11, 0.115]);
});

Deno.test("lineChart() maps data to pixels: first step left, last right, larger values higher", () => {
  const { text } = lineChart([{ name: "n", style: "a", shape: "line", points: [[1, 4], [2, 2], [11, 0]] }], AXES);
  const points = /<path class="line a" d="M([^"]*)"/.exec(text)![1]!.split("L").map((pair) => pair.split(" ").map(Number));
  assertEquals(points, [[58, 12], [123, 116], [708, 220]]);
});

Deno.test("lineChart() leaves out what is no finite number and says when nothing is left", () => {
  const chart = (points: [number, number][]) => lineChart([{ name: "n", style: "a", shape: "dots", points }], AXES).text;
  assertEquals(chart([[1, 2], [2, NaN], [3, Infinity], [4, 1]]).split("<circle").length - 1, 2);
  assert(!chart([[1, 2], [2, NaN]]).includes("NaN"));
  assertEquals(chart([[1, NaN]]), '<p class="none">No values.</p>');
  // One value, or the same value everywhere, still has a place.
  for (const points of [[[1, 0]], [[1, 5], [2, 5]], [[3, -2]]] as [number, number][][]) {
    assert(!/NaN|Infinity/.test(chart(points)));
  }
});

Deno.test("histogram() counts every value once, the largest included", () => {
  const values = [0, 0.1, 0.1, 0.5, 2, 2, 2];
  const { text } = histogram(values, AXES, { bins: 4, mark: 1 });
  assertEquals([...text.matchAll(/<title>(\d+)<\/title><\/rect>/g)].map(([, count]) => Number(count)), [3, 1, 3]);
  // The mark is in the middle of 0 to 2.
  assert(text.includes('class="line mark" d="M383 12V220"'), text);
});

Deno.test("smooth() averages around each point, at the ends over what there is, and stays within the values", () => {
  const line = Array.from({ length: 9 }, (_, i) => [i, 3 * i + 1] as const);
  assertEquals(smooth(line, 5).map(([, y]) => y), [4, 5.5, 7, 10, 13, 16, 19, 20.5, 22]);
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: -1000, max: 1000 }), { minLength: 1 }),
      fc.integer({ min: 1, max: 50 }),
      (ys, window) => {
        const smoothed = smooth(ys.map((y, i) => [i, y] as const), window);
        assertEquals(smoothed.length, ys.length);
        const least = Math.min(...ys), most = Math.max(...ys);
        for (const [, y] of smoothed) {
          assert(y >= least && y <= most, `${y} of ${ys}`);
        }
      },
    ),
  );
  // An odd last value pulls, but the curve does not end in it.
  const odd = smooth([...Array.from({ length: 40 }, (_, i) => [i, 1] as const), [40, 11]], 21);
  assert(odd.at(-1)![1] < 5, `${odd.at(-1)}`);
  assertEquals(smooth([[0, 0], [1, 3], [2, 0]], 3), [[0, 1.5], [1, 1], [2, 1.5]]);
});

Deno.test("thin() keeps the mean and few points", () => {
  const points = Array.from({ length: 1000 }, (_, i) => [i, i % 2] as const);
  const thinned = thin(points, 100);
  assertEquals([thinned.length, thinned[0]], [100, [4.5, 0.5]]);
  assertEquals(thin(points, 1000), points);
});

Deno.test("charts take half a million points", () => {
  const points = Array.from({ length: 500_000 }, (_, i) => [i, Math.sin(i)] as const);
  assert(lineChart([{ name: "n", style: "a", shape: "line", points: thin(points) }], AXES).text.length < 20_000);
  assert(histogram(points.map(([, y]) => y), AXES).text.includes("<rect"));
});

Deno.test("number() is short", () => {
  assertEquals([0, 1.23456, 12_345.6, 1e-7, 0.00025, 2.5e9].map(number), ["0", "1.235", "12,345.6", "1e-7", "0.00025", "2.5e9"]);
});
