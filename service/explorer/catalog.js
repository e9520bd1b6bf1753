/** The catalog as pictures: page by page in the order of the codes, or by a search. */

import { ask, contents, info, remember } from "./api.js";
import { count, h, later, to } from "./dom.js";
import { filterForm } from "./filters.js";
import { grid, path } from "./items.js";
import { nothing } from "./problems.js";

const PAGE = 24;

export async function show(params, signal) {
  const asked = { q: params.get("q") ?? "", codes: params.get("codes") ?? "", after: params.get("after") ?? "" };
  const filter = params.get("filter") ? JSON.parse(params.get("filter")) : null;
  const go = (change) => {
    const next = { ...asked, after: "", filter: filter && JSON.stringify(filter), ...change };
    location.hash = to("catalog", next);
  };
  const search = h("input", { id: "search", type: "search", value: asked.q, placeholder: "Search: oat milk 32 oz, or an item id",
    "aria-label": "Search", autocomplete: "off" });
  const form = await filterForm(filter, later(() => {
    const set = form.filter();
    go({ filter: set && JSON.stringify(set) });
  }));
  const [{ catalog }, found] = await Promise.all([
    info(), asked.q ? bySearch(asked.q, filter, signal) : byCodes(asked, filter, signal)]);
  const isNarrow = asked.q || asked.codes || filter;
  const empty = isNarrow
    ? nothing("Nothing fits", "No item meets all of this. ", h("a", { href: "#/catalog" }, "Show the whole catalog"))
    : nothing("The catalog is empty", "POST /items adds the first item, and it is here at the next look: ",
      h("code", {}, `curl ${new URL("items", document.baseURI)} -H 'content-type: application/json' ` +
        "-d '{\"item_id\": \"a1\", \"title\": \"Oat milk 32 oz\"}'"));
  return {
    title: asked.q || "Catalog",
    nodes: [
      h("h1", { tabindex: "-1" }, asked.q ? `“${asked.q}”` : `Catalog ${catalog.name}`),
      h("form", { class: "tools", role: "search", onsubmit: (event) => {
        event.preventDefault();
        go({ q: search.value.trim() });
      } }, search, h("button", { class: "main-action" }, "Search"),
      h("details", { open: filter !== null }, h("summary", {}, filter ? "Filter (set)" : "Filter"), form)),
      asked.codes ? h("p", {}, "Below ", path(asked.codes.split("-").map(Number)), " ",
        h("button", { type: "button", onclick: () => go({ codes: "" }) }, "show all")) : null,
      found.notice ? h("p", { class: "notice", role: "status" }, found.notice) : null,
      h("p", { class: "muted", id: "how-many" }, found.words),
      found.items.length ? grid(found.items, found.noteOf) : empty,
      h("p", { class: "pager row" },
        asked.after ? h("button", { type: "button", onclick: () => history.back() }, "Back") : null,
        found.next ? h("button", { type: "button", id: "next", onclick: () => go({ after: found.next }) }, "Next page") : null),
    ],
  };
}

async function byCodes(asked, filter, signal) {
  const query = new URLSearchParams({ limit: PAGE, codes: asked.codes });
  if (asked.after) query.set("after", asked.after);
  if (filter) query.set("filter", JSON.stringify(filter));
  const found = await ask(`explorer/items?${query}`, { signal });
  remember(found.items);
  return {
    items: found.items, next: found.next_after,
    words: `${count(found.num_items, "item")}, in the order of their codes: what looks alike to the encoder is near.`,
  };
}

async function bySearch(q, filter, signal) {
  const [named, answer] = await Promise.all([
    q.length <= 512 ? contents([q], signal) : new Map(),
    ask("search", { body: { query: q, limit: PAGE, ...(filter && { filter }) }, signal }).catch((error) => error)]);
  const exact = named.get(q);
  if (answer instanceof Error) {
    if (answer.name === "AbortError" || !["search-off", "no-vectors"].includes(answer.slug)) throw answer;
    return {
      items: exact ? [exact] : [], words: exact ? "The item with this id." : "No item has this id.",
      notice: `Only ids can be found here. ${answer.message}`,
    };
  }
  const stored = await contents(answer.items.map((each) => each.item_id), signal);
  const score = new Map(answer.items.map((each) => [each.item_id, each.score]));
  const items = [...stored.values()].filter((each) => each !== exact);
  return {
    items: exact ? [exact, ...items] : items,
    noteOf: ({ item }) => (item.item_id === q ? "this id" : score.get(item.item_id)?.toFixed(3)),
    words: `The ${count(items.length, "item")} most alike, by the encoder's eye. ` +
      (answer.exact ? "All items were compared." : "Found by a graph of neighbors.") +
      (answer.truncated ? " The text did not fit into its picture." : ""),
  };
}
