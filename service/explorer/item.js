/** One item: its pictures, its fields, its Semantic ID as a path, and its neighbors. */

import { ask, contents, itemPath, remember } from "./api.js";
import { count, h, put, to } from "./dom.js";
import { codesOf, hasPhoto, path, picture, rows, slotOf, titleOf } from "./items.js";
import { problem, waiting } from "./problems.js";

export async function show(params, signal) {
  const id = params.get("id") ?? "";
  const stored = await ask(itemPath(id), { signal });
  remember([stored]);
  const { item, codes } = stored;
  const title = titleOf(item);
  const levels = await Promise.all(codes.map((_, level) =>
    ask(`explorer/items?limit=1&codes=${codes.slice(0, level + 1).join("-")}`, { signal })));
  const similar = h("div", {});
  const choose = async (by) => {
    put(similar, waiting());
    try {
      put(similar, await neighbors(id, by, signal));
    } catch (error) {
      if (error.name !== "AbortError") put(similar, problem(error));
    }
  };
  choose("");
  return {
    title,
    nodes: [
      h("h1", { tabindex: "-1" }, title),
      h("p", { class: "row" }, h("code", {}, id),
        h("a", { class: "button", href: to("play", { ask: JSON.stringify({ history: [id] }) }) }, "Recommend after this item")),
      h("div", { class: "pictures" },
        hasPhoto(item) ? figure(item, "kept", "The photo that is kept") : null,
        figure(item, "text", "What the encoder sees of the text"),
        hasPhoto(item) ? figure(item, "photo", "What the encoder sees of the photo") : null),
      h("h2", {}, "Semantic ID"),
      h("ol", { class: "sid" }, codes.map((code, level) => h("li", {},
        h("span", { class: "muted small" }, `level ${level + 1}`),
        path(codes.slice(0, level + 1)),
        h("span", { class: "muted" }, `${count(levels[level].num_items, "item")} ${level ? "share these codes" : "share this code"}`))),
      h("li", {}, h("span", { class: "muted small" }, "slot"), h("span", { class: "slot" }, slotOf(stored.semantic_id)),
        h("span", { class: "muted" }, "tells items with the same codes apart; the model never generates it"))),
      h("h2", {}, "Fields"),
      h("dl", { class: "fields" }, Object.entries(item).filter(([name]) => name !== "item_id").map(([name, value]) =>
        h("div", {}, h("dt", {}, name), h("dd", {}, typeof value === "string" ? value : JSON.stringify(value))))),
      h("h2", { id: "similar" }, "Neighbors"),
      h("div", { class: "row", role: "group", "aria-label": "Nearest by" },
        ["vector", "codes"].map((by) => h("button", { type: "button", onclick: () => choose(by) }, `by ${by}`))),
      similar,
    ],
  };
}

const figure = (item, part, words) => h("figure", {}, picture(item, part, words), h("figcaption", { class: "muted small" }, words));

async function neighbors(id, by, signal) {
  const found = await ask(itemPath(id, `/similar?limit=12${by && `&by=${by}`}`), { signal });
  const stored = await contents(found.items.map((each) => each.item_id), signal);
  const words = found.by === "vector"
    ? "The nearest vectors, with the cosine. Codes that are shared are marked."
    : "The items that share the most leading codes.";
  return [h("p", { class: "muted" }, found.items.length ? words : "No other item is near."), rows(found.items.map((each) => ({
    id: each.item_id, stored: stored.get(each.item_id), codes: codesOf(each.semantic_id), shared: each.shared_levels,
    note: each.score === null ? null : h("span", { class: "note" }, each.score.toFixed(3)),
  })))];
}
