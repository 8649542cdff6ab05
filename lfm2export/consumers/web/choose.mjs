/**
 * Which model file runs on which device, and why. Nothing here touches the page or the network.
 *
 * A file is {bytes, largest, cache, int8}: its size (null where a part of it is missing), its largest tensor, the type of
 * its keys and values, and whether it multiplies in 8 bits; what is not known is undefined. A machine is {gpu, memory, threads}:
 * gpu is null or {half, emulated, buffer}, memory in bytes or null, threads the number that wasm runs on.
 */

export const FILES = {
  q4: "model_q4.onnx",
  q8: "model_quantized.onnx",
  q4f16: "model_q4f16.onnx",
  fp16: "model_fp16.onnx",
  fp32: "model.onnx",
};
export const HALF = new Set(["fp16", "q4f16"]);

/** What to take on each device, the first that fits. wasm dequantizes a 4-bit matrix at every step, and multiplies in 8 bits fast. */
const ORDER = {
  webgpu: ["q4f16", "q4", "fp16", "q8", "fp32"],
  wasm: ["q8", "q4", "fp32", "q4f16", "fp16"],
};
export const PLACES = { webgpu: "the GPU", wasm: "the processor" };

/** Memory that a load takes at its peak, as a multiple of the file (350M in Chromium: q8 3.3, q4 4 with the page's own). */
const MEMORY = 3.5;
/** Of it, what lies in wasm's own memory (2 and 2.7), and all that 32 bits can address there. */
const HEAP = 2.8;
const ADDRESSABLE = 2 ** 32;

const megabytes = (bytes) => `${Math.round(bytes / 1e6).toLocaleString("en")} MB`;

/** Why `dtype` cannot run on `device` at all; null where it can. */
export function impossible(dtype, file, device, machine) {
  if (device === "wasm") return HALF.has(dtype) ? "float16 is for GPUs" : null;
  if (machine.gpu === null) return "this browser offers no WebGPU";
  if (HALF.has(dtype) && !machine.gpu.half) return "this GPU does not compute in float16";
  if (file.cache === "int8") return "caches of int8 run on processors only";
  return null;
}

/** Why `dtype` is not taken on `device` unless a visitor asks for it; null where nothing speaks against it. */
export function doubt(dtype, file, device, machine) {
  if (file.bytes === null) return "a part of it is missing on this site";
  const [needed, heap] = [MEMORY * file.bytes, HEAP * file.bytes];
  if (device === "wasm" && heap > ADDRESSABLE) return `it takes about ${megabytes(heap)} of memory, and wasm has ${megabytes(ADDRESSABLE)}`;
  if (machine.memory !== null && needed > machine.memory) {
    return `it takes about ${megabytes(needed)} of memory, and this device has ${megabytes(machine.memory)}`;
  }
  if (device === "wasm") return null;
  if (file.int8) return "its products run on the processor there";
  if (machine.gpu.emulated) return "the GPU is emulated by the processor";
  if (file.largest > machine.gpu.buffer) {
    return `its largest tensor has ${megabytes(file.largest)}, and a buffer of this GPU ${megabytes(machine.gpu.buffer)}`;
  }
  return null;
}

/** The first file of `devices` without a reason against it, and the reasons that were met on the way. */
function first(files, machine, devices, reasonOf) {
  const met = [];
  for (const device of devices) {
    for (const dtype of ORDER[device].filter((name) => files.has(name))) {
      const reason = reasonOf(dtype, files.get(dtype), device, machine);
      if (reason === null) return { device, dtype, met };
      met.push({ device, dtype, reason });
    }
  }
  return { device: null, dtype: null, met };
}

/**
 * What to load.
 *
 * @param files Map: dtype -> file
 * @param wish {device, dtype}: what the visitor asks for, null where it is left to the page
 * @returns {device, dtype, why}: dtype is null where nothing can run; `why` is one line
 */
export function choose(files, machine, wish = { device: null, dtype: null }) {
  const present = new Map([...files].filter(([dtype]) => wish.dtype === null || dtype === wish.dtype));
  const devices = ["webgpu", "wasm"].filter((device) => wish.device === null || device === wish.device);
  const both = (...what) => impossible(...what) ?? doubt(...what);
  const best = first(present, machine, devices, both);
  const { device, dtype } = best.dtype === null ? first(present, machine, devices, impossible) : best;
  if (dtype === null) return { device: devices.at(-1), dtype: null, why: nothing(best.met, devices) };
  const asked = wish.device !== null || wish.dtype !== null;
  return { device, dtype, why: `${named(dtype, device, machine)}: ${[...reasons(files, machine, device, dtype, best.met), ...(asked ? ["your choice"] : [])].join("; ") || "what fits best here"}.` };
}

function named(dtype, device, machine) {
  const threads = device === "wasm" ? `, ${machine.threads} thread${machine.threads === 1 ? "" : "s"}` : "";
  return `${dtype} on ${PLACES[device]} (${device === "wasm" ? "wasm" : "WebGPU"}${threads})`;
}

function nothing(met, devices) {
  if (met.length === 0) return `No file here runs on ${PLACES[devices[0]]}.`;
  return `Nothing here can run: ${met.map(({ dtype, device, reason }) => `${dtype} on ${PLACES[device]}, ${reason}`).join("; ")}.`;
}

/** What decided, as parts of a sentence. */
function reasons(files, machine, device, dtype, met) {
  const found = [];
  const doubted = doubt(dtype, files.get(dtype), device, machine);
  if (doubted !== null) found.push(doubted);
  if (device === "wasm") {
    if (machine.gpu === null) found.push("this browser offers no WebGPU");
    else if (machine.gpu.emulated) found.push("the GPU here is emulated");
    else found.push(...met.filter((one) => one.device === "webgpu").slice(0, 1).map((one) => `${one.dtype} is not for this GPU (${one.reason})`));
    if (dtype !== "q8" && !files.has("q8")) found.push("slow, for this site has no q8 file");
    else if (dtype === "q4") found.push("q8 would be many times as fast");
  } else if (doubted === null) {
    if (HALF.has(dtype)) found.push("this GPU computes in float16");
    else found.push(...met.filter((one) => HALF.has(one.dtype)).slice(0, 1).map((one) => one.reason));
  }
  return found;
}
