import { loadConfig } from "../config/load.ts";
import type { Config } from "../config/schema.ts";
import { counted } from "../counted.ts";
import { ENDED, STOPPED, UserError } from "../errors.ts";
import { BackgroundRun, planInBackground } from "../train/background.ts";
import { requireKnownKeys } from "../train/changes.ts";
import { describeEvaluation } from "../train/evaluation.ts";
import { type Ending, type RunEvent, RunEvents, type RunResult } from "../train/events.ts";
import { outputProblem, RunFolder } from "../train/folder.ts";
import { formatBytes } from "../train/memory.ts";
import { abandoned, goingOn, nothingToDo } from "../train/resumption.ts";
import type { StatusOfRun } from "../status/start.ts";
import type { RunOptions } from "../train/session.ts";
import { type Command, jsonOption, setOption } from "./command.ts";
import { describeData } from "./data.ts";
import { deviceOf, deviceOption, threadsOption } from "./device.ts";
import { memoryTable, savings } from "./memory_table.ts";
import { printFailure, printJson, printLine, printNote, tell } from "./output.ts";
import { duration, Progress, type ProgressState } from "./progress.ts";
import { onSignal } from "./signals.ts";

/** `metalora train`: one fine-tuning run. */
export const command: Command = {
  name: "train",
  summary: "Fine-tune a model with LoRA, plain or guided by a validation set",
  usage: "CONFIG [--set KEY=VALUE]… [--resume] [--dry-run] [--device cpu] [--status HOST:PORT] [--json]",
  details: [
    "Writes the adapter in PEFT's format, metrics and per-sample weights into the configuration's output folder. Nothing there " +
    "is half-written: adapter/ appears when the run is complete.",
    "SIGTERM, SIGINT (Ctrl-C) or SIGHUP (the terminal is closed, unless nohup is in front) saves the state of the run and ends it with " +
    "exit code 143; a second SIGTERM or SIGINT ends it at once, nothing saved, with 130. SIGHUP does not count: " +
    "after one, too, it takes two of the others to end the run at once. --resume " +
    "continues from the newest whole checkpoint, to the very adapter that the run would have made without a stop. Where nothing " +
    "is to be resumed the run starts from the beginning; where it is complete nothing is done, unless its adapter is damaged: that is " +
    "written again from the newest checkpoint. Without --resume it starts from the " +
    "beginning in any case; what an interrupted run had saved stays in <output>/previous until the new one is complete; of several such " +
    "runs, what the one that came furthest had saved.",
    "--dry-run checks configuration, model, data and output folder, prints the memory plan and stops, with the exit code that the run " +
    "would refuse to start with (--json: would_start and problems beside the plan). With --resume it says where the run would go on.",
    "--status serves a page with the run as it goes on, and the same as JSON at /status and for Prometheus at /metrics. It is for " +
    "this machine only, unless METALORA_STATUS_TOKEN in the environment (or status.token_file) holds a token.",
  ],
  options: [
    setOption,
    { name: "resume", description: "Continue from the newest checkpoint in the output folder" },
    {
      name: "allow-change",
      value: "KEY",
      repeat: true,
      description: "With --resume: this key of the configuration may have changed, such as train.steps",
    },
    { name: "dry-run", description: "Check everything, print the memory plan and stop" },
    deviceOption,
    threadsOption,
    { name: "status", value: "HOST:PORT", description: "Serve a status page there; PORT alone: for this machine only" },
    jsonOption,
  ],
  positional: [1, 1],
  exits: [
    [75, "another run holds the output folder"],
    [ENDED, "ended at once by a second SIGTERM or SIGINT; --resume goes on from the last checkpoint"],
    [STOPPED, "stopped by a signal after saving; --resume goes on"],
  ],
  files: [
    ["<output>/adapter/", "the adapter in PEFT's format"],
    ["<output>/config.yaml", "the configuration with every default"],
    ["<output>/metrics.jsonl", "a line each step"],
    ["<output>/weights.jsonl", "a line each training sample"],
    ["<output>/checkpoints/", "what --resume continues from"],
    ["<output>/report.html", "one page: curves, weights, most and least useful samples"],
  ],
  examples: [
    ["train configs/mawps-metalora.yaml", "META-LORA on word problems"],
    ["train run.yaml --set train.steps=100 --set output=runs/short", "The same run, shorter and elsewhere"],
    ["train run.yaml --resume", "Go on where it was stopped"],
    ["train run.yaml --status 8080", "Watch the run at http://127.0.0.1:8080/"],
  ],
  async run(args) {
    const { config } = loadConfig(args.positional[0]!, [...args.values("set")]);
    const json = args.flag("json");
    const resume = args.flag("resume"), allowChange = args.values("allow-change");
    if (allowChange.length > 0 && !resume) throw new UserError("Cannot use --allow-change without --resume", 2);
    requireKnownKeys(allowChange);
    const listen = args.value("status") ?? config.status.listen;
    const texts = listen !== null && config.status.samples;
    const device = deviceOf(args);
    const options: RunOptions = { device, resume, allowChange, texts };
    if (args.flag("dry-run")) return await dryRun(config, options, { json, listen });

    const events = new RunEvents();
    const progress = new Progress(config.train.log_every);
    let run: BackgroundRun | null = null, page: StatusOfRun | null = null, ended = false;
    using _signals = onSignal(() => { // before there is a folder, which nobody would remove
      if (ended) return "wait"; // for what it tells
      progress.end();
      if (run?.stop() === false) return "wait"; // for the line that says why it failed
      if (!run?.started) {
        printFailure({ error: "stopped before training began: nothing to save", exit_code: STOPPED }, json);
        return "end";
      }
      printNote("stopping: the state is saved first; a second signal ends the run at once");
      page?.stopping();
      return "wait";
    });
    using folder = RunFolder.open(config.output); // early, so that nobody waits for a model to be told of another run
    folder.requireOwn(config.model);
    folder.requireApart();
    if (device.note) events.subscribe((event) => event.type === "started" && printNote(device.note!));
    events.subscribe(terminal(progress));
    await using status = listen === null ? null : await serve(config, listen, events);
    page = status;
    run = BackgroundRun.start(config, options, events);
    const ending = await run.ending;
    ended = true;
    progress.end();
    return report(ending, { json, debug: args.flag("debug") });
  },
};

/** Serves the status of a run. Loaded only here: a server is a good part of the program's start. */
export async function serve(config: Config, listen: string, events: RunEvents): Promise<StatusOfRun> {
  const { startStatus } = await import("../status/start.ts");
  const status = startStatus(config.status, listen);
  events.subscribe(status.listen);
  printNote(`status: ${status.url}`);
  return status;
}

/** Says how a run ended. @returns the exit code */
function report(ending: Ending, { json, debug }: { json: boolean; debug: boolean }): number {
  switch (ending.kind) {
    case "complete":
      return told(ending.result, json);
    case "was complete":
      printNote(nothingToDo(ending.result.output));
      return json ? told(ending.result, json) : 0;
    case "stopped": {
      const { step, checkpoint } = ending;
      const error = checkpoint === null
        ? "stopped before the first step: nothing to save"
        : `stopped at step ${step}: saved in ${checkpoint}. Go on with --resume`;
      printFailure({ error, exit_code: STOPPED, step, checkpoint }, json);
      return STOPPED;
    }
    case "failed":
      throw failure(ending, debug);
  }
}

/** The error that a failed run ended with, as the program shows it. */
export function failure({ message, exitCode, defect, stack }: Extract<Ending, { kind: "failed" }>, debug: boolean): Error {
  const error = defect ? new Error(message) : new UserError(message, exitCode as UserError["exitCode"]);
  if (debug && stack) error.stack = stack; // where it arose in the worker
  return error;
}

/**
 * Tells what a run came to.
 * @returns 1 when the adapter is of no use, or when a program was to read the result and it is lost; else 0
 */
function told(result: RunResult, json: boolean): number {
  const adapter = `${result.output}/adapter`;
  const heard = tell(() => printResult(result, json), `the run is complete, its adapter is in ${adapter}`);
  for (const name of ["validation", "test"] as const) {
    const loss = result[name]?.loss;
    if (loss === undefined || Number.isFinite(loss)) continue;
    printNote(`metalora: Do not use ${adapter}: the ${name} loss with it is ${loss}. Lower optimizer.lr or check the data`);
    return 1;
  }
  return json && !heard ? 1 : 0;
}

function printResult(result: RunResult, json: boolean): void {
  if (json) return printJson(result);
  const { steps, seconds, tokens_per_second, peak_memory_bytes, output, loss } = result;
  printLine(
    `${counted(steps, "step")} in ${duration(seconds)}, ${Math.round(tokens_per_second).toLocaleString("en")} tokens/s, ` +
      `peak memory ${formatBytes(peak_memory_bytes)}`,
  );
  if (Number.isFinite(loss)) printLine(`last training loss ${loss.toFixed(4)}`); // a run of validation batches alone has none
  for (const name of ["validation", "test"] as const) {
    const evaluation = result[name];
    if (evaluation) printLine(`${name} ${describeEvaluation(evaluation)}`);
  }
  printLine(`adapter in ${output}/adapter`);
}

async function dryRun(
  config: Config,
  options: RunOptions,
  { json, listen }: { json: boolean; listen: string | null },
): Promise<number> {
  const unusable = outputProblem(config);
  const mute = listen === null ? null : await statusProblem(config, listen);
  // What it holds may only be looked at where a run may write.
  const resume = options.resume === true && unusable === null;
  const answer = await planInBackground(config, { ...options, resume });
  if ("kind" in answer) return report(answer, { json, debug: false });
  const { plan, layout, steps, parameters, device, data, notes, refusal } = answer;
  const problems = [unusable?.message, mute?.message, refusal].filter((message) => typeof message === "string");
  const left = resume || unusable !== null ? null : abandoned(config.output);
  for (const note of [...left === null ? [] : [left], ...notes]) printNote(note);
  if (json) {
    const { recompute, embedding } = layout;
    printJson({ ...plan, recompute, embedding, would_start: problems.length === 0, problems });
  } else {
    printLine(`${config.model}: ${parameters.toLocaleString("en")} adapter parameters, ${counted(steps, "step")} on ${device}`);
    for (const [name, dataset] of Object.entries(data)) if (dataset) printLine(describeData(name, dataset));
    printLine();
    printLine(memoryTable(plan));
    for (const line of savings(layout)) printLine(line);
  }
  for (const problem of problems) printNote(`metalora: ${problem}`);
  return unusable?.exitCode ?? mute?.exitCode ?? (refusal === null ? 0 : 1);
}

/** What keeps the status of a run from being served; null: nothing does. */
async function statusProblem(config: Config, listen: string): Promise<UserError | null> {
  const { startStatus } = await import("../status/start.ts");
  try {
    await startStatus(config.status, listen)[Symbol.asyncDispose]();
    return null;
  } catch (error) {
    if (error instanceof UserError) return error;
    throw error;
  }
}

/** Shows a run on the terminal. */
export function terminal(progress: Progress): (event: RunEvent) => void {
  let total = Infinity, shown = 0;
  let batch: Pick<ProgressState, "loss" | "effective"> | undefined;
  return (event) => {
    switch (event.type) {
      case "started": {
        const { config, parameters, steps, data, device, plan, resumedAt } = event;
        total = steps;
        const { method, similarity, weights, preset } = config.reweight;
        const how = method === "meta-lora" ? `meta-lora (${preset ?? `${similarity}, ${weights}`})` : method;
        printNote(
          `${config.model}: ${parameters.toLocaleString("en")} adapter parameters, method ${how}, ${counted(steps, "step")}`,
        );
        for (const [name, dataset] of Object.entries(data)) if (dataset) printNote(describeData(name, dataset));
        printNote(`${device}; memory planned ${formatBytes(plan.total_bytes)}`);
        if (resumedAt > 0) printNote(goingOn(resumedAt));
        return;
      }
      case "stepped": {
        const { kind, step, steps, loss, effectiveSampleSize, samples, seconds, tokensPerSecond } = event;
        if (kind === "train") {
          const effective = effectiveSampleSize === null ? null : { size: effectiveSampleSize, samples: samples.length };
          batch = { loss, effective };
        }
        // A step on validation data shows the training batch before it; a batch without weight makes no step.
        if (!batch || step === shown) return;
        shown = step;
        progress.update({ step, steps, tokensPerSecond, seconds, ...batch });
        return;
      }
      case "evaluated":
        progress.end();
        if (event.step < total) printNote(`step ${event.step}: ${event.name} ${describeEvaluation(event.evaluation)}`);
        return;
      case "note":
        progress.end();
        printNote(event.text);
    }
  };
}
