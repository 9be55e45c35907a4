/** Progress of a run: a bar that is redrawn on a terminal, plain lines elsewhere. */
import { printNote, printProgress } from "./output.ts";

/** What a line of progress tells. */
export interface ProgressState {
  readonly step: number;
  readonly steps: number;
  readonly loss: number;
  readonly tokensPerSecond: number;
  /** Seconds since the first step. */
  readonly seconds: number;
  /** Effective sample size of the last weighted batch, of `samples`. */
  readonly effective: { size: number; samples: number } | null;
}

const REDRAW_MS = 100;

/** Shows progress on stderr. */
export class Progress {
  readonly #terminal = Deno.stderr.isTerminal();
  #drawn = 0;
  #open = false;

  /** @param logEvery steps between plain lines when stderr is no terminal */
  constructor(readonly logEvery: number) {}

  update(state: ProgressState): void {
    const last = state.step === state.steps;
    if (!this.#terminal) {
      if (last || state.step % this.logEvery === 0) printNote(line(state));
      return;
    }
    const now = performance.now();
    if (!last && now - this.#drawn < REDRAW_MS) return;
    this.#drawn = now;
    let columns = 80;
    try {
      columns = Deno.consoleSize().columns || columns; // some terminals have a size of 0
    } catch { // a terminal that does not tell its size
    }
    printProgress(`\r\x1b[2K${bar(state, columns)}`);
    this.#open = true;
  }

  /** Ends the bar's line, so that other text can follow. */
  end(): void {
    if (this.#open) printProgress("\n");
    this.#open = false;
  }
}

/** Such as "step 120/500  loss 1.2345  1,234 tokens/s  ESS 9.1/16  2m10s left". */
export function line({ step, steps, loss, tokensPerSecond, seconds, effective }: ProgressState): string {
  const left = step > 0 ? seconds / step * (steps - step) : 0;
  const parts = [
    `step ${step}/${steps}`,
    `loss ${loss.toFixed(4)}`,
    `${Math.round(tokensPerSecond).toLocaleString("en")} tokens/s`,
  ];
  if (effective) parts.push(`ESS ${effective.size.toFixed(1)}/${effective.samples}`);
  parts.push(step === steps ? `done in ${duration(seconds)}` : `${duration(left)} left`);
  return parts.join("  ");
}

/** The same behind a bar, cut to the terminal's width. */
export function bar(state: ProgressState, columns: number): string {
  const text = line(state);
  const width = Math.min(30, columns - text.length - 4);
  if (width < 5) return text.slice(0, columns - 1);
  const filled = width * state.step / state.steps;
  const whole = Math.floor(filled);
  const partial = whole < width ? [" ", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][Math.floor((filled - whole) * 8)]! : "";
  return `${"█".repeat(whole)}${partial}${" ".repeat(Math.max(0, width - whole - 1))}▏ ${text}`;
}

/** "45s", "2m10s", "3h05m". */
export function duration(seconds: number): string {
  const s = Math.round(seconds);
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m${String(s % 60).padStart(2, "0")}s`;
  return `${Math.floor(s / 3600)}h${String(Math.floor(s % 3600 / 60)).padStart(2, "0")}m`;
}
