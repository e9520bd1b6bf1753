/** The tree of codes, a column for each level. Arrow keys walk in it. */

import { ask, info, remember } from "./api.js";
import { bar, count, h, put, roving, to } from "./dom.js";
import { grid, path, titleOf } from "./items.js";
import { nothing } from "./problems.js";

const NUM_CARDS = 12;
let answers = new Map(); // prefix -> its branches, of one version of the catalog
let wantsFocus = null; // the level whose chosen branch gets the focus after a step by key

async function branchesOf(prefix, firstCode, signal) {
  const name = `${prefix}/${firstCode}`;
  if (!answers.has(name)) {
    const found = await ask(`explorer/branches?codes=${prefix}&first_code=${firstCode}`, { signal });
    if ([...answers.values()].some((each) => each.catalog_version !== found.catalog_version)) answers = new Map();
    answers.set(name, found);
    for (const each of found.branches) remember(each.examples);
  }
  return answers.get(name);
}

export async function show(params, signal) {
  const codes = (params.get("codes") ?? "").split("-").filter(Boolean).map(Number);
  const { levels } = await info();
  const shown = [...Array(Math.min(codes.length + 1, levels.length)).keys()];
  const [columns, below] = await Promise.all([
    Promise.all(shown.map((level) => column(level, codes, levels.length, signal))),
    codes.length ? ask(`explorer/items?limit=${NUM_CARDS}&codes=${codes.join("-")}`, { signal }) : null]);
  if (below) remember(below.items);
  const level = wantsFocus;
  wantsFocus = null;
  const nodes = [
    h("h1", { tabindex: "-1" }, "The tree of codes"),
    h("p", { class: "muted" }, "A Semantic ID is a path in this tree. The encoder and the quantizer made the codes, and nobody " +
      "named them: the examples tell what a code means. Arrow keys walk."),
    codes.length ? h("p", { class: "row" }, h("a", { class: "button", href: "#/tree" }, "root"), path(codes)) : null,
    columns[0].dataset.size === "0"
      ? nothing("The tree is empty", "The catalog has no item yet.") : h("div", { class: "columns" }, columns),
    below ? [
      h("h2", {}, `${count(below.num_items, "item")} below ${codes.join("-")}`),
      grid(below.items),
      below.next_after ? h("p", {}, h("a", { class: "button", href: to("catalog", { codes: codes.join("-") }) }, "All of them as pictures")) : null,
    ] : null,
  ];
  const focus = level === null ? null : () => {
    const options = columns[Math.min(level, columns.length - 1)];
    (options.querySelector("[aria-selected=true]") ?? options.querySelector("[role=option]"))?.focus();
  };
  columns.at(-1).scrollTop = 0;
  requestAnimationFrame(() => columns.at(-1).scrollIntoView({ block: "nearest", inline: "end" }));
  return { title: codes.length ? `Codes ${codes.join("-")}` : "Codes", nodes, focus };
}

async function column(level, codes, numLevels, signal) {
  const prefix = codes.slice(0, level).join("-");
  const found = await branchesOf(prefix, 0, signal);
  const list = h("div", { role: "listbox", class: "column", "aria-label": `Level ${level + 1}${prefix && `, below ${prefix}`}` });
  const most = Math.max(...found.branches.map((each) => each.num_items), 1);
  const open = (code, byKey) => {
    wantsFocus = byKey ? Math.min(level + 1, numLevels - 1) : level;
    location.hash = to("tree", { codes: [...codes.slice(0, level), code].join("-") });
  };
  const optionOf = (each) => h("div", {
    role: "option", class: "branch", "aria-selected": String(each.code === codes[level]),
    tabindex: "-1", onclick: () => open(each.code, false),
  },
  h("span", { class: `code l${level % 4}` }, String(each.code)),
  h("span", { class: "amount" }, bar(each.num_items / most), h("span", { class: "muted small" }, count(each.num_items))),
  h("span", { class: "examples" }, each.examples.map(({ item }) => h("span", { title: titleOf(item) }, titleOf(item)))));
  const options = found.branches.map(optionOf);
  const more = (next) => next !== null && h("button", { type: "button", class: "more", onclick: async (event) => {
    const rest = await branchesOf(prefix, next, signal);
    const button = event.target;
    button.replaceWith(...rest.branches.map(optionOf), more(rest.next_code) || "");
  } }, `more, from code ${next}`);
  put(list, options, more(found.next_code));
  (list.querySelector("[aria-selected=true]") ?? options[0])?.setAttribute("tabindex", "0");
  list.dataset.size = String(found.num_items);
  list.addEventListener("keydown", (event) => {
    const at = document.activeElement;
    if (at.getAttribute("role") !== "option") return;
    if (event.key === "ArrowRight" || event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      open(Number(at.querySelector(".code").textContent), true);
    } else if (event.key === "ArrowLeft" && level > 0) {
      event.preventDefault();
      wantsFocus = level - 1;
      location.hash = to("tree", { codes: codes.slice(0, level).join("-") });
    } else {
      roving(event, [...list.querySelectorAll("[role=option]")]);
    }
  });
  return list;
}
