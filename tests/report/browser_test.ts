/** The report in a real browser; screenshots go to build/screenshots/, for whoever wants to look. */
import { assert, assertEquals } from "@std/assert";
import type { Browser } from "playwright-core";
import { CHROMIUM, openBrowser, openPage } from "../status/browser.ts";
import { renderReport } from "../../lib/report/report.ts";
import { input } from "./input.ts";

const FOLDER = new URL("../../build/screenshots/", import.meta.url).pathname;
let browser: Browser | null = null;

Deno.test.afterAll(async () => {
  await browser?.close();
});

for (
  const [name, width, colorScheme] of [["light", 1200, "light"], ["dark", 1200, "dark"], ["phone", 360, "light"], [
    "phone-dark",
    360,
    "dark",
  ]] as const
) {
  Deno.test({
    name: `the report fits a window of ${width} pixels, ${colorScheme}, without a complaint or a request`,
    ignore: CHROMIUM === null,
    sanitizeOps: false, // playwright's pipes stay open between the tests
    sanitizeResources: false,
    async fn() {
      browser ??= await openBrowser();
      Deno.mkdirSync(FOLDER, { recursive: true });
      const file = `${FOLDER}report-${name}.html`;
      Deno.writeTextFileSync(file, renderReport(input({ text: "a-source-with-a-name-that-is-as-long-as-names-of-files-are" })));
      const { page, complaints, requests, close } = await openPage(browser, { viewport: { width, height: 900 }, colorScheme });
      await page.goto(`file://${file}`);
      assertEquals(await page.evaluate("document.documentElement.scrollWidth"), width);
      assertEquals([complaints, requests], [[], [`file://${file}`]]);
      const shown = await page.evaluate(
        `[...document.querySelectorAll("svg")].map((each) => each.getBoundingClientRect().width)`,
      ) as number[];
      assertEquals(shown.length, 7);
      assert(shown.every((each) => each > width / 2 && each < width), `${shown}`);
      const paper = await page.evaluate("getComputedStyle(document.body).backgroundColor");
      assertEquals(paper, colorScheme === "dark" ? "rgb(18, 22, 28)" : "rgb(255, 255, 255)");
      await page.screenshot({ path: `${FOLDER}report-${name}.png`, fullPage: true });
      await close();
    },
  });
}
