// Numbers and times as the dashboard writes them. Plain JavaScript: page.ts puts the text of these functions into the page.

/** Four digits that can be read: 12,500 or 1.234 or 0.025 or 2.5e-4. @param {number | null} value @returns {string} */
export function formatNumber(value) {
  if (value === null) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) {
    const [digits, power] = value.toExponential(2).split("e");
    return `${Number(digits)}e${Number(power)}`;
  }
  return value.toLocaleString("en", size >= 1000 ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: 4 });
}

/** Whole, with separators. @param {number | null} value @returns {string} */
export function formatCount(value) {
  return value === null ? "–" : Math.round(value).toLocaleString("en");
}

/** "512 MiB", "18.3 GiB". @param {number | null} bytes @returns {string} */
export function formatSize(bytes) {
  if (bytes === null) return "–";
  const mib = bytes / 2 ** 20;
  return mib >= 1000 ? `${(mib / 1024).toFixed(mib >= 102400 ? 0 : 1)} GiB` : `${mib.toFixed(mib < 10 ? 1 : 0)} MiB`;
}

/** "45 s", "12 min", "3 h 05 min", "2 d 4 h". @param {number | null} seconds @returns {string} */
export function formatDuration(seconds) {
  if (seconds === null) return "–";
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 600) return `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, "0")} s`;
  const minutes = Math.floor(s / 60);
  if (minutes < 60) return `${minutes} min`;
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.floor(minutes / 1440)} d ${Math.floor(minutes % 1440 / 60)} h`;
}

/** "24 %", and a decimal below 10. @param {number} share @returns {string} */
export function formatPercent(share) {
  const percent = 100 * share;
  if (percent > 0 && percent < 10) return `${(Math.floor(percent * 10) / 10).toFixed(1)} %`;
  return `${Math.floor(percent)} %`;
}

/**
 * Round values between two numbers, about `count` of them, 1, 2 or 5 × 10^n apart.
 * @param {number} least @param {number} most @param {number} count @returns {number[]}
 */
export function roundTicks(least, most, count) {
  if (!(most > least)) return [least];
  const rough = (most - least) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough * (1 - 1e-9)) ?? 10 * power;
  const ticks = [];
  for (let i = Math.ceil(least / step - 1e-9); i * step <= most + 1e-9 * step; i++) {
    ticks.push(Number((i * step).toPrecision(12)));
  }
  return ticks;
}

/**
 * Mean over the rows around each, fewer of them at both ends: as many on either side at the beginning, where losses fall steeply, and
 * only earlier ones at the end, so that it does not jump with the newest value. Gaps stay gaps.
 * @param {(number | null)[]} values @param {number} reach rows on either side @returns {(number | null)[]}
 */
export function smoothed(values, reach) {
  const sums = [0], counts = [0];
  values.forEach((value, i) => {
    sums.push(sums[i] + (value ?? 0));
    counts.push(counts[i] + (value === null ? 0 : 1));
  });
  return values.map((value, i) => {
    const half = Math.min(reach, i);
    const from = i - half, to = Math.min(values.length, i + half + 1);
    return value === null ? null : (sums[to] - sums[from]) / (counts[to] - counts[from]);
  });
}
