/** Where `--resume` begins. */
import { join } from "node:path";
import { parseConfig } from "../config/load.ts";
import type { Config } from "../config/schema.ts";
import { counted } from "../counted.ts";
import { UserError } from "../errors.ts";
import { readRegularFile } from "../files.ts";
import { changesBetween, type Described, requireAllowed, requireKnownKeys } from "./changes.ts";
import { readMadeFrom, type RunIdentity } from "./identity.ts";
import { adapterDamage, isComplete } from "./folder.ts";
import { checkpointSteps } from "./checkpoint.ts";
import { findCheckpoint, type FoundCheckpoint } from "./restore.ts";

/** What a run continues from; `complete`: there is nothing left to do. */
export type Resumption =
  | { readonly kind: "checkpoint"; readonly found: FoundCheckpoint }
  | { readonly kind: "beginning" }
  | { readonly kind: "complete" };

/**
 * Looks into the output of a run that is to go on.
 * @param allowed Keys that may have changed.
 * @param note Hears which checkpoint is passed over and where the run begins.
 * @throws {UserError} exit code 2, when something else has changed, or the run is to be shorter than it is already; 1, when the adapter
 * of a complete run is damaged and there is no checkpoint to write it again from
 */
export function resumption(
  now: { config: Config; identity: RunIdentity; steps: number },
  allowed: readonly string[],
  note: (text: string) => void,
): Resumption {
  requireKnownKeys(allowed);
  const { output } = now.config;
  const { found, damaged } = findCheckpoint(output);
  const complete = isComplete(output), damage = adapterDamage(output);
  const before = (complete ? describe(output, found) : null) ??
    (found ? { config: found.state.config, identity: found.state } : null);
  const changes = before ? changesBetween(before, now) : [];
  requireAllowed(output, changes, allowed);
  if (complete && changes.length === 0) return { kind: "complete" };
  if (damage !== null && found === null) {
    throw new UserError(
      `Cannot resume ${output}: adapter/${damage}, and there is no whole checkpoint to write it again from. Restore that file, or train ` +
        "without --resume to make the run anew",
    );
  }
  if (found && found.state.step > now.steps) {
    throw new UserError(
      `Cannot resume ${output}: it is at step ${found.state.step} already, beyond the ${
        counted(now.steps, "step")
      } of this run. ` +
        "Give it more steps, or train without --resume",
      2,
    );
  }
  const next = found ? goingOn(found.state.step) : "starting from the beginning";
  for (const { step, what } of damaged) note(`passing over the checkpoint of step ${step}: ${what}; ${next}`);
  if (damage !== null) note(`passing over ${join(output, "adapter")}: ${damage}; ${next}`);
  const aside = savedStep(join(output, "previous"));
  if (aside > (found?.state.step ?? 0)) {
    const place = join(output, "previous", "checkpoints");
    note(
      `${place} has step ${aside} of a run before this one. To go on with that, put it in the place of ${output}/checkpoints`,
    );
  }
  if (found) return { kind: "checkpoint", found };
  if (damaged.length === 0) note(`nothing to resume in ${output}: ${next}`);
  return { kind: "beginning" };
}

/** Says where a run goes on; null where it starts from the beginning, about which {@linkcode resumption} says what is to be said. */
export function describeResumption(resumption: Resumption, output: string): string | null {
  switch (resumption.kind) {
    case "checkpoint":
      return goingOn(resumption.found.state.step);
    case "complete":
      return nothingToDo(output);
    case "beginning":
      return null;
  }
}

/** Of a run that goes on with a checkpoint. */
export const goingOn = (step: number): string => `continuing from step ${step}`;

/** Of a run that is to be resumed and has come to its end before. */
export const nothingToDo = (output: string): string =>
  `nothing to do: the run in ${output} is complete. Train without --resume to make it anew`;

/** Says that an output holds a run that was interrupted and will not be gone on with, and what is kept; null: it holds none. */
export function abandoned(output: string): string | null {
  const step = checkpointSteps(output).at(-1);
  if (step === undefined || isComplete(output)) return null;
  const previous = join(output, "previous");
  const kept = cameFurther(output)
    ? `keeps in ${previous} those of step ${savedStep(previous)} of a run before that, which came further,`
    : `keeps those checkpoints in ${previous}`;
  return `${output} holds a run that was interrupted, saved at step ${step}; --resume goes on with it. This one starts from the ` +
    `beginning and ${kept} until it is complete`;
}

/**
 * Whether the run whose checkpoints `previous/` keeps came further than the interrupted one beside it. There is room for one: whoever
 * begins anew twice by mistake has not lost the longer of the two.
 */
export function cameFurther(output: string): boolean {
  return savedStep(join(output, "previous")) > savedStep(output);
}

/** Step of the newest checkpoint in a folder; 0: there is none. */
function savedStep(folder: string): number {
  return checkpointSteps(folder).at(-1) ?? 0;
}

/** A complete run by the configuration that it wrote; null when that cannot be read. */
function describe(output: string, found: FoundCheckpoint | null): Described | null {
  const path = join(output, "config.yaml");
  try {
    const text = readRegularFile(path);
    return { config: parseConfig(text, path).config, identity: found?.state ?? readMadeFrom(text) };
  } catch {
    return null;
  }
}
