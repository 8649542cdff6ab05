/** Debian's Chromium, or Google's Chrome, started with nothing but what a page needs. */

import { access, mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { chromium } from "playwright-core";

const NAMES = ["chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome"];
const PLACES = [
  "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
  "/Applications/Chromium.app/Contents/MacOS/Chromium",
];

/** Path of a browser: the environment variable CHROMIUM, else what PATH has; null if there is none. */
export async function findBrowser() {
  const folders = (process.env.PATH ?? "").split(delimiter);
  const candidates = [
    ...(process.env.CHROMIUM ? [process.env.CHROMIUM] : []),
    ...folders.flatMap((folder) => NAMES.map((name) => join(folder, name))),
    ...PLACES,
  ];
  for (const candidate of candidates) {
    const found = await access(candidate).then(
      () => true,
      () => false,
    );
    if (found) return candidate;
  }
  return null;
}

/** The most that was seen so far: Chromium resets its processes' high-water marks. */
let highest = 0;

/**
 * Memory in bytes of the largest process that computes a page of this process's browser, {resident, peak}; null each where
 * the system does not tell (Linux does). peak: the high-water marks at every call until now.
 */
export async function pageMemory() {
  const parents = new Map();
  const pages = [];
  for (const pid of await readdir("/proc").catch(() => [])) {
    if (!/^\d+$/.test(pid)) continue;
    const text = await readFile(`/proc/${pid}/status`, "utf8").catch(() => "");
    const field = (name) => Number(text.match(new RegExp(`^${name}:\\s+(\\d+)`, "m"))?.[1] ?? NaN);
    parents.set(Number(pid), field("PPid"));
    const command = await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
    if (command.includes("--type=renderer")) pages.push([Number(pid), field("VmRSS") * 1024, field("VmHWM") * 1024]);
  }
  const ours = (pid) => pid === process.pid || (pid > 1 && ours(parents.get(pid) ?? 0));
  const found = pages.filter(([pid]) => ours(pid));
  highest = Math.max(highest, ...found.map(([, , peak]) => peak || 0));
  return { resident: Math.max(0, ...found.map(([, resident]) => resident || 0)) || null, peak: highest || null };
}

/**
 * A browser with a profile of its own in `folder`, which `close` removes; `options` are those of playwright-core. It
 * reaches this machine only: no other name or address resolves.
 */
export async function launch(executablePath, options = {}, folder = tmpdir()) {
  const profile = await mkdtemp(join(folder, "lfm2export-browser-"));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath,
    headless: true,
    args: [
      "--no-sandbox", // a container's root has no user namespaces; the only pages opened are this project's own
      "--enable-unsafe-webgpu", // SwiftShader is no GPU that Chromium trusts by itself
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-domain-reliability",
      "--disable-features=OptimizationHints,MediaRouter,Translate,CertificateTransparencyComponentUpdater",
      "--disable-sync",
      "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
      "--metrics-recording-only",
      "--no-pings",
      "--no-first-run",
    ],
    viewport: { width: 1024, height: 768 },
    ...options,
  });
  return {
    context,
    version: context.browser()?.version() ?? null,
    close: async () => {
      await context.close();
      await rm(profile, { recursive: true, force: true, maxRetries: 5 });
    },
  };
}
