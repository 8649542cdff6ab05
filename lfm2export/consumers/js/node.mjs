/**
 * Run tasks in Node: `node node.mjs REQUEST ANSWERS`.
 *
 * REQUEST is JSON: {folder, tasks: [{kind: "job" | "example" | "bench", ...}]}. ANSWERS gets one line of JSON for each task as it
 * ends, {task, value} or {task, error}, so that what was done is known even when a later task kills the process.
 */

import { appendFileSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join, resolve, sep } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

import * as transformers from "@huggingface/transformers";
import { runBench, runExample, runJob, withModel } from "./tasks.mjs";

const [requestFile, answersFile] = process.argv.slice(2);
const { folder, tasks } = JSON.parse(readFileSync(requestFile, "utf8"));
// A plain name, whatever the folder is called: the library takes some names for addresses.
const MODEL = "artifact";
const room = dirname(resolve(requestFile)); // what is in it goes with the request, even where this process is killed
const models = mkdtempSync(join(room, "models-"));
symlinkSync(resolve(folder), join(models, MODEL), "junction");
transformers.env.localModelPath = models + sep;
transformers.env.allowRemoteModels = false;

/** Import `source` from a folder of its own, where the installed packages are found. */
async function load(source) {
  const scratch = mkdtempSync(join(room, "example-"));
  try {
    symlinkSync(join(dirname(fileURLToPath(import.meta.url)), "node_modules"), join(scratch, "node_modules"), "junction");
    writeFileSync(join(scratch, "example.mjs"), source);
    return await import(pathToFileURL(join(scratch, "example.mjs")).href);
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

/** What `promise` gives, or the first error that nobody else caught (see `page.mjs`). */
function orLostError(promise) {
  const lost = new Promise((_, reject) => {
    process.once("unhandledRejection", reject);
  });
  return Promise.race([promise, lost]);
}

/** Of this process, in bytes. */
function memory() {
  return { resident: process.memoryUsage().rss, peak: process.resourceUsage().maxRSS * 1024 };
}

const KINDS = {
  job: (rest) => orLostError(runJob(transformers, { ...rest, model: MODEL })),
  bench: (rest) => orLostError(runBench(transformers, { ...rest, model: MODEL }, memory)),
  example: (rest) => runExample({ ...rest, source: withModel(rest, MODEL) }, load),
};

for (const [task, { kind, ...rest }] of tasks.entries()) {
  let answer;
  try {
    answer = { task, value: await KINDS[kind](rest) };
  } catch (error) {
    answer = { task, error: String(error?.message ?? error) };
  }
  appendFileSync(answersFile, `${JSON.stringify(answer)}\n`);
}
