/**
 * Adds the headers that isolate the chat page from other sites, and so give it threads, where the host sends none. Only
 * answers of this folder pass through: the page and its scripts. The model's files lie above it.
 */

const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
};
const WITHOUT_BODY = new Set([101, 204, 205, 304]);

async function isolated(request) {
  const response = await fetch(request);
  if (response.status === 0) return response; // a redirection, which the browser follows
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  const { status, statusText } = response;
  return new Response(WITHOUT_BODY.has(status) ? null : response.body, { status, statusText, headers });
}

addEventListener("install", () => skipWaiting());
addEventListener("activate", (event) => event.waitUntil(clients.claim()));
addEventListener("fetch", (event) => {
  const { method, url, cache, mode } = event.request;
  if (method !== "GET" || !url.startsWith(registration.scope)) return;
  if (cache === "only-if-cached" && mode !== "same-origin") return; // such a request cannot be repeated
  event.respondWith(isolated(event.request));
});
