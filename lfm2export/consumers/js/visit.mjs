/**
 * Use the chat page as a person would: `node visit.mjs REQUEST ANSWER`.
 *
 * REQUEST is JSON: {folder, page, dtype, device, greedy, messages, screenshot, viewport, scheme, missing, fallback,
 * elsewhere}. ANSWER gets {turns, status, errors, foreign, width, options, devices, refused, asked}; `screenshot` names
 * the picture to write, `missing` lists paths that the server does not have, `fallback` what it answers them with,
 * `elsewhere` is an address of another host that the page tries to reach.
 */

import { readFileSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";

import { findBrowser, launch } from "./chromium.mjs";
import { serve } from "./server.mjs";

const [requestFile, answerFile] = process.argv.slice(2);
const request = JSON.parse(readFileSync(requestFile, "utf8"));
const server = await serve([["/", resolve(request.folder)]], request.missing ?? [], request.fallback);
const browser = await launch(await findBrowser(), {
  viewport: request.viewport,
  deviceScaleFactor: 2,
  isMobile: true,
  hasTouch: true,
  colorScheme: request.scheme ?? "light",
});
const foreign = [];
const complaints = [];
const timeout = request.timeout_ms ?? 120_000;

/** Wait until `question` is true in the page. (waitForFunction evaluates a text in it, which its policy forbids.) */
async function until(page, question, argument) {
  const end = performance.now() + timeout;
  while (!(await page.evaluate(question, argument))) {
    if (performance.now() > end) throw new Error(`waited ${timeout} ms for ${question}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

browser.context.on("request", (asked) => {
  const { origin, protocol } = new URL(asked.url());
  if (origin !== server.origin && protocol !== "data:" && protocol !== "blob:") foreign.push(asked.url());
});

async function load(page) {
  await page.selectOption("#device", request.device);
  await page.selectOption("#dtype", request.dtype);
  if (request.greedy) await page.check("#greedy");
  await page.click("#load");
  await until(page, () => !document.getElementById("message").disabled || document.querySelector(".turn.error"));
}

/** What the page's policy forbids, tried from the page and from a worker such as the page's own: [text, fetch, worker]. */
async function tryPolicy(elsewhere) {
  if (elsewhere === null) return null;
  const forbidden = (attempt) => Promise.resolve().then(attempt).then(() => false, () => true);
  const script = forbidden(
    () =>
      new Promise((resolve, reject) => {
        globalThis.ran = false;
        const element = document.createElement("script");
        element.textContent = "globalThis.ran = true";
        document.head.append(element);
        (globalThis.ran ? resolve : reject)();
      }),
  );
  const source = `fetch(${JSON.stringify(elsewhere)}).then(() => postMessage(false), () => postMessage(true))`;
  const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })), { type: "module" });
  const inside = new Promise((resolve) => worker.addEventListener("message", ({ data }) => resolve(data)));
  return [await script, await forbidden(() => fetch(elsewhere)), await inside];
}

try {
  const page = browser.context.pages()[0] ?? (await browser.context.newPage());
  page.on("pageerror", (error) => complaints.push(error.message));
  page.on("console", (said) => said.type() === "error" && complaints.push(said.text()));
  page.setDefaultTimeout(timeout);
  await page.goto(`${server.origin}/${request.page}`);
  await until(page, () => !document.getElementById("load").disabled || document.querySelector(".turn.error"));
  const options = await page.$$eval("#dtype option", (all) => all.map((one) => [one.value, one.text, !one.disabled]));
  const devices = await page.$$eval("#device option", (all) => all.map((one) => one.value));
  const refused = await page.evaluate(tryPolicy, request.elsewhere ?? null);
  const loadable = await page.evaluate(() => !document.getElementById("load").disabled);
  if (loadable) await load(page);
  let done = 0;
  for (const message of loadable ? request.messages : []) {
    if (await page.$(".turn.error")) break;
    done += 1;
    await page.fill("#message", message);
    await page.click("#send");
    await until(
      page,
      (count) => document.querySelectorAll("[data-done]").length === count || document.querySelector(".turn.error"),
      done,
    );
  }
  const turns = await page.$$eval(".turn", (all) => all.map((one) => [one.className.replace("turn ", ""), one.textContent]));
  const width = await page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]");
  const status = await page.textContent("#status");
  if (request.screenshot) await page.screenshot({ path: request.screenshot });
  writeFileSync(answerFile, JSON.stringify({ turns, status, errors: complaints, foreign, width, options, devices, refused, asked: server.requests }));
} finally {
  await browser.close();
  await server.close();
}
