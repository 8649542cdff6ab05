/**
 * Threads. wasm has more than one only in a page that its headers isolate from other sites; where the host sends none, a
 * service worker adds them (service-worker.js), from the second load on: the first one loads the page again.
 */

const MARK = "lfm2export.isolation";
/** Milliseconds in which a page that was loaded again and still is not isolated is left as it is. */
const PATIENCE = 10_000;
const MOST_THREADS = 4;

/** Why this page has one thread; null where it is isolated. Does not return where the page is loaded again. */
export async function isolationFault() {
  if (globalThis.crossOriginIsolated) return null;
  if (!globalThis.isSecureContext) return "browsers give a page of plain HTTP no more; HTTPS or localhost would do";
  if (globalThis.top !== globalThis) return "this page is shown inside another one";
  if (navigator.serviceWorker === undefined) return "the host does not isolate the page, and service workers are off here";
  if (navigator.serviceWorker.controller !== null) return "this browser does not isolate the page by a service worker's headers";
  try {
    const registration = await navigator.serviceWorker.register("./service-worker.js", { scope: "./" });
    await active(registration);
    if (Date.now() - Number(sessionStorage.getItem(MARK) ?? 0) < PATIENCE) return "the service worker does not take this page; load it again";
    sessionStorage.setItem(MARK, String(Date.now()));
  } catch (error) {
    return `the host does not isolate the page, and the service worker failed (${error?.message ?? error})`;
  }
  location.reload();
  return new Promise(() => {});
}

/** When the worker of `registration` answers requests; an error where it never will. */
function active(registration) {
  if (registration.active !== null) return Promise.resolve();
  const worker = registration.installing ?? registration.waiting;
  return new Promise((resolve, reject) => {
    const look = () => {
      if (worker.state === "activated") resolve();
      if (worker.state === "redundant") reject(new Error("it was not installed"));
    };
    worker.addEventListener("statechange", look);
    look();
  });
}

/** How many threads wasm gets: what `asked` says, else a processor's cores, of which the system counts two for most. */
export function threadCount(fault, asked) {
  if (fault !== null) return 1;
  const cores = navigator.hardwareConcurrency ?? 1;
  const wanted = Math.trunc(Number(asked));
  if (wanted >= 1) return Math.min(wanted, cores);
  return Math.min(MOST_THREADS, Math.max(Math.min(2, cores), Math.ceil(cores / 2)));
}
