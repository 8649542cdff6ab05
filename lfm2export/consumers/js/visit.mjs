/**
 * Use the chat page as a person would: `node visit.mjs REQUEST ANSWER`.
 *
 * REQUEST is JSON: {folder, origin, headers, page, load, dtype, device, greedy, messages, stop_after, screenshot, viewport,
 * scheme, missing, fallback, elsewhere, timeout_ms}. `origin` is a server that serves already; else `folder` is served,
 * without the headers that isolate a page where `headers` is false. Without `dtype` and `device` the page's own choice is
 * loaded (nothing, where `load` is false). `stop_after` is the number of tokens after which an answer is stopped,
 * `screenshot` names the picture to write, `missing` lists paths that the server does not have, `fallback` what it answers
 * them with, `elsewhere` is an address of another host that the page tries to reach.
 *
 * ANSWER gets {turns, status, choice, picked, isolated, said, errors, foreign, width, options, devices, refused, asked}:
 * `picked` is [device, dtype], `said` what the lines of load and status read on the way.
 */

import { readFileSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";

import { findBrowser, launch } from "./chromium.mjs";
import { serve } from "./server.mjs";

const [requestFile, answerFile] = process.argv.slice(2);
const request = JSON.parse(readFileSync(requestFile, "utf8"));
const server = request.origin
  ? { origin: request.origin, requests: [], close: async () => {} }
  : await serve([["/", resolve(request.folder)]], request.missing ?? [], request.fallback, request.headers ?? true);
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

/**
 * Wait until `question` is true in the page. (waitForFunction evaluates a text in it, which its policy forbids.) The page
 * may load itself again meanwhile.
 */
async function until(page, question, argument) {
  const end = performance.now() + timeout;
  const asked = () => page.evaluate(question, argument).catch((error) => /context was destroyed/.test(error.message) ? false : Promise.reject(error));
  while (!(await asked())) {
    if (performance.now() > end) throw new Error(`waited ${timeout} ms for ${question}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

browser.context.on("request", (asked) => {
  const { origin, protocol } = new URL(asked.url());
  if (origin !== server.origin && protocol !== "data:" && protocol !== "blob:") foreign.push(asked.url());
});

async function load(page) {
  if (request.device) await page.selectOption("#device", request.device);
  if (request.dtype) await page.selectOption("#dtype", request.dtype);
  if (request.greedy) await page.check("#greedy");
  await page.click("#load");
  await until(page, () => !document.getElementById("message").disabled || document.querySelector(".turn.error"));
}

/** Keep what the lines of load and status read from now on. */
function listen() {
  globalThis.said = [];
  for (const id of ["loaded", "status"]) {
    const line = document.getElementById(id);
    const note = () => line.textContent && said.at(-1) !== line.textContent && said.push(line.textContent);
    new MutationObserver(note).observe(line, { childList: true, characterData: true, subtree: true });
  }
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
  await until(page, () => document.getElementById("choice").textContent || document.querySelector(".turn.error"));
  const options = await page.$$eval("#dtype option", (all) => all.map((one) => [one.value, one.text, !one.disabled]));
  const devices = await page.$$eval("#device option", (all) => all.map((one) => one.value));
  const refused = await page.evaluate(tryPolicy, request.elsewhere ?? null);
  const loadable = (request.load ?? true) && (await page.evaluate(() => !document.getElementById("load").disabled));
  const picked = await page.evaluate(() => ["device", "dtype"].map((id) => document.getElementById(id).value));
  await page.evaluate(listen);
  if (loadable) await load(page);
  let done = 0;
  for (const message of loadable ? request.messages : []) {
    if (await page.$(".turn.error")) break;
    done += 1;
    await page.fill("#message", message);
    await page.click("#send");
    if (request.stop_after) {
      await until(page, (count) => parseInt(document.getElementById("status").textContent) >= count, request.stop_after);
      await page.click("#send");
    }
    await until(
      page,
      (count) => document.querySelectorAll("[data-done]").length === count || document.querySelector(".turn.error"),
      done,
    );
  }
  const turns = await page.$$eval(".turn", (all) => all.map((one) => [one.className.replace("turn ", ""), one.textContent]));
  const width = await page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]");
  const [status, choice] = [await page.textContent("#status"), await page.textContent("#choice")];
  const [isolated, said] = await page.evaluate(() => [globalThis.crossOriginIsolated, globalThis.said]);
  if (request.screenshot) await page.screenshot({ path: request.screenshot });
  writeFileSync(answerFile, JSON.stringify({ turns, status, choice, picked, isolated, said, errors: complaints, foreign, width, options, devices, refused, asked: server.requests }));
} finally {
  await browser.close();
  await server.close();
}
