/**
 * Run tasks in a page: `node browser.mjs REQUEST ANSWERS`. The same request and answers as `node.mjs`, and besides:
 *
 * - each task starts with a fresh page; `missing` lists files of the artifact that the server then does not have;
 * - the first answer is {browser, adapter, isolated}; adapter is null without WebGPU;
 * - each answer has `foreign`, the addresses that the page asked another host for, and `files`, what it got of the artifact;
 * - a "bench" is told the memory of the page's process (on Linux);
 * - where the adapter computes on the CPU, a job on webgpu takes `software_*` in place of its own numbers of tokens.
 */

import { appendFileSync, readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

import { findBrowser, launch, pageMemory } from "./chromium.mjs";
import { serve } from "./server.mjs";
import { withModel } from "./tasks.mjs";

const MODEL = "artifact";
const PREFIX = `/models/${MODEL}/`;

const [requestFile, answersFile] = process.argv.slice(2);
const { folder, tasks } = JSON.parse(readFileSync(requestFile, "utf8"));
const here = dirname(fileURLToPath(import.meta.url));
const installed = join(here, "node_modules");
const hidden = [];
const server = await serve(
  [
    [PREFIX, resolve(folder)],
    ["/lib/ort/", join(installed, "onnxruntime-web", "dist")],
    ["/lib/common/", join(installed, "onnxruntime-common", "dist", "esm")],
    ["/lib/", join(installed, "@huggingface", "transformers", "dist")],
    ["/", here],
  ],
  hidden,
);
const browser = await launch(await findBrowser(), {}, dirname(resolve(requestFile))); // goes with the request
const foreign = [];
browser.context.on("request", (request) => {
  const { origin, protocol } = new URL(request.url());
  if (origin !== server.origin && protocol !== "data:" && protocol !== "blob:") foreign.push(request.url());
});

await browser.context.exposeFunction("memory", pageMemory);

const tell = (answer) => appendFileSync(answersFile, `${JSON.stringify(answer)}\n`);

/** What the page does for each kind of task. */
const KINDS = {
  job: (page, rest) => page.evaluate((job) => globalThis.consumer.run(job), { ...rest, model: MODEL }),
  bench: (page, rest) => page.evaluate((job) => globalThis.consumer.bench(job), { ...rest, model: MODEL }),
  example: (page, rest) =>
    page.evaluate((example) => globalThis.consumer.example(example), { ...rest, source: withModel(rest, MODEL) }),
};

async function freshPage() {
  for (const page of browser.context.pages()) await page.goto("about:blank");
  const page = browser.context.pages()[0] ?? (await browser.context.newPage());
  await page.goto(`${server.origin}/page.html`);
  await page.waitForFunction("globalThis.consumer !== undefined");
  return page;
}

/** `task` with the numbers of tokens that a GPU emulated on the CPU can manage. */
function reduced(task) {
  const taken = Object.entries(task).filter(([name]) => name.startsWith("software_"));
  return { ...task, ...Object.fromEntries(taken.map(([name, value]) => [name.slice("software_".length), value])) };
}

try {
  const first = await freshPage();
  const adapter = await first.evaluate("consumer.adapter()");
  tell({ browser: browser.version, adapter, isolated: await first.evaluate("consumer.isolated()") });
  const software = /swiftshader|llvmpipe/i.test(`${adapter?.architecture} ${adapter?.description}`);
  for (const [task, description] of tasks.entries()) {
    const { kind, missing = [], ...rest } = description.device === "webgpu" && software ? reduced(description) : description;
    hidden.splice(0, hidden.length, ...missing.map((file) => PREFIX + file));
    foreign.length = 0;
    server.requests.length = 0;
    let answer;
    try {
      const page = await freshPage();
      answer = { task, value: await KINDS[kind](page, rest) };
    } catch (error) {
      answer = { task, error: error.message.replace(/^page\.evaluate: (Error: )?/, "").split("\n    at ")[0] };
    }
    const files = server.requests.filter(([status, path]) => status === 200 && path.startsWith(PREFIX));
    tell({ ...answer, foreign: [...foreign], files: files.map(([, path]) => path.slice(PREFIX.length)) });
  }
} finally {
  await browser.close();
  await server.close();
}
