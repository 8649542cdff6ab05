/**
 * Open a session on WebGPU with a verbose log, which goes to stderr: `node placements.mjs RUNTIME MODEL`.
 *
 * RUNTIME is the main module of onnxruntime-node, MODEL an .onnx file. The log says where every node was placed.
 */

import { pathToFileURL } from "node:url";

const [runtime, model] = process.argv.slice(2);
const { default: ort } = await import(pathToFileURL(runtime).href);
await ort.InferenceSession.create(model, {
  executionProviders: ["webgpu", "cpu"],
  logSeverityLevel: 0,
  logVerbosityLevel: 1,
});
