import { loadConfig } from "../config/load.ts";
import { counted } from "../counted.ts";
import { ENDED, STOPPED, UserError } from "../errors.ts";
import { describeEvaluation } from "../train/evaluation.ts";
import { RunEvents } from "../train/events.ts";
import { formatBytes } from "../train/memory.ts";
import type { RetrainRecord } from "../retrain/records.ts";
import { REJECTED, RetrainFailure, Retraining } from "../retrain/retrain.ts";
import { rollback } from "../retrain/rollback.ts";
import type { StatusOfRun } from "../status/start.ts";
import { type Arguments, type Command, jsonOption, setOption } from "./command.ts";
import { deviceOf, deviceOption, threadsOption } from "./device.ts";
import { printJson, printLine, printNote, tell } from "./output.ts";
import { duration, Progress } from "./progress.ts";
import { onSignal } from "./signals.ts";
import { failure, serve, terminal } from "./train.ts";

/** `metalora retrain`: for cron. */
export const command: Command = {
  name: "retrain",
  summary: "Train again if anything changed, and publish what is not worse",
  usage: "CONFIG [--force] [--rollback [--release N]] [--set KEY=VALUE]… [--device cpu] [--status HOST:PORT] [--json]",
  details: [
    "For cron and timers. Does nothing when data, configuration and base model are what they were at the last training, by content. " +
    "Otherwise it trains, from the published adapter or afresh (retrain.from), measures the new adapter beside the published one on " +
    "data.test (else data.validation), and publishes it unless it is worse by more than retrain.margin.",
    "<output>/current is a link to the published release; it is replaced in one step. Serve <output>/current/adapter.",
    "It may be killed at any moment: the next invocation cleans up, goes on from the last checkpoint and comes to the same result. " +
    "--rollback makes the release before the current one the current one again, at once, even while a training goes on.",
  ],
  options: [
    { name: "force", description: "Train even if nothing changed" },
    { name: "rollback", description: "Make the release before the current one the current one again" },
    { name: "release", value: "N", description: "With --rollback: this release instead" },
    setOption,
    deviceOption,
    threadsOption,
    {
      name: "status",
      value: "HOST:PORT",
      description: "Serve a status page of the training there; PORT alone: for this machine only",
    },
    jsonOption,
  ],
  positional: [1, 1],
  exits: [
    [0, "published, nothing to do, or rolled back"],
    [REJECTED, "trained, but not published: worse than what is published"],
    [75, "another invocation, or a training, holds the output folder"],
    [
      ENDED,
      "ended at once by a second SIGTERM or SIGINT (SIGHUP does not count); the next invocation goes on from the last checkpoint",
    ],
    [STOPPED, "stopped by a signal after saving; the next invocation goes on"],
  ],
  files: [
    ["<output>/current", "link to the published release"],
    ["<output>/releases/N/", "adapter/, release.json, config.yaml, report.html, metrics.jsonl, weights.jsonl"],
    ["<output>/result.json", "the last invocation that came to hold the folder; --json prints the same"],
    ["<output>/history.jsonl", "a line each invocation that did something, with reasons and numbers"],
    ["<output>/candidate/", "the training that goes on, or the last one that was not published"],
  ],
  examples: [
    ["retrain run.yaml", "What cron calls every night"],
    ["retrain run.yaml --set retrain.margin=0.01", "Publish up to 0.01 nats worse, too"],
    ["retrain run.yaml --rollback", "Back to the release before"],
  ],
  async run(args) {
    const { config } = loadConfig(args.positional[0]!, [...args.values("set")]);
    const json = args.flag("json");
    const release = args.value("release");
    if (args.flag("rollback")) {
      if (args.flag("force")) throw new UserError("Cannot use --force with --rollback: it is for training", 2);
      const record = await rollback(config, release);
      tell(() => {
        if (json) printJson(record);
        else printLine(`rolled back ${record.reason}: ${config.output}/current`);
      }, `it is rolled back, ${config.output}/result.json has the record`);
      return 0;
    }
    if (release !== undefined) throw new UserError("Cannot use --release without --rollback", 2);

    const listen = args.value("status") ?? config.status.listen;
    const device = deviceOf(args);
    const events = new RunEvents();
    const progress = new Progress(config.train.log_every);
    if (device.note) events.subscribe((event) => event.type === "started" && printNote(device.note!));
    events.subscribe(terminal(progress));
    const options = { device, force: args.flag("force"), texts: listen !== null && config.status.samples };
    const retraining = new Retraining(config, { ...options, events, note: printNote });
    let page: StatusOfRun | null = null;
    using _signals = onSignal(() => {
      progress.end();
      if (!retraining.stop()) return "wait"; // for the line that says why it failed
      printNote("stopping: the state is saved first; a second signal ends the program at once");
      page?.stopping();
      return "wait";
    });
    await using status = listen === null ? null : await serve(config, listen, events);
    page = status;
    const record = await finished(retraining, progress, args);
    tell(() => {
      if (json) printJson(record);
      else for (const line of describe(record, config.output)) printLine(line);
    }, `the outcome is '${record.outcome}', ${config.output}/result.json has the record`);
    return record.exit_code;
  },
};

async function finished(retraining: Retraining, progress: Progress, args: Arguments): Promise<RetrainRecord> {
  try {
    return await retraining.run();
  } catch (error) {
    throw error instanceof RetrainFailure ? failure(error.ending, args.flag("debug")) : error;
  } finally {
    progress.end();
  }
}

function describe({ outcome, reason, comparison, cost, release, attempt }: RetrainRecord, output: string): string[] {
  switch (outcome) {
    case "unchanged":
      return [`nothing to do: ${reason}`];
    case "stopped":
      return [`${reason}: the next invocation goes on`];
    case "published":
    case "rejected":
      return [
        `attempt ${attempt}: ${counted(cost!.steps, "step")} in ${duration(cost!.training_seconds)}, peak memory ${
          formatBytes(cost!.peak_memory_bytes)
        }`,
        `${comparison!.data} ${describeEvaluation(comparison!.candidate)}`,
        outcome === "published" ? `published release ${release}: ${reason}` : `not published: ${reason}`,
        outcome === "published" ? `adapter in ${output}/current/adapter` : `the candidate is in ${output}/candidate`,
      ];
    default:
      return [`${outcome}: ${reason}`];
  }
}
