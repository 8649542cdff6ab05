/** The model, off the page's thread: loads a file, answers conversations, and says what it is doing. */

import {
  AutoModelForCausalLM,
  AutoTokenizer,
  InterruptableStoppingCriteria,
  TextStreamer,
  env,
} from "./lib/transformers.min.js";

const library = (name) => new URL(`./lib/${name}`, import.meta.url).href;
env.allowRemoteModels = false;
env.allowLocalModels = true;
env.useBrowserCache = false; // the files are this site's own: the browser's ordinary cache holds them
env.useWasmCache = false;
env.backends.onnx.wasm.wasmPaths = {
  mjs: library("ort-wasm-simd-threaded.asyncify.mjs"),
  wasm: library("ort-wasm-simd-threaded.asyncify.wasm"),
};

const stop = new InterruptableStoppingCriteria();
let tokenizer = null;
let model = null;

/** Whether `response` is a page: many hosts answer what is missing with their start page, and no file of a model is one. */
function isPage(response) {
  return /^text\/html\b/i.test(response.headers.get("content-type") ?? "");
}

/** Fetch from this site alone: paths are of `origin`, for a worker made of a text has no address to resolve them by. */
function fetchFrom(origin) {
  return async (asked, options) => {
    const address = new URL(asked instanceof Request ? asked.url : asked, origin);
    if (address.origin !== origin) throw new Error(`${address.host} is another site; nothing is loaded from there`);
    const response = await fetch(address, options);
    return isPage(response) ? new Response(null, { status: 404, statusText: "Not Found" }) : response;
  };
}

/**
 * Load a file of `bytes` in all.
 *
 * Progress counts the model's own files; where their host says no length, `bytes` stands for the sum.
 */
async function load({ origin, place, dtype, device, threads, bytes }) {
  env.fetch = fetchFrom(origin);
  env.backends.onnx.wasm.numThreads = threads; // counts until the first session is made
  await model?.dispose();
  model = null;
  const files = new Map();
  const report = (event) => {
    if (event.status !== "progress" || !event.file.startsWith("onnx/")) return;
    files.set(event.file, [event.loaded, event.total]);
    const [done, stated] = [...files.values()].reduce(([a, b], [c, d]) => [a + c, b + (d > 0 ? d : c)], [0, 0]);
    postMessage({ kind: "progress", done, total: Math.max(bytes ?? 0, stated) });
  };
  tokenizer = await AutoTokenizer.from_pretrained(place);
  model = breathing(await AutoModelForCausalLM.from_pretrained(place, { dtype, device, progress_callback: report }));
  postMessage({ kind: "ready", dtype, device, threads: env.backends.onnx.wasm.numThreads });
}

/**
 * How many new tokens a prompt leaves room for: up to the tokenizer's model_max_length where that is below what the model
 * has positions for, and up to those where the prompt is longer.
 */
function room(prompt, limit) {
  const positions = model.config.max_position_embeddings ?? Infinity;
  const stated = tokenizer.config?.model_max_length ?? tokenizer.model_max_length;
  const length = Number.isFinite(stated) && stated > prompt && stated < positions ? stated : positions;
  return Math.max(1, Math.min(limit, length - prompt));
}

async function answer({ messages, greedy, limit }) {
  const inputs = tokenizer.chat_template
    ? tokenizer.apply_chat_template(messages, { add_generation_prompt: true, return_dict: true })
    : tokenizer(messages.at(-1).content);
  stop.reset();
  let count = 0;
  let first = null;
  const started = performance.now();
  const streamer = new TextStreamer(tokenizer, {
    skip_prompt: true,
    skip_special_tokens: true,
    callback_function: (text) => postMessage({ kind: "text", text }),
    token_callback_function: () => {
      count += 1;
      first ??= performance.now();
      const seconds = (performance.now() - first) / 1000;
      const rate = count > 1 ? (count - 1) / seconds : null;
      postMessage({ kind: "speed", count, rate, wait: (first - started) / 1000 });
    },
  });
  await model.generate({
    ...inputs,
    max_new_tokens: room(inputs.input_ids.dims[1], limit),
    ...(greedy ? { do_sample: false } : {}),
    stopping_criteria: stop,
    streamer,
  });
  postMessage({ kind: "done" });
}

const breath = new MessageChannel();

/** Compute each step in a turn of its own: wasm waits for nothing, and a message (stop) would be heard after the last. */
function breathing(loaded) {
  const forward = loaded.forward.bind(loaded);
  loaded.forward = async (inputs) => {
    await new Promise((resolve) => {
      breath.port1.onmessage = resolve;
      breath.port2.postMessage(null);
    });
    return forward(inputs);
  };
  return loaded;
}

/** What to tell a reader about `error`. */
function said(error) {
  const text = String(error?.message ?? error);
  const missing = /file was not found locally at "([^"]*)"/.exec(text)?.[1];
  return missing === undefined ? text : `${missing.replace("/./", "/")} is missing on this site: put it beside the other files of the model.`;
}

// Transformers.js 4.3.2 loses the error of a data file that is missing; the load then waits for ever.
addEventListener("unhandledrejection", ({ reason }) => {
  postMessage({ kind: "error", action: model === null ? "load" : "answer", text: said(reason) });
});

const actions = { load, answer, stop: () => stop.interrupt() };

addEventListener("message", async ({ data }) => {
  try {
    await actions[data.action](data);
  } catch (error) {
    postMessage({ kind: "error", action: data.action, text: said(error) });
  }
});
