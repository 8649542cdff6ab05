/** Where the model lies, which files it has, and what this machine offers. */

import { FILES } from "./choose.mjs";

const MAX_CHUNKS = 100; // of 2 GB each
/** Chromium says no more than this, in GiB, whatever there is. */
const MOST_MEMORY = 8;

/**
 * Where `asked` leads, as a path of this site that begins with one slash; null where it is more than plain names between
 * slashes: an address, another host (`//host`), anything encoded twice.
 */
export function modelPlace(asked) {
  if (!/^\/?(?:(?:\.{1,2}|[\w-][\w.+ -]*)(?:\/|$))*$/.test(asked)) return null;
  const { origin, pathname } = new URL(asked, location.href);
  if (origin !== location.origin) return null;
  return `/${pathname.replace(/^\/+/, "")}`.replace(/\/$/, "") || "/.";
}

/** Whether `response` is the file that was asked for: many hosts answer what is missing with their start page. */
function isFile(response) {
  return response.ok && !/^text\/html\b/i.test(response.headers.get("content-type") ?? "");
}

/** The file at `address` as JSON: {there, status, value}; value is null where it holds no object. */
async function object(address) {
  const response = await fetch(address);
  const there = isFile(response);
  const value = there ? await response.json().catch(() => null) : null;
  return { there, status: response.status, value: typeof value === "object" ? value : null };
}

const count = (value) => (Number.isFinite(value) && value >= 0 ? Math.trunc(value) : undefined);

/** What the page's own files.json says: {model, files}; both are null where the model has no page of its own. */
async function described(place) {
  const { value } = await object(`${location.origin}${place}/chat/files.json`).catch(() => ({ value: null }));
  const files = value?.files;
  return {
    model: typeof value?.model === "string" ? value.model : null,
    files: typeof files === "object" && !Array.isArray(files) ? files : null,
  };
}

/**
 * The model in `place`: {name, files}. files is a Map dtype -> {bytes, largest, cache, int8} as `choose.mjs` takes it; a
 * dtype without files is left out.
 */
export async function findModel(place) {
  if (place === null) throw new Error("?model= is no folder of this site: give plain names, such as ?model=../my-model");
  const { there, status, value: config } = await object(`${location.origin}${place}/config.json`);
  if (!there) throw new Error(`${place}/config.json is not there (${status}): put this page beside the model`);
  if (config?.model_type === undefined) throw new Error(`${place}/config.json is no config of a model: put this page beside the model`);
  const chunks = config["transformers.js_config"]?.use_external_data_format ?? {};
  const facts = await described(place);
  const size = async (name) => {
    const head = await fetch(`${location.origin}${place}/onnx/${name}`, { method: "HEAD" });
    return isFile(head) ? Number(head.headers.get("content-length") ?? 0) : null;
  };
  const found = new Map();
  for (const [dtype, file] of Object.entries(FILES)) {
    if (facts.files !== null && !Object.hasOwn(facts.files, dtype)) continue;
    const own = await size(file);
    if (own === null) continue;
    const parts = Math.min(count(Number(chunks[file])) ?? 0, MAX_CHUNKS);
    const names = Array.from({ length: parts }, (_, k) => `${file}_data${k ? `_${k}` : ""}`);
    const sizes = await Promise.all(names.map(size));
    const { bytes, largest, cache, int8 } = facts.files?.[dtype] ?? {};
    const counted = sizes.reduce((sum, part) => sum + part, own);
    found.set(dtype, {
      bytes: sizes.includes(null) ? null : counted || (count(bytes) ?? 0), // a host that packs its answers says no length
      largest: count(largest),
      cache,
      int8: int8 === true,
    });
  }
  const folder = decodeURIComponent(place.split("/").at(-1)).replace(/^\.$/, "");
  return { name: folder || facts.model || "LFM2 chat", files: found };
}

/** The GPU that this browser offers a page: {half, emulated, buffer}; null where it offers none. */
async function findGpu() {
  const adapter = await navigator.gpu?.requestAdapter({ powerPreference: "high-performance" }).catch(() => null);
  if (!adapter) return null;
  const { info, limits } = adapter;
  return {
    half: adapter.features.has("shader-f16"),
    emulated: (info?.isFallbackAdapter ?? adapter.isFallbackAdapter) === true || /swiftshader|llvmpipe/i.test(`${info?.architecture} ${info?.description}`),
    buffer: Math.min(limits.maxStorageBufferBindingSize, limits.maxBufferSize),
  };
}

/** What this machine offers, as `choose.mjs` takes it. */
export async function findMachine(threads) {
  const memory = navigator.deviceMemory;
  return { gpu: await findGpu(), memory: memory < MOST_MEMORY ? memory * 2 ** 30 : null, threads };
}
