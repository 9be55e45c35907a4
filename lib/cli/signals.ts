/** Signals that ask to stop: the first one asks, a second SIGTERM or SIGINT ends. */
import { isIgnored } from "../../ffi/signals.ts";
import { ENDED, STOPPED } from "../errors.ts";

let hangupIgnored = false;

/**
 * The same signal within so many milliseconds is the same wish: Ctrl-C reaches every process of a terminal, and `deno task` passes
 * it on to its child, too. Nobody presses twice so fast.
 */
const ECHO_MS = 250;

/**
 * Ignores SIGHUP for good where it was ignored when the program began, as under nohup. To be called first: half a second after
 * its start Deno 2.9 puts handlers of its own in that place, which end the program.
 */
export function respectNohup(): void {
  hangupIgnored = isIgnored("SIGHUP");
  if (hangupIgnored) Deno.addSignalListener("SIGHUP", () => {});
}

/**
 * Calls `first` at the first SIGTERM, SIGINT or SIGHUP (the terminal is gone), until it is disposed of. A SIGHUP never counts as
 * one of the two that end the program: a terminal that closes sends several, and systemd sends one beside its SIGTERM.
 *
 * @param first Returns "wait" when the program ends by itself soon, "end" when nothing is worth waiting for.
 */
export function onSignal(first: () => "wait" | "end"): Disposable {
  let asked = false;
  let heard: { signal: Deno.Signal; at: number } | null = null;
  const ask = () => {
    if (!asked && first() === "end") Deno.exit(STOPPED);
    asked = true;
  };
  const insist = (signal: Deno.Signal) => {
    const at = performance.now();
    if (heard?.signal === signal && at - heard.at < ECHO_MS) return;
    if (heard !== null) Deno.exit(ENDED); // without a word: a pipe that nobody reads must not hold it up
    heard = { signal, at };
    ask();
  };
  const hangup = hangupIgnored ? [] : [["SIGHUP", ask] as const];
  const listeners = [["SIGTERM", () => insist("SIGTERM")], ["SIGINT", () => insist("SIGINT")], ...hangup] as const;
  for (const [signal, listener] of listeners) Deno.addSignalListener(signal, listener);
  return {
    [Symbol.dispose]() {
      for (const [signal, listener] of listeners) Deno.removeSignalListener(signal, listener);
    },
  };
}
