/** Requests to the service beside which this page lies, with the key that the person gave to this tab. */

const KEY = "glyphrec-key";

/** A request that was refused, or did not arrive. `slug` is the stable part of the problem's type. */
export class Refused extends Error {
  constructor(slug, title, detail, requestId = "") {
    super(detail);
    Object.assign(this, { slug, title, requestId });
  }
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

/** GET `path`, or POST with a `body`; gives the response. A missing key is asked for, and the request repeated. */
async function send(path, { body, signal } = {}) {
  const headers = { Accept: "application/json, image/*, text/plain" };
  const key = sessionStorage.getItem(KEY);
  if (key !== null) headers["X-API-Key"] = key;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const init = { headers, signal, method: body === undefined ? "GET" : "POST", body: body && JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, init);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("unreachable", "The service does not answer", "Is it still running? Try again in a moment.");
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  const slug = String(problem.type ?? "").split(":").at(-1);
  if (slug === "missing-key") {
    await askForKey(key);
    return send(path, { body, signal });
  }
  throw new Refused(slug, problem.title ?? `Status ${response.status}`, problem.detail ?? "", problem.request_id);
}

export const ask = async (path, options) => (await send(path, options)).json();
export const text = async (path, options) => (await send(path, options)).text();
export const blob = async (path, options) => (await send(path, options)).blob();

let asking = null; // many requests may lack a key at the same time, and one answer is for all

function askForKey(refused) {
  if (sessionStorage.getItem(KEY) !== refused) return Promise.resolve(); // another request has asked meanwhile
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("key");
    const input = document.getElementById("key-value");
    document.getElementById("key-problem").textContent = refused === null ? "" : "The service does not know this key.";
    input.value = "";
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(KEY, input.value);
      input.value = "";
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

let told = null;

/** What is served: GET /info, once. */
export function info() {
  told ??= ask("info").catch((error) => {
    told = null;
    throw error;
  });
  return told;
}

const known = new Map(); // item id -> its content and Semantic ID

/** Keep what an answer told about items. */
export function remember(items) {
  if (known.size > 5000) known.clear();
  for (const each of items) known.set(each.item.item_id, each);
  return items;
}

/** Map of the contents of these items; those that do not exist are left out. */
export async function contents(ids, signal) {
  const missing = [...new Set(ids)].filter((id) => !known.has(id));
  if (missing.length) {
    remember((await ask("explorer/contents", { body: { item_ids: missing }, signal })).items);
  }
  return new Map(ids.filter((id) => known.has(id)).map((id) => [id, known.get(id)]));
}

export const itemPath = (id, rest = "") => `items/${encodeURIComponent(id)}${rest}`;
