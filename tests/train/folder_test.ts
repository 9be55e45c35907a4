import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../../lib/errors.ts";
import { requireFinite } from "../../lib/train/evaluation.ts";
import { outputProblem, RunFiles, RunFolder } from "../../lib/train/folder.ts";
import { FileLock } from "../../lib/train/lock.ts";

Deno.test("a run does not replace what no run has written", () => {
  const path = Deno.makeTempDirSync();
  try {
    Deno.mkdirSync(`${path}/adapter`);
    Deno.writeTextFileSync(`${path}/adapter/my.txt`, "mine");
    Deno.writeTextFileSync(`${path}/config.yaml`, "model: mine\n");
    {
      using folder = RunFolder.open(path);
      assertThrows(
        () => folder.requireOwn("model"),
        UserError,
        "it holds 'config.yaml', but no configuration that a run of metalora wrote",
      );
    }
    assertEquals(Deno.readTextFileSync(`${path}/adapter/my.txt`), "mine");
    Deno.writeTextFileSync(`${path}/config.yaml`, "# metalora 0.1.0: the configuration of this run with every default\n");
    using folder = RunFolder.open(path);
    folder.requireOwn("model");
  } finally {
    Deno.removeSync(path, { recursive: true });
  }
});

Deno.test("other files in an output folder are nobody's business", () => {
  const path = Deno.makeTempDirSync();
  try {
    Deno.writeTextFileSync(`${path}/notes.txt`, "mine");
    using folder = RunFolder.open(path);
    folder.requireOwn("model");
    using files = new RunFiles(path);
    files.remove(["checkpoints"]);
    assertEquals(Deno.readTextFileSync(`${path}/notes.txt`), "mine");
  } finally {
    Deno.removeSync(path, { recursive: true });
  }
});

Deno.test("a run notices that its folder was removed or replaced; a log that is gone costs it nothing", () => {
  const parent = Deno.makeTempDirSync(), path = `${parent}/out`;
  try {
    Deno.mkdirSync(path);
    using files = new RunFiles(path);
    files.startLog("metrics.jsonl");
    files.log("metrics.jsonl", {});
    Deno.removeSync(`${path}/metrics.jsonl`);
    files.log("metrics.jsonl", {});
    assertEquals(files.flushLog("metrics.jsonl"), 6);
    const noticed = () => assertThrows(() => files.log("metrics.jsonl", {}), UserError, `${path} was removed or replaced`);
    Deno.removeSync(path);
    noticed();
    Deno.writeTextFileSync(path, "");
    noticed();
    Deno.removeSync(path);
    Deno.mkdirSync(`${parent}/between`); // so that the system does not give the same number again
    Deno.mkdirSync(path);
    noticed();
  } finally {
    Deno.removeSync(parent, { recursive: true });
  }
});

Deno.test("an evaluation whose loss is no number names the sample", () => {
  const samples = [{ id: "a" }, { id: "b" }];
  requireFinite({ sums: Float64Array.of(1, 2) }, samples, "evaluate");
  assertThrows(
    () => requireFinite({ sums: Float64Array.of(1, NaN) }, samples, "evaluate"),
    UserError,
    "Cannot evaluate: the loss of the sample b is NaN. Check the weights",
  );
});

/** Calls `action` in place of the first call of a function of Deno. */
function instead<K extends "openSync" | "mkdirSync">(name: K, action: (original: typeof Deno[K]) => void): Disposable {
  const original = Deno[name];
  const restore = () => void (Deno[name] = original);
  Deno[name] = ((...args: Parameters<typeof original>) => {
    restore();
    action(original);
    return (original as (...args: unknown[]) => unknown)(...args);
  }) as typeof Deno[K];
  return { [Symbol.dispose]: restore };
}

Deno.test("a folder that a run beside it removes again before the lock is taken is made once more", () => {
  const parent = Deno.makeTempDirSync();
  try {
    {
      using _instead = instead("openSync", () => Deno.removeSync(`${parent}/new/out`));
      using folder = RunFolder.open(`${parent}/new/out`);
      assertEquals(Deno.statSync(`${folder.path}/.lock`).isFile, true);
    }
    assertEquals([...Deno.readDirSync(parent)], []);
  } finally {
    Deno.removeSync(parent, { recursive: true });
  }
});

Deno.test("looking whether an output can be written makes no folder of that name and takes no lock", () => {
  const parent = Deno.makeTempDirSync();
  try {
    using _instead = instead("mkdirSync", () => assertEquals("made", "not made"));
    assertEquals(outputProblem({ output: `${parent}/new/out`, model: "model" }), null);
    Deno.writeTextFileSync(`${parent}/.lock`, "");
    const { ino, mtime } = Deno.statSync(`${parent}/.lock`);
    assertEquals(outputProblem({ output: parent, model: "model" }), null);
    const after = Deno.statSync(`${parent}/.lock`);
    assertEquals([after.ino, after.mtime, after.size], [ino, mtime, 0]);
    assertEquals(Array.from(Deno.readDirSync(parent), ({ name }) => name), [".lock"]);
  } finally {
    Deno.removeSync(parent, { recursive: true });
  }
});

Deno.test("without the kernel's locks, of two that find a lock free at once the last one to write its number has it", async () => {
  const path = Deno.makeTempFileSync();
  const prototype = Deno.FsFile.prototype as { tryLockSync?: unknown };
  const own = Object.getOwnPropertyDescriptor(prototype, "tryLockSync");
  delete prototype.tryLockSync;
  // The neighbour writes as soon as this process has written.
  const source = `onmessage = ({ data: [path, pid] }) => {
    postMessage("ready");
    while (Deno.statSync(path).size === 0);
    Deno.writeTextFileSync(path, pid + "\\n");
    postMessage("done");
  };`;
  const worker = new Worker(`data:application/javascript,${encodeURIComponent(source)}`, { type: "module" });
  const heard = () => new Promise((resolve) => worker.onmessage = resolve);
  try {
    worker.postMessage([path, Deno.ppid]);
    await heard();
    const error = assertThrows(() => FileLock.take(path, "it"), UserError, `the run of process ${Deno.ppid} holds it`);
    assertEquals(error.exitCode, 75);
    assertEquals(Deno.readTextFileSync(path), `${Deno.ppid}\n`);
  } finally {
    worker.terminate();
    if (own) Object.defineProperty(prototype, "tryLockSync", own);
    Deno.removeSync(path);
  }
});
