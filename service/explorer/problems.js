/** What a person sees when something is refused or missing. */

import { h } from "./dom.js";

export function problem(error, again = null) {
  return h("section", { class: "problem", role: "alert" },
    h("h2", {}, error.title ?? "The page has a mistake"),
    h("p", {}, error.message),
    error.requestId ? h("p", { class: "muted small" }, `Request ${error.requestId}; the service's log has it.`) : null,
    again && h("button", { type: "button", onclick: again }, "Try again"));
}

export const nothing = (title, ...words) => h("section", { class: "nothing" }, h("h2", {}, title), h("p", {}, ...words));
export const waiting = () => h("p", { class: "waiting muted", role: "status" }, "Loading …");
