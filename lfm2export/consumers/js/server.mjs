/** A static server on the loopback interface, by default with the headers that let a page use threads. */

import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize, sep } from "node:path";

const TYPES = {
  ".css": "text/css; charset=utf-8",
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".json": "application/json",
  ".jinja": "text/plain; charset=utf-8",
  ".md": "text/plain; charset=utf-8",
  ".mjs": "text/javascript; charset=utf-8",
  ".svg": "image/svg+xml",
  ".wasm": "application/wasm",
};

const ISOLATING = {
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-embedder-policy": "require-corp",
};

/** A path without its percent signs; one that is no text is left as it is, and is not there. */
function decoded(path) {
  try {
    return decodeURIComponent(path);
  } catch {
    return path;
  }
}

/**
 * Serve folders under paths.
 *
 * @param mounts [[path that begins and ends with "/", folder], ...]; the first that fits wins
 * @param hidden paths that are answered with 404 although the file is there
 * @param fallback a page of HTML that is given, with status 200, for whatever is not there, as many hosts do
 * @param isolating whether the headers that let a page use threads are sent, as few hosts do
 * @returns {origin, requests, close}: requests lists [status, path] of everything that was asked for
 */
export async function serve(mounts, hidden = [], fallback = undefined, isolating = true) {
  const requests = [];
  const server = createServer(async (request, response) => {
    const asked = decoded(new URL(`http://localhost${request.url}`).pathname);
    const path = asked.endsWith("/") ? `${asked}index.html` : asked;
    const answer = (status, headers = {}) => {
      requests.push([status, path]);
      response.writeHead(status, {
        ...(isolating ? ISOLATING : {}),
        "cache-control": "no-store",
        ...headers,
      });
    };
    const mount = mounts.find(([prefix]) => path.startsWith(prefix));
    const file = mount && join(mount[1], normalize(path.slice(mount[0].length)));
    const inside = file && (file === normalize(mount[1]) || file.startsWith(normalize(mount[1] + sep)));
    const found = inside && !hidden.includes(path) ? await stat(file).catch(() => null) : null;
    if (!found?.isFile() && fallback !== undefined) {
      answer(200, { "content-length": Buffer.byteLength(fallback), "content-type": TYPES[".html"] });
      response.end(request.method === "HEAD" ? undefined : fallback);
      return;
    }
    if (!found?.isFile()) {
      answer(404);
      response.end();
      return;
    }
    answer(200, { "content-length": found.size, "content-type": TYPES[extname(file)] ?? "application/octet-stream" });
    if (request.method === "HEAD") response.end();
    else createReadStream(file).pipe(response);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    origin: `http://127.0.0.1:${server.address().port}`,
    requests,
    close: () =>
      new Promise((resolve) => {
        server.close(resolve);
        server.closeAllConnections();
      }),
  };
}
