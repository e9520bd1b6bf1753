/** Shows the view that the address names, the health strip, and the choice of light or dark. */

import * as catalog from "./catalog.js";
import * as item from "./item.js";
import * as play from "./play.js";
import * as tree from "./tree.js";
import { watchHealth } from "./health.js";
import { h, put } from "./dom.js";
import { problem, waiting } from "./problems.js";

const views = { catalog, item, tree, play };
const main = document.getElementById("main");
let current = new AbortController();
let isFirst = true;

async function route() {
  const [name, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const view = views[name] ?? catalog;
  for (const link of document.querySelectorAll("nav a")) {
    const isHere = link.hash === `#/${name || "catalog"}`;
    if (isHere) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  current.abort();
  current = new AbortController();
  const { signal } = current;
  const focused = document.activeElement?.id;
  const wait = setTimeout(() => put(main, waiting()), 250); // a fast answer shows no flicker
  try {
    const shown = await view.show(new URLSearchParams(query), signal);
    if (signal.aborted) return;
    put(main, shown.nodes);
    document.title = `${shown.title} · glyphrec`;
    const target = focused && document.getElementById(focused);
    if (shown.focus) shown.focus();
    else if (target) target.focus();
    else if (!isFirst) (main.querySelector("h1") ?? main).focus();
    if (!focused && !shown.focus) scrollTo(0, 0);
  } catch (error) {
    if (signal.aborted || error.name === "AbortError") return;
    put(main, problem(error, route));
  } finally {
    clearTimeout(wait);
    if (!signal.aborted) main.dataset.view = name || "catalog"; // the tests wait for it
    isFirst = false;
  }
}

const themes = ["auto", "light", "dark"];
const themeButton = document.getElementById("theme");

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("glyphrec-theme", theme);
  put(themeButton, h("span", { "aria-hidden": "true" }, { auto: "◐", light: "○", dark: "●" }[theme]), ` ${theme}`);
}

themeButton.addEventListener("click", () =>
  setTheme(themes[(themes.indexOf(document.documentElement.dataset.theme) + 1) % themes.length]));
setTheme(themes.includes(localStorage.getItem("glyphrec-theme")) ? localStorage.getItem("glyphrec-theme") : "auto");
document.getElementById("skip").addEventListener("click", () => main.focus());
addEventListener("hashchange", route);
watchHealth(document.getElementById("health"));
route();
