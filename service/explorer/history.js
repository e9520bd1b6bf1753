/** The editor of a history: items found by a search, or the items of a user of a CSV of orders. */

import { ask, contents } from "./api.js";
import { count, h, later, put, roving } from "./dom.js";
import { titleOf } from "./items.js";
import { readOrders } from "./orders.js";

export async function historyEditor(ids, changed, signal) {
  let taken = ids.map(String);
  const titles = await contents(taken, signal).catch(() => new Map());
  const list = h("ol", { class: "taken" });
  const found = h("ul", { class: "found" });
  const note = h("p", { class: "muted small", role: "status" });
  const draw = () => put(list, taken.map((id, place) => h("li", {},
    h("span", {}, titles.has(id) ? titleOf(titles.get(id).item) : id),
    h("button", { type: "button", "aria-label": `Remove ${titles.has(id) ? titleOf(titles.get(id).item) : id}`, onclick: () => {
      set(taken.filter((_, other) => other !== place));
    } }, "×"))));
  const set = async (next) => {
    taken = next;
    draw();
    changed();
    for (const [id, each] of await contents(taken, signal).catch(() => new Map())) titles.set(id, each);
    draw();
  };
  const add = (stored) => {
    titles.set(stored.item.item_id, stored);
    set([...taken, stored.item.item_id]);
    input.value = "";
    put(found);
    input.focus();
  };
  const look = later(async () => {
    const query = input.value.trim();
    if (!query) return put(found);
    try {
      const named = await contents([query], signal);
      const like = await ask("search", { body: { query, limit: 6 }, signal }).catch((error) => {
        if (error.name === "AbortError") throw error;
        put(note, `Only ids can be found here. ${error.message}`);
        return { items: [] };
      });
      const stored = await contents([...named.keys(), ...like.items.map((each) => each.item_id)], signal);
      put(found, [...stored.values()].map((each) => h("li", {}, h("button", { type: "button", onclick: () => add(each) },
        titleOf(each.item), " ", h("span", { class: "muted small" }, each.item.item_id)))));
      if (!stored.size) put(found, h("li", { class: "muted" }, "nothing is like this"));
    } catch (error) {
      if (error.name !== "AbortError") put(note, error.message);
    }
    return undefined;
  });
  const input = h("input", { id: "add-item", type: "search", placeholder: "Search an item to add", "aria-label": "Search an item to add",
    autocomplete: "off", oninput: look });
  const file = h("input", { id: "orders", type: "file", accept: ".csv,.tsv,.txt,text/csv", onchange: async () => {
    try {
      if (file.files[0]) show(await readOrders(file.files[0]));
    } catch (error) {
      put(note, error.message);
      put(users);
    }
  } });
  const users = h("div", {});
  const show = ({ histories, columns }) => {
    const select = h("select", { id: "user", onchange: () => set(histories.get(select.value)) },
      h("option", { value: "" }, "choose a user"),
      [...histories].slice(0, 2000).map(([user, items]) => h("option", { value: user }, `${user} (${count(items.length, "item")})`)));
    put(users, h("label", {}, h("span", {}, "User"), select));
    put(note, `${count(histories.size, "user")}, by the columns ${columns.join(", ")}. The file stays in this browser.`);
  };
  const editor = h("fieldset", { class: "history", onkeydown: (event) => {
    if (event.target === input || found.contains(event.target)) roving(event, [input, ...found.querySelectorAll("button")]);
    if (event.target === input && event.key === "Enter") {
      event.preventDefault();
      found.querySelector("button")?.click();
    }
  } },
  h("legend", {}, "History, oldest first"), list, input, found,
  h("label", { class: "file" }, h("span", {}, "or open a CSV of orders"), file), users, note);
  editor.ids = () => taken;
  draw();
  return editor;
}
