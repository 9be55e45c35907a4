/** What changed between a run and its resumption, and whether somebody allowed it. */
import { allPaths } from "../config/problems.ts";
import type { Config } from "../config/schema.ts";
import { UserError } from "../errors.ts";
import { didYouMean } from "../nearest.ts";
import type { RunIdentity } from "./identity.ts";

/** A key whose value is another than it was. */
export interface Change {
  /** Such as "optimizer.lr". */
  readonly key: string;
  /** Old and new value, as the reader is shown them. */
  readonly from: string;
  readonly to: string;
}

/** A configuration with what stood in the files that it names. */
export interface Described {
  readonly config: Config;
  /** Null for a run that left no checkpoint to compare with. */
  readonly identity: RunIdentity | null;
}

/** Where files lie, where the run writes, who may watch it and what is published is nobody's result; of files the content counts. */
const PLACES = /^(output|model|status|retrain|data\.(train|validation|test)\.path)$/;
/** The same bits whatever their values. */
const SAME_BITS = /^(train\.(recompute|embedding|memory)|optimizer\.placement)$/;
/** They decide the sizes of what a checkpoint holds. */
const FIXED = /^adapter\.(rank|targets)$/;

type Tree = Record<string, unknown>;

/** Every key whose value differs, in the order of the configuration, then the files whose content does. */
export function changesBetween(before: Described, now: Described): Change[] {
  const changes = [...differences(before.config as unknown as Tree, now.config as unknown as Tree, "")];
  const old = before.identity, fresh = now.identity;
  if (!old || !fresh) return changes;
  const content = (key: string, from: string | null, to: string | null) => {
    if (from !== null && to !== null && from !== to) changes.push({ key, from: short(from), to: short(to) });
  };
  content("model", old.model, fresh.model);
  for (const name of ["train", "validation", "test"] as const) {
    // Validation data that is split off lies in the training file, which is told already.
    if (now.config.data[name] !== null) content(`data.${name}.path`, old.data[name], fresh.data[name]);
  }
  return changes;
}

const short = (sha256: string) => `content ${sha256.slice(0, 8)}`;

function* differences(before: Tree, now: Tree, prefix: string): Generator<Change> {
  for (const [name, value] of Object.entries(now)) {
    const key = prefix + name, old = before[name];
    // A key that an older version did not know has its default.
    if (old === undefined || PLACES.test(key) || SAME_BITS.test(key)) continue;
    if (isTree(old) && isTree(value)) yield* differences(old, value, `${key}.`);
    else if (JSON.stringify(old) !== JSON.stringify(value)) yield { key, from: shown(old), to: shown(value) };
  }
}

function isTree(value: unknown): value is Tree {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function shown(value: unknown): string {
  const text = isTree(value) && typeof value.path === "string" ? value.path : JSON.stringify(value);
  return text.length <= 60 ? text : `${text.slice(0, 57)}…`;
}

/**
 * @param what Such as "runs/math": what cannot be resumed.
 * @param allowed Keys, or groups of keys, that may differ.
 * @throws {UserError} exit code 2, with every change that nobody allowed
 */
export function requireAllowed(what: string, changes: readonly Change[], allowed: readonly string[]): void {
  const refused = changes.filter(({ key }) => !allowed.some((each) => key === each || key.startsWith(`${each}.`)));
  const fixed = changes.filter(({ key }) => FIXED.test(key));
  const list = (some: readonly Change[]) => some.map(({ key, from, to }) => `${key}: ${from} -> ${to}`).join("; ");
  if (fixed.length > 0) {
    throw new UserError(
      `Cannot resume ${what}: the state of the run does not fit any more: ${list(fixed)}. Set it back, or train without --resume`,
      2,
    );
  }
  if (refused.length === 0) return;
  const options = refused.map(({ key }) => `--allow-change ${key}`).join(" ");
  throw new UserError(
    `Cannot resume ${what}: its configuration has changed: ${list(refused)}. Set it back, or allow it: ${options}`,
    2,
  );
}

/** @throws {UserError} exit code 2, for a key that no configuration has */
export function requireKnownKeys(keys: readonly string[]): void {
  const known = allPaths().map((path) => path.join("."));
  for (const key of keys) {
    if (known.includes(key)) continue;
    throw new UserError(`Cannot use --allow-change ${key}: there is no such key.${didYouMean(key, known)}`, 2);
  }
}
