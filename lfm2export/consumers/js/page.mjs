/** The page's side of `browser.mjs`: Transformers.js pointed at this server, and the entry points that are called. */

import * as transformers from "@huggingface/transformers";
import { adapterFacts, runBench, runExample, runJob } from "./tasks.mjs";

const { env } = transformers;
env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = new URL("./models/", location.href).pathname; // a whole address would count as remote
env.useBrowserCache = false;
env.useWasmCache = false;
env.backends.onnx.wasm.wasmPaths = {
  mjs: new URL("./lib/ort/ort-wasm-simd-threaded.asyncify.mjs", location.href).href,
  wasm: new URL("./lib/ort/ort-wasm-simd-threaded.asyncify.wasm", location.href).href,
};

/**
 * What `promise` gives, or the first error that nobody else caught. Transformers.js 4.3.2 loads each data file in a
 * promise whose failure is lost: without this, a missing file would leave the load waiting for ever.
 */
function orLostError(promise) {
  const lost = new Promise((_, reject) => {
    addEventListener("unhandledrejection", ({ reason }) => reject(reason), { once: true });
  });
  return Promise.race([promise, lost]);
}

globalThis.consumer = {
  adapter: () => adapterFacts(navigator.gpu),
  isolated: () => globalThis.crossOriginIsolated,
  run: (job) => orLostError(runJob(transformers, job)),
  bench: (job) => {
    env.backends.onnx.wasm.numThreads = job.threads;
    return orLostError(runBench(transformers, job, globalThis.memory));
  },
  example: (example) =>
    runExample(example, (source) =>
      import(URL.createObjectURL(new Blob([source], { type: "text/javascript" }))),
    ),
};
