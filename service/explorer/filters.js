/** The form of a filter, as the body of POST /recommend has it. */

import { ask, info } from "./api.js";
import { h } from "./dom.js";

let known = null;
const categories = () => (known ??= ask("explorer/categories").then((found) => found.categories));

/** A fieldset whose `filter()` gives the conditions that are set, or null. `changed` is called after each change. */
export async function filterForm(filter, changed) {
  const [{ filter_fields: kinds }, found] = await Promise.all([info(), categories()]);
  const asked = filter ?? {};
  const any = h("input", {
    id: "filter-categories", list: "known-categories", value: (asked.categories_any ?? []).join(", "),
    placeholder: "any", autocomplete: "off",
  });
  const none = h("input", {
    id: "filter-no-categories", list: "known-categories", value: (asked.categories_none ?? []).join(", "),
    placeholder: "none", autocomplete: "off",
  });
  const available = h("input", { id: "filter-available", type: "checkbox", checked: asked.available === true });
  const fields = Object.entries(kinds).map(([name, kind]) => fieldOf(name, kind, asked.attributes?.[name]));
  const form = h("fieldset", { class: "filter", onchange: changed },
    h("legend", {}, "Filter"),
    h("datalist", { id: "known-categories" },
      found.map((each) => h("option", { value: each.category }, String(each.num_items)))),
    label("Category is one of", any), label("and none of", none),
    h("label", { class: "check" }, available, "available only"),
    fields.map((each) => each.node));
  form.filter = () => {
    const set = {};
    if (listed(any.value).length) set.categories_any = listed(any.value);
    if (listed(none.value).length) set.categories_none = listed(none.value);
    if (available.checked) set.available = true;
    const conditions = fields.map((each) => [each.name, each.value()]).filter(([, value]) => value !== null);
    if (conditions.length) set.attributes = Object.fromEntries(conditions);
    return Object.keys(set).length ? set : null;
  };
  return form;
}

export const label = (words, input) => h("label", {}, h("span", {}, words), input);
const listed = (value) => value.split(",").map((each) => each.trim()).filter(Boolean);

function fieldOf(name, kind, asked) {
  const id = `field-${name}`;
  if (kind === "number") {
    const bound = (side, value) => h("input", { id: `${id}-${side}`, type: "number", step: "any", value: String(value ?? ""),
      placeholder: side === "gte" ? "from" : "to", "aria-label": `${name} ${side === "gte" ? "from" : "to"}` });
    const from = bound("gte", asked?.gte);
    const upTo = bound("lte", asked?.lte);
    const node = h("div", { class: "range" }, h("span", {}, name), from, upTo);
    const value = () => {
      const range = {};
      if (from.value !== "") range.gte = Number(from.value);
      if (upTo.value !== "") range.lte = Number(upTo.value);
      return Object.keys(range).length ? range : null;
    };
    return { name, node, value };
  }
  if (kind === "boolean") {
    const select = h("select", { id }, ["", "true", "false"].map((each) =>
      h("option", { value: each, selected: String(asked ?? "") === each }, each || "any")));
    return { name, node: label(name, select), value: () => (select.value ? select.value === "true" : null) };
  }
  const input = h("input", { id, value: String(asked ?? ""), placeholder: "any" });
  return { name, node: label(name, input), value: () => input.value || null };
}
