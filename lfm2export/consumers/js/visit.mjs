/**
 * Use the chat page as a person would: `node visit.mjs REQUEST ANSWER`.
 *
 * REQUEST is JSON: {folder, page, dtype, device, greedy, messages, screenshot, viewport, scheme, missing}. ANSWER gets
 * {turns, status, errors, foreign, width, options, devices}; `screenshot` names the picture to write, `missing` lists
 * paths that the server does not have.
 */

import { readFileSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";

import { findBrowser, launch } from "./chromium.mjs";
import { serve } from "./server.mjs";

const [requestFile, answerFile] = process.argv.slice(2);
const request = JSON.parse(readFileSync(requestFile, "utf8"));
const server = await serve([["/", resolve(request.folder)]], request.missing ?? []);
const browser = await launch(await findBrowser(), {
  viewport: request.viewport,
  deviceScaleFactor: 2,
  isMobile: true,
  hasTouch: true,
  colorScheme: request.scheme ?? "light",
});
const foreign = [];
const complaints = [];
browser.context.on("request", (asked) => {
  const { origin, protocol } = new URL(asked.url());
  if (origin !== server.origin && protocol !== "data:" && protocol !== "blob:") foreign.push(asked.url());
});

try {
  const page = browser.context.pages()[0] ?? (await browser.context.newPage());
  page.on("pageerror", (error) => complaints.push(error.message));
  page.setDefaultTimeout(request.timeout_ms ?? 120_000);
  await page.goto(`${server.origin}/${request.page}`);
  await page.waitForFunction("!document.getElementById('load').disabled");
  const options = await page.$$eval("#dtype option", (all) => all.map((one) => [one.value, one.text, !one.disabled]));
  const devices = await page.$$eval("#device option", (all) => all.map((one) => one.value));
  await page.selectOption("#device", request.device);
  await page.selectOption("#dtype", request.dtype);
  if (request.greedy) await page.check("#greedy");
  await page.click("#load");
  await page.waitForFunction("!document.getElementById('message').disabled || document.querySelector('.turn.error')");
  let done = 0;
  for (const message of request.messages) {
    if (await page.$(".turn.error")) break;
    done += 1;
    await page.fill("#message", message);
    await page.click("#send");
    await page.waitForFunction(
      (count) => document.querySelectorAll("[data-done]").length === count || document.querySelector(".turn.error"),
      done,
    );
  }
  const turns = await page.$$eval(".turn", (all) => all.map((one) => [one.className.replace("turn ", ""), one.textContent]));
  const width = await page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]");
  const status = await page.textContent("#status");
  if (request.screenshot) await page.screenshot({ path: request.screenshot });
  writeFileSync(answerFile, JSON.stringify({ turns, status, errors: complaints, foreign, width, options, devices }));
} finally {
  await browser.close();
  await server.close();
}
