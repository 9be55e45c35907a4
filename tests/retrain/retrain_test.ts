/** `metalora retrain` as cron calls it: a process a night. */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import type { RetrainRecord } from "../../lib/retrain/records.ts";
import { command, type Result, rows, sha256, type Workspace, workspace } from "../e2e/harness.ts";

const SHORT = ["--threads=1", "--device=cpu"];

/** One night. */
async function night(space: Workspace, ...args: string[]): Promise<Result & { record: RetrainRecord }> {
  const result = await space.run("retrain", "run.yaml", ...SHORT, "--json", ...args);
  const lines = result.out.trimEnd().split("\n");
  assertEquals(lines.length, 1, result.out + result.err);
  return { ...result, record: lines[0] === "" ? null as never : JSON.parse(lines[0]!) };
}

const set = (...settings: string[]) => settings.flatMap((each) => ["--set", each]);

const current = (space: Workspace) => Deno.readLinkSync(space.file("out/current"));
const history = (space: Workspace): RetrainRecord[] => space.jsonl("out/history.jsonl");
const outcomes = (space: Workspace) => history(space).map(({ outcome }) => outcome);
const releaseHash = (space: Workspace, release = "current") =>
  sha256(Deno.readFileSync(space.file("out", release, "adapter/adapter_model.safetensors")));

/** Different rows: what a day brought. */
function newData(space: Workspace, day: number): void {
  space.write("train.jsonl", rows(10 * day, 20));
}

/** A second release. */
async function twoReleases(space: Workspace): Promise<void> {
  assertEquals((await night(space)).record.release, "0001");
  newData(space, 1);
  assertEquals((await night(space)).record.release, "0002");
}

Deno.test("the first night publishes, the second does nothing, and new data is trained on from the published adapter", async () => {
  using space = workspace();
  const first = await night(space);
  assertEquals([first.code, first.record.outcome, first.record.release, first.record.start], [0, "published", "0001", null]);
  assertEquals(first.record, space.json("out/result.json"));
  assertEquals([first.record], history(space));
  assertEquals(current(space), "releases/0001");
  assertEquals(first.record.adapter_sha256, await releaseHash(space));
  const { comparison, cost } = first.record;
  assertEquals([comparison!.data, comparison!.path, comparison!.published], ["test", "test.jsonl", null]);
  assert(comparison!.base!.loss > comparison!.candidate.loss, first.record.reason);
  assertEquals([cost!.steps, cost!.tokens > 0, cost!.training_seconds > 0, cost!.peak_memory_bytes > 1e6], [4, true, true, true]);
  // The release is what `train` itself makes of the same configuration.
  await space.train("plain");
  assertEquals(await releaseHash(space), await space.adapterHash("plain"));

  const before = space.tree("out"), link = Deno.lstatSync(space.file("out/current")).mtime;
  const second = await night(space);
  assertEquals([second.code, second.record.outcome, second.record.release], [0, "unchanged", null]);
  assertStringIncludes(second.record.reason, "unchanged since attempt 1 (published as release 0001)");
  assertEquals([space.tree("out"), Deno.lstatSync(space.file("out/current")).mtime], [before, link]);
  assertEquals([history(space).length, space.json("out/result.json")], [1, second.record]);
  // Another time stamp, another place and another progress are no change.
  space.write("elsewhere.jsonl", space.read("train.jsonl"));
  Deno.utimeSync(space.file("test.jsonl"), new Date(0), new Date(0));
  const moved = await night(space, ...set("data.train.path=elsewhere.jsonl", "train.log_every=3", "checkpoints.every=2"));
  assertEquals(moved.record.outcome, "unchanged");

  newData(space, 1);
  const third = await night(space);
  assertStringIncludes(first.err, "\nmeasuring the candidate and the model without adapter\n");
  assertStringIncludes(third.err, "\nmeasuring the candidate and release 0001\n");
  assertEquals([third.code, third.record.outcome, third.record.changed], [0, "published", ["training data"]]);
  assertEquals([third.record.start, third.record.attempt, current(space)], ["0001", 2, "releases/0002"]);
  assertEquals(third.record.comparison!.release, "0001");
  // The published adapter is worth on this night what it was worth as a candidate.
  assertEquals(third.record.comparison!.published, first.record.comparison!.candidate);
});

Deno.test("in a folder where train has worked before, eval and report take what retrain has published", async () => {
  using space = workspace();
  await space.train("out");
  const page = space.read("out", "report.html");
  await night(space);
  const { out } = await space.ok("eval", "run.yaml", "--threads=1", "--json");
  assertEquals(JSON.parse(out).adapter, "out/current/adapter");
  assertEquals((await space.ok("report", "run.yaml")).out, "wrote out/current/report.html\n");
  assertEquals(space.read("out", "report.html"), page);
});

Deno.test("each kind of change is told: configuration, validation data, test data, base model", async () => {
  using space = workspace();
  await night(space);
  const changes: [string, () => string[]][] = [
    ["configuration", () => set("optimizer.lr=0.02")],
    ["validation data", () => (space.write("validation.jsonl", rows(130, 6)), set("optimizer.lr=0.02"))],
    ["test data", () => (space.write("test.jsonl", rows(230, 5)), set("optimizer.lr=0.02"))],
    ["base model", () => {
      const path = space.file("model/model.safetensors");
      const bytes = Deno.readFileSync(path);
      bytes[bytes.length - 2]! ^= 1;
      Deno.writeFileSync(path, bytes);
      return set("optimizer.lr=0.02");
    }],
  ];
  let args: string[] = [];
  for (const [name, change] of changes) {
    args = change();
    const { record, err } = await night(space, ...args);
    assertEquals(record.changed, [name]);
    if (name !== "base model") continue;
    // Its adapter says nothing about another model: neither started from nor compared with.
    assertEquals([record.start, record.comparison!.release, record.outcome], [null, null, "published"]);
    assertMatch(err, /belongs to another base model: starting from a fresh adapter/);
  }
  assertEquals((await night(space, ...args)).record.outcome, "unchanged");
});

Deno.test("a candidate that is worse is not published: exit code 3, with the reason, and not tried again unchanged", async () => {
  using space = workspace();
  await night(space, ...set("train.steps=30"));
  const before = await releaseHash(space);
  space.write("train.jsonl", rows(0, 20).map((row) => ({ ...row, completion: " 9Z#9Z#9Z" })));
  const args = set("train.steps=30", "retrain.from=fresh");
  const worse = await night(space, ...args);
  assertEquals([worse.code, worse.record.outcome, worse.record.exit_code, worse.record.release], [3, "rejected", 3, null]);
  const { candidate, published } = worse.record.comparison!;
  assert(candidate.loss > published!.loss);
  assertEquals(
    worse.record.reason,
    `loss ${candidate.loss.toFixed(4)} on the test data against ${published!.loss.toFixed(4)} of release 0001: ` +
      `worse by ${(candidate.loss - published!.loss).toFixed(4)}, margin 0`,
  );
  assertEquals([current(space), await releaseHash(space), worse.record.current], ["releases/0001", before, "0001"]);
  assert(space.exists("out/candidate/report.html") && !space.exists("out/releases/0002"));
  const again = await night(space, ...args);
  assertEquals([again.code, again.record.outcome], [0, "unchanged"]);
  assertStringIncludes(again.record.reason, "not published: loss");
  // A margin that allows it is another configuration.
  const allowed = await night(space, ...args, ...set("retrain.margin=50"));
  assertEquals([allowed.record.outcome, allowed.record.changed], ["published", ["configuration"]]);
  // Better, but not by as much as is asked for.
  const strict = await night(space, ...set("train.steps=31", "retrain.margin=-100"));
  assertEquals(strict.record.outcome, "rejected");
  assertMatch(strict.record.reason, /: better by \d\.\d{4}, margin -100$/);
  assertEquals(outcomes(space), ["published", "rejected", "published", "rejected"]);
  assertEquals(history(space).map(({ number }) => number), [1, 2, 3, 4]);
});

Deno.test("without test data the validation data decides, and without either nothing is trained", async () => {
  using space = workspace();
  const { record } = await night(space, ...set("data.test=null", "retrain.metric=accuracy"));
  assertEquals([record.comparison!.data, record.comparison!.metric, record.comparison!.sha256], [
    "validation",
    "accuracy",
    record.inputs!.validation,
  ]);
  const none = await space.run("retrain", "run.yaml", ...SHORT, ...set("data.test=null", "data.validation=null"));
  assertEquals([none.code, none.out], [2, ""]);
  assertMatch(none.err, /^metalora: Cannot retrain: there is no data to compare adapters on\. Add data\.test,/m);
  assertEquals(outcomes(space), ["published", "failed"]);
});

Deno.test("a failure is recorded, publishes nothing, and the next night goes on", async () => {
  using space = workspace();
  await night(space);
  Deno.renameSync(space.file("train.jsonl"), space.file("gone.jsonl"));
  const failed = await space.run("retrain", "run.yaml", ...SHORT, "--json");
  assertEquals(failed.code, 2);
  assertMatch(failed.err, /^metalora: Cannot read the data train\.jsonl: there is no such file/m);
  const { outcome, exit_code, reason, current: now } = space.json("out/result.json");
  assertEquals([outcome, exit_code, now], ["failed", 2, "0001"]);
  assertStringIncludes(reason, "train.jsonl");
  Deno.renameSync(space.file("gone.jsonl"), space.file("train.jsonl"));
  assertEquals((await night(space)).record.outcome, "unchanged");
  // A loss that is no number ends the training; the adapter that is published stays.
  newData(space, 3);
  const wild = await space.run(
    "retrain",
    "run.yaml",
    ...SHORT,
    ...set("optimizer.lr=1e30", "optimizer.clip=0", "train.steps=40"),
  );
  assertEquals(wild.code, 1, wild.err);
  assertEquals([outcomes(space), current(space)], [["published", "failed", "failed"], "releases/0001"]);
});

Deno.test("a second invocation, and a training in the same folder, exit with 75 and change nothing", async () => {
  using space = workspace();
  const long = set("train.steps=1000000", "checkpoints.every=1000");
  const first = command(["retrain", "run.yaml", ...SHORT, ...long], space.path).spawn();
  const lines = first.stderr.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; !text.includes("step 10/"); text += (await lines.read()).value ?? assert(false, text));
  for (const name of ["retrain", "train"]) {
    const second = await space.run(name, "run.yaml", ...SHORT, "--json");
    assertEquals([second.code, JSON.parse(second.out).exit_code], [75, 75], second.err);
    assertStringIncludes(second.err, `the run of process ${first.pid} holds it`);
  }
  assert(!space.exists("out/history.jsonl"));
  first.kill("SIGTERM");
  while (!(await lines.read()).done);
  const [{ code }] = await Promise.all([first.status, first.stdout.cancel()]);
  assertEquals([code, outcomes(space), space.json("out/result.json").outcome], [143, ["stopped"], "stopped"]);
  assertMatch(history(space)[0]!.reason, /^stopped at step \d+ of the training$/);
});

/** Sends SIGTERM to a night as soon as it has said something. */
async function stopped(
  space: Workspace,
  says: string,
  ...args: string[]
): Promise<{ code: number; record: RetrainRecord; err: string }> {
  const process = command(["retrain", "run.yaml", ...SHORT, "--json", ...args], space.path).spawn();
  const lines = process.stderr.pipeThrough(new TextDecoderStream()).getReader();
  const out = new Response(process.stdout).text();
  let err = "";
  while (!err.includes(says)) err += (await lines.read()).value ?? assert(false, err);
  process.kill("SIGTERM");
  for (let read; !(read = await lines.read()).done;) err += read.value;
  const { code } = await process.status;
  return { code, record: JSON.parse(await out), err };
}

Deno.test("a night that is stopped before it trains, or once it has trained, is recorded, and the next one goes on", async () => {
  using space = workspace();
  space.write("test.jsonl", rows(200, 500)); // measuring them takes a moment
  await night(space);
  newData(space, 1);
  for (
    const [says, reason, ...args] of [
      ["status: ", "stopped before the training began", "--status=127.0.0.1:0"],
      ["attempt 2, which", "stopped before the training began"],
      ["measuring the candidate", "stopped while the candidate was measured"],
    ] as const
  ) {
    const { code, record, err } = await stopped(space, says, ...args);
    assertEquals([code, record.outcome, record.reason, record.exit_code], [143, "stopped", reason, 143], err);
    assertEquals([space.json("out/result.json"), history(space).at(-1)], [record, record]);
    assertStringIncludes(err, "stopping: the state is saved first; a second signal ends the program at once\n");
  }
  const { record } = await night(space);
  assertEquals([record.outcome, record.attempt], ["published", 2]);
  assertEquals(outcomes(space), ["published", "stopped", "stopped", "stopped", "published"]);
});

Deno.test("a night that was stopped is gone on with, to the very adapter of one that was not", async () => {
  using space = workspace();
  const sets = set("train.steps=600", "checkpoints={ every: 200, keep: 2 }", "reweight.method=meta-lora", "output=out");
  const process = command(["retrain", "run.yaml", ...SHORT, ...sets], space.path).spawn();
  const lines = process.stderr.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; !text.includes("step 30/"); text += (await lines.read()).value ?? assert(false, text));
  process.kill("SIGINT");
  while (!(await lines.read()).done);
  const [{ code }] = await Promise.all([process.status, process.stdout.cancel()]);
  assertEquals(code, 143);
  const { record, err } = await night(space, ...sets, ...set("checkpoints.every=150"));
  assertStringIncludes(err, "going on with attempt 1, which was interrupted");
  assertMatch(err, /continuing from step \d+/);
  assertEquals([record.outcome, record.attempt, record.cost!.steps], ["published", 1, 600]);
  assertEquals(outcomes(space), ["stopped", "published"]);
  await space.train("whole", ["train.steps=600", "reweight.method=meta-lora", "checkpoints={ every: 0 }"]);
  assertEquals(await releaseHash(space), await space.adapterHash("whole"));
  assert(!space.exists("out/candidate") && !space.exists("out/attempt.json"));
});

Deno.test("what was begun from other data is thrown away, and so is a checkpoint that cannot be resumed", async () => {
  using space = workspace();
  const sets = set("train.steps=1000000", "checkpoints={ every: 50 }");
  const process = command(["retrain", "run.yaml", ...SHORT, ...sets], space.path).spawn();
  const lines = process.stderr.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; !text.includes("step 60/"); text += (await lines.read()).value ?? assert(false, text));
  process.kill("SIGKILL");
  while (!(await lines.read()).done);
  await Promise.all([process.status, process.stdout.cancel()]);
  newData(space, 4);
  const { record } = await night(space);
  assertEquals([record.outcome, record.attempt, record.cost!.steps], ["published", 2, 4]);

  newData(space, 5);
  const attempt = { format: 1, attempt: 3, start: "0001", start_sha256: record.adapter_sha256 };
  Deno.mkdirSync(space.file("out/candidate/checkpoints/step-2"), { recursive: true });
  space.write("out/candidate/config.yaml", "# metalora 0.0.1\n");
  space.write("out/candidate/checkpoints/step-2/state.json", { format: 99, step: 2 });
  space.write("out/candidate/checkpoints/step-2/manifest.json", {});
  const inputs = { ...record.inputs!, train: await sha256(Deno.readFileSync(space.file("train.jsonl"))) };
  space.write("out/attempt.json", { ...attempt, inputs });
  const other = await night(space);
  assertMatch(other.err, /Cannot resume from .*: its format is 99.*; training from the beginning/);
  assertEquals([other.record.outcome, other.record.attempt], ["published", 3]);
});

Deno.test("--rollback goes back one release, is recorded, and stays until something changes", async () => {
  using space = workspace();
  await twoReleases(space);
  const { code, record } = await night(space, "--rollback");
  assertEquals([code, record.outcome, record.reason, record.current], [0, "rolled back", "from release 0002 to 0001", "0001"]);
  assertEquals([current(space), record.adapter_sha256], ["releases/0001", await releaseHash(space)]);
  assertEquals([outcomes(space).at(-1), space.json("out/result.json")], ["rolled back", record]);
  assertEquals((await night(space)).record.outcome, "unchanged");
  assertEquals(current(space), "releases/0001");
  // What comes next begins at, and is compared with, the release that was gone back to. 0002 is no way back from it.
  newData(space, 2);
  const third = await night(space, ...set("retrain.margin=10"));
  assertEquals([third.record.release, third.record.start, third.record.comparison!.release], ["0003", "0001", "0001"]);
  await night(space, "--rollback");
  assertEquals(current(space), "releases/0001");
  const none = await space.run("retrain", "run.yaml", "--rollback");
  assertEquals([none.code, current(space)], [1, "releases/0001"]);
  assertMatch(none.err, /there is no whole release before 0001\. Name one of 0002, 0003 with --release\n$/);
  await night(space, "--rollback", "--release=2");
  assertEquals(current(space), "releases/0002");
  const unknown = await space.run("retrain", "run.yaml", "--rollback", "--release=7");
  const line = "metalora: Cannot roll back to '7': there is no such release. Releases: 0001, 0002, 0003\n";
  assertEquals([unknown.code, unknown.err], [2, line]);
  const nothing = await space.run("retrain", "run.yaml", "--rollback", "--set", "output=other");
  assertEquals([nothing.code, space.exists("other")], [1, false]);
});

Deno.test("a rollback does not wait for a training, and the candidate is then compared with what is current", async () => {
  using space = workspace();
  await twoReleases(space);
  newData(space, 2);
  const sets = set("train.steps=3000", "retrain.margin=100");
  const process = command(["retrain", "run.yaml", ...SHORT, "--json", ...sets], space.path).spawn();
  const lines = process.stderr.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; !text.includes("step 20/"); text += (await lines.read()).value ?? assert(false, text));
  await night(space, "--rollback");
  assertEquals(current(space), "releases/0001");
  while (!(await lines.read()).done);
  const [{ code }, out] = await Promise.all([process.status, new Response(process.stdout).json()]);
  assertEquals([code, out.outcome, out.start, out.comparison.release], [0, "published", "0002", "0001"]);
  assertEquals(space.json("out/releases/0003/release.json").previous, "0001");
});

Deno.test("old releases go, but never the current one nor the one before it", async () => {
  using space = workspace();
  const args = set("retrain.keep=2", "retrain.margin=100");
  for (const day of [1, 2, 3, 4]) {
    newData(space, day);
    assertEquals((await night(space, ...args)).record.release, `000${day}`);
  }
  const releases = () => [...Deno.readDirSync(space.file("out/releases"))].map(({ name }) => name).sort();
  assertEquals([releases(), current(space)], [["0003", "0004"], "releases/0004"]);
  await night(space, "--rollback");
  newData(space, 5);
  await night(space, ...args); // from 0003, which stays; 0004 goes
  assertEquals([releases(), current(space)], [["0003", "0005"], "releases/0005"]);
});

Deno.test("settings of the adapter that do not fit the published one start afresh; --force trains unchanged inputs", async () => {
  using space = workspace();
  await night(space);
  const { record, err } = await night(space, ...set("adapter.rank=2", "retrain.margin=100"));
  assertEquals([record.start, record.comparison!.release, record.outcome], [null, "0001", "published"]);
  assertStringIncludes(err, "release 0001 has other settings of 'adapter': starting from a fresh adapter");
  const forced = await night(space, ...set("adapter.rank=2", "retrain.margin=100"), "--force");
  assertEquals([forced.record.changed, forced.record.start, forced.record.release], [[], "0002", "0003"]);
});

Deno.test("a damaged release is not trained from or compared with, and a rollback passes over it", async () => {
  using space = workspace();
  await twoReleases(space);
  const path = space.file("out/releases/0002/adapter/adapter_model.safetensors");
  Deno.truncateSync(path, 100);
  newData(space, 2);
  const failed = await space.run("retrain", "run.yaml", ...SHORT);
  assertEquals(failed.code, 1);
  assertMatch(
    failed.err,
    /Cannot use the release out\/releases\/0002: .* is not what was published\. Go back to a whole one \(0001\)/,
  );
  await night(space, "--rollback");
  assertEquals((await night(space)).record.start, "0001");
});

Deno.test("a damaged release is told of on a night without changes, too", async () => {
  using space = workspace();
  await night(space);
  const path = space.file("out/releases/0001/adapter");
  const refused = async (what: string) => {
    const { code, err } = await space.run("retrain", "run.yaml", ...SHORT);
    const advice = "No other one is whole: restore it, or remove out/releases to begin anew";
    assertEquals([code, err], [1, `metalora: Cannot use the release out/releases/0001: ${what}. ${advice}\n`]);
    assertEquals(space.json("out/result.json").outcome, "failed");
  };
  const config = space.read("out/current/adapter/adapter_config.json");
  for (const damaged of [null, config.slice(0, 40)]) {
    if (damaged === null) Deno.removeSync(`${path}/adapter_config.json`);
    else Deno.writeTextFileSync(`${path}/adapter_config.json`, damaged);
    await refused("it has no readable adapter/adapter_config.json");
  }
  Deno.writeTextFileSync(`${path}/adapter_config.json`, config);
  Deno.truncateSync(`${path}/adapter_model.safetensors`, 100);
  await refused("adapter/adapter_model.safetensors is not what was published");
});

Deno.test("where the current release is gone nothing is published unseen, until it is chosen what to go on from or to begin anew", async () => {
  using space = workspace();
  await twoReleases(space);
  await night(space, "--force", ...set("retrain.margin=100"));
  const refused = async () => {
    const { code, err, out } = await space.run("retrain", "run.yaml", ...SHORT, ...set("train.steps=5"));
    assertEquals([code, out, space.exists("out/candidate")], [1, "", false], err);
    assertStringIncludes(
      err,
      "metalora: Cannot use the release out/releases/0003: it is gone. Go back to a whole one (0001, 0002) with metalora retrain CONFIG " +
        "--rollback --release N, or remove out/releases to begin anew\n",
    );
  };
  Deno.removeSync(space.file("out/releases/0003"), { recursive: true });
  await refused(); // the link leads nowhere
  Deno.removeSync(space.file("out/current"));
  await refused();
  await night(space, "--rollback", "--release=2");
  const next = await night(space, ...set("retrain.margin=100", "train.steps=5"));
  assertEquals([next.record.release, next.record.start, next.record.comparison!.release], ["0004", "0002", "0002"]);
  Deno.removeSync(space.file("out/releases"), { recursive: true });
  const anew = await night(space, ...set("retrain.margin=100", "train.steps=5"));
  assertEquals([anew.record.release, anew.record.start, anew.record.comparison!.release], ["0005", null, null]);
});

Deno.test("files of somebody else are left alone", async () => {
  using space = workspace();
  Deno.mkdirSync(space.file("out/current"), { recursive: true });
  const link = await space.run("retrain", "run.yaml", ...SHORT);
  assertEquals(link.code, 2);
  assertMatch(link.err, /out\/current is no link that metalora made\. Move it away/);
  Deno.removeSync(space.file("out"), { recursive: true });
  Deno.mkdirSync(space.file("out"));
  space.write("out/result.json", { mine: 1 });
  const result = await space.run("retrain", "run.yaml", ...SHORT);
  assertEquals([result.code, space.json("out/result.json")], [2, { mine: 1 }]);
  assertMatch(
    result.err,
    /^metalora: Cannot use the output out: metalora retrain would replace out\/result\.json, which it did not write\. Move that file /m,
  );
});

Deno.test("a result.json that is damaged beside its history is written anew", async () => {
  using space = workspace();
  await night(space);
  for (const damaged of ["", '{ "outcome": "publ', "[]", "3"]) {
    space.write("out/result.json", damaged);
    const { code, record, err } = await night(space);
    assertEquals([code, record.outcome, space.json("out/result.json")], [0, "unchanged", record]);
    assertStringIncludes(err, "out/result.json is damaged: the next decision writes it anew\n");
  }
  space.write("out/history.jsonl", `{"format": 1, "numb\n${space.read("out/history.jsonl")}`);
  assertStringIncludes((await night(space)).err, "line 1 of out/history.jsonl is damaged: it is passed over\n");
});

Deno.test("data that changes while the candidate is trained is told, whether it is test data or held out of the training data", async () => {
  const cases = [
    ["test.jsonl", rows(230, 5), set("data.on_overlap=allow")],
    ["train.jsonl", rows(0, 30), set("data.test=null", "data.validation=null", "data.validation_split=4")],
  ] as const;
  for (const [name, after, settings] of cases) {
    using space = workspace();
    const long = [...settings, ...set("train.steps=3000", "optimizer.lr=1e-4")];
    const process = command(["retrain", "run.yaml", ...SHORT, ...long], space.path).spawn();
    const lines = process.stderr.pipeThrough(new TextDecoderStream()).getReader();
    let err = "";
    for (; !err.includes("step 20/"); err += (await lines.read()).value ?? assert(false, err));
    space.write(name, after);
    for (let next = await lines.read(); !next.done; next = await lines.read()) err += next.value;
    const [{ code }] = await Promise.all([process.status, process.stdout.cancel()]);
    assertEquals(code, 1, err);
    assertStringIncludes(err, `metalora: Cannot retrain: ${name} changed while the candidate was trained. Run it again\n`);
    assertEquals([outcomes(space), space.exists("out/candidate"), space.exists("out/current")], [["failed"], false, false]);
    const next = await night(space, ...settings);
    assertEquals([next.record.outcome, next.record.attempt, next.record.cost!.steps], ["published", 2, 4]);
  }
});

Deno.test("a named pipe in the place of a file that retraining reads is not waited for", async () => {
  using space = workspace();
  await night(space);
  const pipe = (name: string) => {
    if (space.exists(name)) Deno.removeSync(space.file(name));
    assert(new Deno.Command("mkfifo", { args: [space.file(name)] }).outputSync().success);
  };
  for (const name of ["out/result.json", "out/attempt.json", "out/releases/journal.json"]) {
    pipe(name);
    const { code, record, err } = await night(space);
    assertEquals([code, record?.outcome, space.json("out/result.json").outcome], [0, "unchanged", "unchanged"], name + err);
  }
  pipe("out/history.jsonl");
  const { code, err } = await space.run("retrain", "run.yaml", ...SHORT);
  const line = "Cannot read the history out/history.jsonl: it is not a regular file. Restore the file, or move it away";
  assertEquals([code, err], [1, `metalora: ${line}\n`]);
});
