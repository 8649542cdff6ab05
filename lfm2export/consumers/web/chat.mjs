/**
 * A chat with the model that lies beside this page: in the folder above, or where `?model=` says (on this site).
 * Everything is static; the model's own config.json tells which files there are. The page picks file and device
 * (choose.mjs); `?dtype=`, `?device=` and `?threads=` ask for others, as the two lists do.
 */

import { PLACES, choose, impossible } from "./choose.mjs";
import { isolationFault, threadCount } from "./isolation.mjs";
import { findMachine, findModel, modelPlace } from "./model.mjs";

const MAX_NEW_TOKENS = 512;
/** Milliseconds over which the rate of a download is taken. */
const RATE_WINDOW = 4000;

const parameters = new URLSearchParams(location.search);
const element = (id) => document.getElementById(id);
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const amount = (count, thing) => `${count} ${thing}${count === 1 ? "" : "s"}`;

const place = modelPlace(parameters.get("model") || "../");
const messages = [];
let worker = null;
let turn = null; // the answer being written
let ready = false;
let started = 0; // when the load began
let samples = []; // of the download: [when, bytes]

/**
 * The worker, of a module that imports the real one: a worker of such an address takes this page's Content-Security-
 * Policy over, one of an ordinary address has none but its own headers'.
 */
function startWorker() {
  const source = `import ${JSON.stringify(new URL("./worker.mjs", import.meta.url).href)};`;
  const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const made = new Worker(address, { type: "module" });
  made.addEventListener("message", ({ data }) => heard[data.kind](data));
  made.addEventListener("error", (event) => heard.error({ action: "load", text: event.message || "the worker did not start" }));
  return made;
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

/** Offer the files for the device that is chosen, and say what was chosen and why. */
function offer(files, machine, fault, wish) {
  const { device, dtype, why } = choose(files, machine, wish);
  const size = (bytes) => (bytes === null ? "incomplete" : megabytes(bytes));
  const entries = [...files].map(([name, file]) => [name, `${name} · ${size(file.bytes)}`, impossible(name, file, device, machine) === null]);
  choices(element("dtype"), entries, dtype);
  element("device").value = device;
  element("choice").textContent = device === "wasm" && fault !== null ? `${why} One thread: ${fault}.` : why;
  element("load").disabled = dtype === null || turn !== null;
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
  element("load").disabled = element("dtype").value === "";
}

/** Bytes a second of the last seconds; null where there is nothing to tell yet. */
function rate(now, done) {
  samples = [...samples.filter(([when]) => now - when < RATE_WINDOW), [now, done]];
  const [[when, bytes]] = samples;
  return now - when > 500 && done > bytes ? ((done - bytes) * 1000) / (now - when) : null;
}

const heard = {
  progress: ({ done, total }) => {
    const now = performance.now();
    if (done >= total) {
      element("progress").removeAttribute("value");
      element("loaded").textContent = `${megabytes(done)} are here; starting`;
      return;
    }
    const speed = rate(now, done);
    element("progress").value = done / total;
    element("loaded").textContent = `${megabytes(done)} of ${megabytes(total)}${speed === null ? "" : ` · ${megabytes(speed)}/s`}`;
  },
  ready: ({ dtype, device, threads }) => {
    ready = true;
    element("loading").hidden = true;
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    const running = device === "wasm" ? `, ${amount(threads, "thread")}` : "";
    element("status").textContent = `${dtype} on ${PLACES[device]} is ready after ${seconds} s${running}`;
    element("message").placeholder = "Write a message";
    idle();
    element("message").focus();
  },
  text: ({ text }) => {
    turn.textContent += text;
    element("chat").scrollTop = element("chat").scrollHeight;
  },
  speed: ({ count, rate: speed, wait }) => {
    const decoded = speed === null ? "" : ` · ${speed.toFixed(1)} tokens/s`;
    element("status").textContent = `${amount(count, "token")}${decoded} · first after ${wait.toFixed(2)} s`;
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

function load(files, threads) {
  const [dtype, device] = [element("dtype").value, element("device").value];
  ready = false;
  idle();
  element("load").disabled = true;
  element("loading").hidden = false;
  element("progress").removeAttribute("value");
  element("loaded").textContent = "starting";
  element("status").textContent = "";
  started = performance.now();
  samples = [];
  worker ??= startWorker();
  worker.postMessage({ action: "load", origin: location.origin, place, dtype, device, threads, bytes: files.get(dtype).bytes });
}

try {
  const fault = await isolationFault();
  const threads = threadCount(fault, parameters.get("threads"));
  const [{ name, files }, machine] = await Promise.all([findModel(place), findMachine(threads)]);
  element("title").textContent = name;
  const devices = machine.gpu === null ? ["wasm"] : ["webgpu", "wasm"];
  const names = { webgpu: "GPU (WebGPU)", wasm: "processor (wasm)" };
  choices(
    element("device"),
    devices.map((device) => [device, names[device]]),
    null,
  );
  const known = (name, among) => (among.includes(parameters.get(name)) ? parameters.get(name) : null);
  offer(files, machine, fault, { device: known("device", devices), dtype: known("dtype", [...files.keys()]) });
  element("device").addEventListener("change", () => offer(files, machine, fault, { device: element("device").value, dtype: null }));
  element("dtype").addEventListener("change", () => {
    offer(files, machine, fault, { device: element("device").value, dtype: element("dtype").value });
  });
  element("setup").addEventListener("submit", (event) => {
    event.preventDefault();
    load(files, threads);
  });
} catch (error) {
  show("error", String(error?.message ?? error));
}
