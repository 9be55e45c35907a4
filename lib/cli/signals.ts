/** SIGTERM and SIGINT: the first one asks, the second one ends. */

const SIGNALS = ["SIGTERM", "SIGINT"] as const;

/**
 * Calls `first` at the first SIGTERM or SIGINT, until it is disposed of.
 *
 * @param first Returns "wait" when the program ends by itself soon, "end" when nothing is worth waiting for.
 * @param exitCode Of the program when it is ended here, at the second signal or at once.
 */
export function onSignal(first: () => "wait" | "end", exitCode: number): Disposable {
  let asked = false;
  const hear = () => {
    if (asked || first() === "end") Deno.exit(exitCode);
    asked = true;
  };
  for (const signal of SIGNALS) Deno.addSignalListener(signal, hear);
  return {
    [Symbol.dispose]() {
      for (const signal of SIGNALS) Deno.removeSignalListener(signal, hear);
    },
  };
}
