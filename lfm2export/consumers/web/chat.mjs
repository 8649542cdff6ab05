/**
 * A chat with the model that lies beside this page: in the folder above, or where `?model=` says (on this site).
 * Everything is static; the model's own config.json tells which files there are.
 */

const FILES = {
  q4: "model_q4.onnx",
  q8: "model_quantized.onnx",
  q4f16: "model_q4f16.onnx",
  fp16: "model_fp16.onnx",
  fp32: "model.onnx",
};
const HALF = new Set(["fp16", "q4f16"]);
const MAX_NEW_TOKENS = 512;
const MAX_CHUNKS = 100; // of 2 GB each

const parameters = new URLSearchParams(location.search);
const element = (id) => document.getElementById(id);
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

const place = modelPlace(parameters.get("model") || "../");
const worker = startWorker();
const messages = [];
let turn = null; // the answer being written
let ready = false;

/**
 * Where `asked` leads, as a path of this site that begins with one slash; null where it is more than plain names between
 * slashes: an address, another host (`//host`), anything encoded twice.
 */
function modelPlace(asked) {
  if (!/^\/?(?:(?:\.{1,2}|[\w-][\w.+ -]*)(?:\/|$))*$/.test(asked)) return null;
  const { origin, pathname } = new URL(asked, location.href);
  if (origin !== location.origin) return null;
  return `/${pathname.replace(/^\/+/, "")}`.replace(/\/$/, "") || "/.";
}

/**
 * The worker, of a module that imports the real one: a worker of such an address takes this page's Content-Security-
 * Policy over, one of an ordinary address has none but its own headers'.
 */
function startWorker() {
  const source = `import ${JSON.stringify(new URL("./worker.mjs", import.meta.url).href)};`;
  const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  return new Worker(address, { type: "module" });
}

/** Whether `response` is the file that was asked for: many hosts answer what is missing with their start page. */
function isFile(response) {
  return response.ok && !/^text\/html\b/i.test(response.headers.get("content-type") ?? "");
}

/** The size of the files of each dtype in bytes, null where a part is missing; a dtype without files is left out. */
async function findFiles() {
  if (place === null) throw new Error("?model= is no folder of this site: give plain names, such as ?model=../my-model");
  const response = await fetch(`${location.origin}${place}/config.json`);
  if (!isFile(response)) throw new Error(`${place}/config.json is not there (${response.status}): put this page beside the model`);
  const config = await response.json().catch(() => null);
  if (config?.model_type === undefined) throw new Error(`${place}/config.json is no config of a model: put this page beside the model`);
  element("title").textContent = decodeURIComponent(place.split("/").at(-1)).replace(/^\.$/, "") || "LFM2 chat";
  const chunks = config["transformers.js_config"]?.use_external_data_format ?? {};
  const size = async (name) => {
    const head = await fetch(`${location.origin}${place}/onnx/${name}`, { method: "HEAD" });
    return isFile(head) ? Number(head.headers.get("content-length") ?? 0) : null;
  };
  const found = new Map();
  for (const [dtype, file] of Object.entries(FILES)) {
    const own = await size(file);
    if (own === null) continue;
    const count = Math.min(Math.max(Math.trunc(Number(chunks[file] ?? 0)) || 0, 0), MAX_CHUNKS);
    const names = Array.from({ length: count }, (_, k) => `${file}_data${k ? `_${k}` : ""}`);
    const sizes = await Promise.all(names.map(size));
    found.set(dtype, sizes.includes(null) ? null : sizes.reduce((sum, bytes) => sum + bytes, own));
  }
  return found;
}

/** Which devices this browser has: [[device, its name, computes in float16], ...]. */
async function findDevices() {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  const gpu = adapter ? [["webgpu", "GPU (WebGPU)", adapter.features.has("shader-f16")]] : [];
  return [...gpu, ["wasm", "processor (wasm)", false]];
}

function choices(select, entries, chosen) {
  select.replaceChildren(
    ...entries.map(([value, text, usable = true]) => {
      const option = new Option(text, value, false, value === chosen);
      option.disabled = !usable;
      return option;
    }),
  );
}

function offerFiles(files, devices) {
  const half = devices.find(([device]) => device === element("device").value)[2];
  const usable = [...files.keys()].filter((dtype) => half || !HALF.has(dtype));
  const wanted = [element("dtype").value, parameters.get("dtype"), half ? "q4f16" : "q4"];
  const chosen = wanted.find((dtype) => usable.includes(dtype)) ?? usable[0];
  const size = (bytes) => (bytes === null ? "incomplete" : megabytes(bytes));
  const entries = [...files].map(([dtype, bytes]) => [dtype, `${dtype} · ${size(bytes)}`, usable.includes(dtype)]);
  choices(element("dtype"), entries, chosen);
  element("load").disabled = chosen === undefined;
}

function show(kind, text) {
  element("hint")?.remove();
  const bubble = document.createElement("div");
  bubble.className = `turn ${kind}`;
  bubble.textContent = text;
  element("chat").append(bubble);
  bubble.scrollIntoView({ block: "end" });
  return bubble;
}

function idle() {
  turn = null;
  element("send").textContent = "Send";
  element("send").disabled = !ready;
  element("message").disabled = !ready;
  element("load").disabled = false;
}

const heard = {
  progress: ({ done, total }) => {
    element("progress").value = done / total;
    element("loaded").textContent = `${megabytes(done)} of ${megabytes(total)}`;
  },
  ready: () => {
    ready = true;
    element("loading").hidden = true;
    element("status").textContent = `${element("dtype").value} on ${element("device").value} is ready`;
    element("message").placeholder = "Write a message";
    idle();
    element("message").focus();
  },
  text: ({ text }) => {
    turn.textContent += text;
    element("chat").scrollTop = element("chat").scrollHeight;
  },
  speed: ({ count, rate, wait }) => {
    const speed = rate === null ? "" : ` · ${rate.toFixed(1)} tokens/s`;
    element("status").textContent = `${count} tokens${speed} · first after ${wait.toFixed(2)} s`;
  },
  done: () => {
    messages.push({ role: "assistant", content: turn.textContent });
    turn.dataset.done = "true";
    idle();
  },
  error: ({ action, text }) => {
    if (action === "load") {
      ready = false;
      element("loading").hidden = true;
      element("status").textContent = "";
    } else {
      turn?.remove();
      messages.pop();
    }
    show("error", text);
    idle();
  },
};

worker.addEventListener("message", ({ data }) => heard[data.kind](data));
worker.addEventListener("error", (event) => heard.error({ action: "load", text: event.message || "the worker did not start" }));

element("setup").addEventListener("submit", (event) => {
  event.preventDefault();
  ready = false;
  idle();
  element("load").disabled = true;
  element("loading").hidden = false;
  element("progress").removeAttribute("value");
  element("loaded").textContent = "starting";
  worker.postMessage({ action: "load", origin: location.origin, place, dtype: element("dtype").value, device: element("device").value });
});

element("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (turn !== null) {
    worker.postMessage({ action: "stop" });
    return;
  }
  const text = element("message").value.trim();
  if (!ready || text === "") return;
  element("message").value = "";
  messages.push({ role: "user", content: text });
  show("user", text);
  turn = show("assistant", "");
  element("send").textContent = "Stop";
  element("load").disabled = true;
  worker.postMessage({ action: "answer", messages, greedy: element("greedy").checked, limit: MAX_NEW_TOKENS });
});

element("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  element("ask").requestSubmit();
});

try {
  const [files, devices] = await Promise.all([findFiles(), findDevices()]);
  choices(
    element("device"),
    devices.map(([device, name]) => [device, name]),
    parameters.get("device") ?? devices[0][0],
  );
  element("device").addEventListener("change", () => offerFiles(files, devices));
  offerFiles(files, devices);
} catch (error) {
  show("error", String(error?.message ?? error));
}
