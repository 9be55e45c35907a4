import { assert, assertEquals } from "@std/assert";

const root = new URL("../../", import.meta.url).pathname;
const model = `${root}../shared/models/stories260K`;
const data = `${root}../shared/data/mawps_asdiv_svamp_dev.jsonl`;
const ignore = (() => {
  try {
    return !Deno.statSync(model).isDirectory || !Deno.statSync(data).isFile;
  } catch {
    return true;
  }
})();
if (ignore) console.log("skipped: tests with ../shared/models/stories260K and ../shared/data, which are not here");

function preview(settings: string, ...args: string[]): { code: number; stdout: string; stderr: string } {
  const dir = Deno.makeTempDirSync();
  try {
    Deno.writeTextFileSync(`${dir}/c.yaml`, `model: ${model}\noutput: ${dir}/run\n${settings}`);
    const { code, stdout, stderr } = new Deno.Command(Deno.execPath(), {
      args: ["run", "--quiet", "--allow-read", "--allow-env", "--allow-sys", "main.ts", "preview", `${dir}/c.yaml`, ...args],
      cwd: root,
    }).outputSync();
    const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes).replaceAll(dir, "DIR");
    return { code, stdout: text(stdout), stderr: text(stderr) };
  } finally {
    Deno.removeSync(dir, { recursive: true });
  }
}

Deno.test({
  name: "metalora preview --json prints {id, ids, labels, text} for every sample",
  ignore,
  fn() {
    const { code, stdout } = preview(`data: { train: { path: ${data}, limit: 7 } }\n`, "--json");
    assertEquals(code, 0);
    const lines = stdout.trim().split("\n").map((line) => JSON.parse(line));
    assertEquals(lines.length, 7);
    for (const line of lines) {
      assertEquals(Object.keys(line), ["id", "ids", "labels", "text"]);
      assertEquals(line.ids.length, line.labels.length);
      assert(line.labels.every((label: number, t: number) => label === -100 || label === line.ids[t]));
      assert(line.text.startsWith("<s>") && line.text.endsWith("</s>"));
    }
    assertEquals(lines[0].id, "mawps_asdiv_svamp_dev:0");
    assertEquals(lines[0].labels.filter((label: number) => label >= 0).length, 13);
  },
});

Deno.test({
  name: "metalora preview in a pipe marks what is trained with ⟦ ⟧ and reports on stderr",
  ignore,
  fn() {
    const { code, stdout, stderr } = preview(`data: { train: { path: nowhere.jsonl } }\n`, "--data", data, "--limit", "2");
    assertEquals(code, 0);
    assertEquals(stdout.match(/⟦.*?⟧/gs), ["⟦ - 18 10 = 8</s>⟧", "⟦ - 12 11 = 1</s>⟧"]);
    assert(!stdout.includes("\x1b"));
    assert(stdout.startsWith("── mawps_asdiv_svamp_dev:0: 184 tokens, 13 trained, source arkilpatel/SVAMP"), stdout);
    assert(stderr.includes("2 shown, 0 truncated"), stderr);
  },
});

Deno.test({
  name: "metalora preview explains a missing file with one line and exit code 2",
  ignore,
  fn() {
    const { code, stdout, stderr } = preview(`data: { train: { path: nowhere.jsonl } }\n`);
    assertEquals([code, stdout], [2, ""]);
    assertEquals(stderr, "metalora: Cannot read the data nowhere.jsonl: there is no such file. Check the path\n");
  },
});
