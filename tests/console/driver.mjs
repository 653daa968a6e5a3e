// Drives a headless Chromium: one JSON command a line on stdin, one JSON answer a line on stdout.
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const browser = await chromium.launch({ executablePath: process.argv[2], args: ["--no-sandbox"] });
const pages = new Map();

const commands = {
  async open({ page: name, url, width, height, scheme, motion }) {
    const context = await browser.newContext({ viewport: { width, height }, colorScheme: scheme, reducedMotion: motion });
    const page = await context.newPage();
    const said = [];
    page.on("console", (message) => message.type() === "error" && said.push(message.text()));
    page.on("pageerror", (error) => said.push(String(error)));
    page.on("dialog", (dialog) => {
      said.push(`dialog: ${dialog.message()}`);
      dialog.dismiss();
    });
    page.setDefaultTimeout(20000);
    pages.set(name, { page, said, context });
    await page.goto(url);
  },
  // Expressions go over the debugging protocol, which the page's content security policy does not forbid.
  eval: ({ page, js }) => pages.get(page).page.evaluate(js),
  async until({ page, js, patience }) {
    const end = Date.now() + patience;
    let found;
    while (!(found = await pages.get(page).page.evaluate(js).catch((error) => (/context was destroyed|navigat/.test(error.message) ? null : Promise.reject(error))))) {
      if (Date.now() > end) throw new Error(`never true: ${js}\n${(await pages.get(page).page.innerText("body")).slice(0, 2000)}`);
      await new Promise((done) => setTimeout(done, 50));
    }
    return found;
  },
  click: ({ page, selector }) => pages.get(page).page.click(selector),
  fill: ({ page, selector, text }) => pages.get(page).page.fill(selector, text),
  select: ({ page, selector, value }) => pages.get(page).page.selectOption(selector, { label: value }),
  press: ({ page, key }) => pages.get(page).page.keyboard.press(key),
  shot: ({ page, path }) => pages.get(page).page.screenshot({ path }).then(() => null),
  said: ({ page }) => pages.get(page).said,
  async offline({ page, offline }) {
    await pages.get(page).context.setOffline(offline);
  },
  async close({ page }) {
    await pages.get(page).context.close();
    pages.delete(page);
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  let answer;
  try {
    answer = { value: (await commands[command.do](command)) ?? null };
  } catch (error) {
    answer = { error: String(error.message || error) };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
await browser.close();
