/** A headless Chromium for the tests of the dashboard. */
import type { Browser, BrowserContextOptions, Page } from "playwright-core";

const CANDIDATES = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome", "/opt/google/chrome/chrome"];

/** Chromium of this machine, or of CHROMIUM in the environment; tests that need it are skipped with a message otherwise. */
export const CHROMIUM: string | null = (() => {
  const own = Deno.env.get("CHROMIUM");
  for (const path of own ? [own] : CANDIDATES) {
    try {
      if (Deno.statSync(path).isFile) return path;
    } catch { // said below
    }
  }
  console.log("skipped: there is no Chromium (Debian: apt-get install chromium, or CHROMIUM=/path/to/it)");
  return null;
})();

/** Starts it without anything that would reach beyond this machine. */
export async function openBrowser(): Promise<Browser> {
  // While it is imported, playwright looks into /proc for Windows below Linux, which takes every permission. This name skips the look.
  Deno.env.set("__IS_WSL_TEST__", "1");
  const { chromium } = await import("playwright-core");
  return await chromium.launch({
    executablePath: CHROMIUM!,
    args: [
      "--no-sandbox", // as root there is none; only our own page is opened
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
}

/** A page with everything that it complained about and every address that it asked for. */
export interface Watched {
  readonly page: Page;
  readonly complaints: string[];
  readonly requests: string[];
  close(): Promise<void>;
}

/** A new page in a context of its own. */
export async function openPage(browser: Browser, options: BrowserContextOptions): Promise<Watched> {
  const context = await browser.newContext({ locale: "en-GB", timezoneId: "UTC", ...options });
  const page = await context.newPage();
  const complaints: string[] = [], requests: string[] = [];
  page.on("pageerror", ({ message }) => void complaints.push(message));
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complaints.push(message.text());
  });
  page.on("request", (request) => void requests.push(request.url()));
  return { page, complaints, requests, close: () => context.close() };
}
