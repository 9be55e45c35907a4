/**
 * The dashboard in a real browser. Screenshots go to build/screenshots/, for whoever wants to look.
 *
 * Chromium is started once for all of them; playwright's own pipes stay open between the tests, hence no sanitizers here.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import type { Browser, Page } from "playwright-core";
import { serveStatus, type StatusServer } from "../../lib/status/server.ts";
import { RunStatus } from "../../lib/status/snapshot.ts";
import { CHROMIUM, openBrowser, openPage } from "./browser.ts";
import { FakeClock, FakeRun } from "./fake_run.ts";

const FOLDER = new URL("../../build/screenshots/", import.meta.url).pathname;
const TOKEN = "a-token-for-browsers";
const DESK = { width: 1200, height: 900 };
const PHONE = { width: 360, height: 740 };

/** A server on a fake run that is at a step. */
class Shown {
  readonly run = new FakeRun({ steps: 1200 });
  readonly clock = new FakeClock();
  readonly status: RunStatus;
  readonly server: StatusServer;

  constructor(
    { step = 0, samples = false, port = 0, token = null as string | null, status = undefined as RunStatus | undefined } = {},
  ) {
    const { now, wall } = this.clock;
    this.status = status ?? new RunStatus({ samples, now, wall });
    if (step > 0) {
      for (const event of this.run.until(step)) {
        if (event.type === "stepped") this.clock.ms = 1000 + 1000 * event.seconds;
        this.status.apply(event);
      }
    }
    this.server = serveStatus({ host: "127.0.0.1", port, status: this.status, token, limits: { interval: 50 } });
  }
}

let browser: Browser | null = null;

function browserTest(name: string, act: (browser: Browser) => Promise<void>): void {
  Deno.test({
    name,
    ignore: CHROMIUM === null,
    sanitizeOps: false,
    sanitizeResources: false,
    fn: async () => await act(browser ??= await openBrowser()),
  });
}

Deno.test.afterAll(async () => {
  await browser?.close();
});

async function screenshot(page: Page, name: string): Promise<void> {
  Deno.mkdirSync(FOLDER, { recursive: true });
  await page.screenshot({ path: `${FOLDER}${name}.png`, fullPage: true });
}

const text = async (page: Page, id: string) => (await page.textContent(`#${id}`))!.trim();

/** Waits until an expression holds in the page. (playwright's own waiting needs eval, which the page's policy forbids.) */
async function until(page: Page, expression: string): Promise<void> {
  const end = Date.now() + 15_000;
  while (!await page.evaluate(expression)) {
    assert(Date.now() < end, `never: ${expression}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
const charts = (page: Page) => page.waitForSelector("#loss-chart path.line");

const LOOKS = [
  { name: "light", viewport: DESK, colorScheme: "light" },
  { name: "dark", viewport: DESK, colorScheme: "dark" },
  { name: "phone", viewport: PHONE, colorScheme: "light", hasTouch: true },
  { name: "phone-dark", viewport: PHONE, colorScheme: "dark", hasTouch: true },
] as const;

for (const { name, ...look } of LOOKS) {
  browserTest(`the dashboard shows a run: ${name}`, async (browser) => {
    const { server } = new Shown({ step: 613, samples: true });
    const { page, complaints, requests, close } = await openPage(browser, look);
    try {
      await page.goto(server.url);
      await charts(page);
      await page.waitForSelector("#most li");
      await screenshot(page, name);
      assertEquals(complaints, [], "the browser complains about nothing");
      assert(requests.every((url) => url.startsWith(server.url) || url.startsWith("data:")), "nothing is loaded from elsewhere");
      assertEquals(await page.title(), "51 % · word-problems · metalora");
      assertEquals(await text(page, "state"), "Training");
      assertEquals(await text(page, "link"), "Live");
      assertEquals(await text(page, "steps"), "step 613 of 1,200");
      assertMatch(await text(page, "left"), /^4 min 5\d s left$/);
      assertEquals(await page.locator("figure svg").count(), 6);
      assertEquals(await page.locator("#evaluation-rows tr").count(), 2);
      // Nothing sticks out: neither of the page nor of its cards.
      const { wide, inner } = await page.evaluate(`({
        wide: document.documentElement.scrollWidth,
        inner: [...document.querySelectorAll(".card, h1, h2, dd, figure, .scroll")].filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.id || e.textContent),
      })`) as { wide: number; inner: string[] };
      assertEquals([wide, inner], [look.viewport.width, []]);
    } finally {
      await close();
      await server.stop();
    }
  });

  browserTest(`every text of the dashboard can be read: ${name}`, async (browser) => {
    const { server } = new Shown({ step: 120, samples: true });
    const { page, close } = await openPage(browser, look);
    try {
      await page.goto(server.url);
      await charts(page);
      await page.waitForSelector("#most li");
      const low = await page.evaluate(LOW_CONTRAST) as string[];
      assertEquals(low, [], "texts with a contrast below 4.5 : 1 (WCAG AA)");
    } finally {
      await close();
      await server.stop();
    }
  });
}

/** Runs in the page: texts whose contrast with what lies behind them is below 4.5. */
const LOW_CONTRAST = `(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map((v) => v / 255);
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((v, i) => v * a + below[i] * (1 - a));
  const behind = (element) => {
    if (!element) return [1, 1, 1];
    const color = rgba(getComputedStyle(element).backgroundColor);
    return color[3] === 1 ? color.slice(0, 3) : over(color, behind(element.parentElement));
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility() || element.closest("script, style")) continue;
    const style = getComputedStyle(element);
    const back = behind(element);
    const front = over(rgba(element.namespaceURI.endsWith("svg") ? style.fill : style.color), back);
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
    seen++;
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push(node.data.trim() + " " + ((a + 0.05) / (b + 0.05)).toFixed(2));
  }
  return seen > 40 ? low : ["only " + seen + " texts were found"];
})()`;

browserTest("the page follows the run live, up to its end", async (browser) => {
  const { server, status, run } = new Shown({ step: 20 });
  const { page, complaints, close } = await openPage(browser, { viewport: DESK });
  try {
    await page.goto(server.url);
    await charts(page);
    const before = await page.getAttribute("#loss-chart path.line", "d");
    for (let step = 21; step <= 40; step++) status.apply(run.stepped(step));
    await until(page, `document.getElementById("steps").textContent === "step 40 of 1,200"`);
    await until(page, `document.querySelector("#loss-chart path.line").getAttribute("d") !== ${JSON.stringify(before)}`);
    status.apply({ type: "stopping" });
    await until(page, `document.getElementById("state").textContent === "Stopping"`);
    status.apply(run.failed("Cannot write 'adapter': no space left"));
    await page.waitForSelector("#message:not([hidden])");
    assertEquals(await text(page, "message"), "Cannot write 'adapter': no space left");
    assertEquals([await text(page, "state"), await text(page, "link")], ["Failed", "The run is over"]);
    await screenshot(page, "failed");
    assertEquals(complaints, []);
  } finally {
    await close();
    await server.stop();
  }
});

browserTest("a lost connection is shown, and found again", async (browser) => {
  const first = new Shown({ step: 20 });
  const { page, close } = await openPage(browser, { viewport: PHONE });
  try {
    await page.goto(first.server.url);
    await charts(page);
    await first.server.stop();
    await until(page, `document.body.dataset.link === "lost"`);
    assertMatch(await text(page, "link"), /^Connection lost, trying again · numbers of \d\d:\d\d:\d\d$/);
    await screenshot(page, "lost");
    first.status.apply(first.run.stepped(21));
    const second = new Shown({ port: first.server.port, status: first.status });
    await until(page, `document.body.dataset.link === "live"`);
    assertEquals(await text(page, "steps"), "step 21 of 1,200");
    await second.server.stop();
  } finally {
    await close();
  }
});

browserTest("where streams are full the page polls", async (browser) => {
  const shown = new Shown({ step: 20 });
  const streams = await Promise.all(Array.from({ length: 16 }, () => fetch(`${shown.server.url}events`)));
  const { page, close } = await openPage(browser, { viewport: DESK });
  try {
    await page.goto(shown.server.url);
    await until(page, `document.body.dataset.link === "polling"`);
    shown.status.apply(shown.run.stepped(21));
    await until(page, `document.getElementById("steps").textContent === "step 21 of 1,200"`);
  } finally {
    await close();
    await Promise.all(streams.map(({ body }) => body!.cancel()));
    await shown.server.stop();
  }
});

browserTest("a browser asks for the token once and then shows everything", async (browser) => {
  const { server } = new Shown({ step: 20, token: TOKEN });
  const known = await openPage(browser, { viewport: DESK, httpCredentials: { username: "any", password: TOKEN } });
  const stranger = await openPage(browser, { viewport: DESK });
  try {
    await known.page.goto(server.url);
    await charts(known.page);
    await until(known.page, `document.body.dataset.link === "live"`);
    const response = await stranger.page.goto(server.url).catch(() => null);
    assert(response === null || response.status() === 401);
    assertEquals(await stranger.page.locator("#steps").count(), 0);
  } finally {
    await known.close();
    await stranger.close();
    await server.stop();
  }
});

browserTest("values of a step are shown to a pointer and to the arrow keys", async (browser) => {
  const { server } = new Shown({ step: 200 });
  const { page, close } = await openPage(browser, { viewport: DESK });
  try {
    await page.goto(server.url);
    await charts(page);
    await page.hover("#loss-chart", { position: { x: 600, y: 100 } });
    await page.waitForSelector("#loss-chart .tip:visible");
    const at = async () => Number(/step (\d+)/.exec(await page.textContent("#loss-chart .tip") ?? "")![1]);
    const pointed = await at();
    assert(pointed > 80 && pointed < 130, `step ${pointed}`);
    await page.mouse.move(5, 5);
    await page.focus("#loss-chart");
    await page.keyboard.press("ArrowLeft");
    assertEquals(await at() < pointed, true);
    await page.keyboard.press("ArrowRight");
    assertEquals(await at(), pointed);
    await page.keyboard.press("Escape");
    assertEquals(await page.locator("#loss-chart .tip:visible").count(), 0);
  } finally {
    await close();
    await server.stop();
  }
});

browserTest("texts of a run never become part of the page", async (browser) => {
  const shown = new Shown();
  const evil = `<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>`;
  const started = shown.run.started();
  shown.status.apply({ ...started, device: evil, config: { ...started.config, model: evil, output: evil } });
  for (let step = 1; step <= 20; step++) {
    const event = shown.run.stepped(step);
    const samples = event.samples.map((sample) => ({ ...sample, id: evil, source: evil, prompt: evil, response: evil }));
    shown.status.apply({ ...event, samples, fault: evil });
  }
  shown.status.apply({ type: "note", text: evil });
  const { page, complaints, close } = await openPage(browser, { viewport: DESK });
  try {
    await page.goto(shown.server.url);
    await charts(page);
    assertEquals(await page.locator("img").count(), 0);
    assertEquals(await page.locator("script").count(), 1);
    assert(!(await page.title()).startsWith("owned"));
    assertEquals(complaints, []);
  } finally {
    await close();
    await shown.server.stop();
  }
});

browserTest("a run that has not started, and one of plain LoRA, are whole pages, too", async (browser) => {
  const starting = new Shown();
  const { page, complaints, close } = await openPage(browser, { viewport: PHONE });
  try {
    await page.goto(starting.server.url);
    await until(page, `document.body.dataset.link === "live"`);
    assertEquals([await text(page, "state"), await text(page, "loss")], ["Starting", "–"]);
    await screenshot(page, "starting");
    const run = new FakeRun({ method: "none", steps: 100 });
    for (const event of run.until(30)) starting.status.apply(event);
    await charts(page);
    assertEquals(await page.locator("#weights-card:visible, #effective-tile:visible, #effective-card:visible").count(), 0);
    await screenshot(page, "plain");
    assertEquals(complaints, []);
  } finally {
    await close();
    await starting.server.stop();
  }
});

browserTest("nothing moves for those who asked for less motion", async (browser) => {
  const { server } = new Shown({ step: 20 });
  const moving =
    `document.getAnimations().length + Number(getComputedStyle(document.getElementById("fill")).transitionDuration !== "0s")`;
  for (const [reducedMotion, moves] of [["reduce", false], ["no-preference", true]] as const) {
    const { page, close } = await openPage(browser, { viewport: DESK, reducedMotion });
    await page.goto(server.url);
    await charts(page);
    assertEquals(Number(await page.evaluate(moving)) > 0, moves, reducedMotion);
    await close();
  }
  await server.stop();
});
