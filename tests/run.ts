/**
 * Runs the tests of the project with sanitizers on and ends with one line, "N passed, N failed".
 *
 *   deno run -A tests/run.ts [FILE | FOLDER | any option of deno test]…
 *
 * The counts come from the JUnit file that `deno test` writes, so what it prints on the terminal stays untouched (colours,
 * progress), and its exit code is passed on.
 */

const permissions = ["ffi", "read", "write", "env", "sys", "run", "net"].map((name) => `--allow-${name}`);
const report = "build/tests.xml";

Deno.mkdirSync("build", { recursive: true });
try {
  Deno.removeSync(report);
} catch (error) {
  if (!(error instanceof Deno.errors.NotFound)) throw error;
}

const { code } = await new Deno.Command(Deno.execPath(), {
  args: ["test", "--quiet", "--parallel", ...permissions, `--junit-path=${report}`, ...Deno.args],
  env: {
    // Two modules at a time: the native library itself uses all cores.
    DENO_JOBS: Deno.env.get("DENO_JOBS") ?? "2",
    // Off by default since Deno 2.8; before, always on. (deno.json could say so, but Deno 2.5 refuses those keys.)
    DENO_TEST_SANITIZE_OPS: "1",
    DENO_TEST_SANITIZE_RESOURCES: "1",
  },
  stdin: "null",
}).spawn().status;

try {
  const cases = Deno.readTextFileSync(report).split("<testcase").slice(1);
  const skipped = cases.filter((each) => each.includes("<skipped")).length;
  const failed = cases.filter((each) => each.includes("<failure") || each.includes("<error")).length;
  if (skipped > 0) console.log(`${skipped} skipped (what they need is not here)`);
  console.log(`${cases.length - failed - skipped} passed, ${failed} failed`);
} catch (error) {
  if (!(error instanceof Deno.errors.NotFound)) throw error;
  console.error("Cannot run the tests: they did not start. See the messages above");
}
Deno.exit(code);
