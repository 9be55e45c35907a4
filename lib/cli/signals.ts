/** Signals that ask to stop: the first one asks, a second SIGTERM or SIGINT ends. */
import { isIgnored } from "../../ffi/signals.ts";
import { ENDED, STOPPED } from "../errors.ts";

let hangupIgnored = false;

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
 * the second signal: a terminal that closes sends several, and systemd sends one behind its SIGTERM.
 *
 * @param first Returns "wait" when the program ends by itself soon, "end" when nothing is worth waiting for.
 */
export function onSignal(first: () => "wait" | "end"): Disposable {
  let asked = false, insisted = false;
  const ask = () => {
    if (!asked && first() === "end") Deno.exit(STOPPED);
    asked = true;
  };
  const insist = () => {
    if (insisted) Deno.exit(ENDED);
    insisted = true;
    ask();
  };
  const hangup = hangupIgnored ? [] : [["SIGHUP", ask] as const];
  const listeners = [["SIGTERM", insist], ["SIGINT", insist], ...hangup] as const;
  for (const [signal, listener] of listeners) Deno.addSignalListener(signal, listener);
  return {
    [Symbol.dispose]() {
      for (const [signal, listener] of listeners) Deno.removeSignalListener(signal, listener);
    },
  };
}
