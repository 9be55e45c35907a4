/** Back to an earlier release, in one step. */
import type { Config } from "../config/schema.ts";
import { UserError } from "../errors.ts";
import { RunFiles } from "../train/folder.ts";
import { VERSION } from "../version.ts";
import { RECORD_FORMAT, type RetrainRecord } from "./records.ts";
import { linked, Store } from "./store.ts";

/**
 * Makes the release that the current one replaced the current one again, or the one that is named. A training that goes on
 * meanwhile is not disturbed; its candidate is compared with the release that is current when it is done.
 *
 * @param to Name of a release; the one before the current one when omitted. Damaged ones are passed over.
 * @throws {UserError} exit code 2, when there is no release of that name; 1, when there is none to go back to or it is damaged
 */
export async function rollback({ output }: Pick<Config, "output">, to?: string): Promise<RetrainRecord> {
  const start = performance.now();
  if (!new RunFiles(output).has("releases")) throw new UserError(`Cannot roll back ${output}: nothing was published there`);
  using store = await Store.hold(output);
  const from = linked(output);
  const target = to === undefined ? before(store, from) : named(store, to);
  const { adapter_sha256 } = store.facts(target);
  const last = store.history.at(-1);
  const record: RetrainRecord = {
    format: RECORD_FORMAT,
    number: (last?.number ?? 0) + 1,
    attempt: last?.attempt ?? 0,
    outcome: "rolled back",
    reason: `from release ${from ?? "none"} to ${target}`,
    exit_code: 0,
    time: new Date().toISOString(),
    seconds: Math.round(performance.now() - start) / 1000,
    version: VERSION,
    release: null,
    current: target,
    start: null,
    inputs: null,
    changed: [],
    comparison: null,
    cost: null,
    adapter_sha256,
  };
  store.record(record);
  return record;
}

function named(store: Store, to: string): string {
  const wanted = /^\d+$/.test(to) ? store.releases.find((release) => Number(release) === Number(to)) : undefined;
  if (wanted !== undefined) return wanted;
  throw new UserError(
    `Cannot roll back to '${to}': there is no such release. Releases: ${store.releases.join(", ") || "none"}`,
    2,
  );
}

/** The release that the current one replaced; where that is gone or damaged, the one before, and so on. */
function before(store: Store, from: string | null): string {
  const seen = new Set<string>();
  for (let release = from === null ? null : store.previous(from); release !== null; release = store.previous(release)) {
    if (seen.has(release)) break;
    seen.add(release);
    if (store.isWhole(release)) return release;
  }
  const others = store.releases.filter((release) => release !== from && store.isWhole(release));
  throw new UserError(
    `Cannot roll back ${store.output}: there is no whole release before ${from ?? "none"}. ` +
      (others.length > 0 ? `Name one of ${others.join(", ")} with --release` : "Train and publish another one"),
  );
}
