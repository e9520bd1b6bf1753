/** The beam of a search, level by level: which prefixes survived, and the best of those that were pruned. */

import { bar, count, h, put } from "./dom.js";
import { codesOf, path } from "./items.js";
import { problem } from "./problems.js";

const FIRST = 12; // prefixes of a level before the button

/** `told`: the answer of /explorer/beam, an error, or null if there was no search. `answer`: that of /recommend. */
export function beamOf(told, answer) {
  const words = h("h2", {}, "The beam, level by level");
  if (told === null) return h("section", {}, words, h("p", { class: "muted" }, "There was nothing to search for."));
  if (told instanceof Error) return h("section", {}, words, problem(told));
  const onPage = answer.items.filter((each) => each.score !== null).map((each) => codesOf(each.semantic_id).join("-"));
  const leads = ({ codes }) => onPage.some((each) => `${each}-`.startsWith(`${codes.join("-")}-`));
  return h("section", { id: "beam" }, words,
    h("p", { class: "muted" }, "Each level scores the living children of every surviving prefix and keeps the best. These are " +
      "the numbers inside the graph that serves: the same file is run again on the same tables, filter and counts, and its choices at " +
      "each level are read out. A run whose last level is not the answer is refused. Dots mark prefixes that lead to an item of the page."),
    told.catalog_version === answer.catalog_version ? null
      : h("p", { class: "notice" }, "The catalog has changed between the page and this look at the beam."),
    h("div", { class: "levels" }, told.levels.map((level, place) => levelOf(level, place, leads))));
}

function levelOf(level, place, leads) {
  const all = [...level.kept, ...level.pruned].map((each) => each.score);
  const [best, worst] = [Math.max(...all), Math.min(...all)];
  const share = (score) => (best === worst ? 1 : 0.06 + 0.94 * (score - worst) / (best - worst));
  const line = (each, name) => h("li", { class: `${name}${leads(each) ? " leads" : ""}` },
    path(each.codes), bar(share(each.score)), h("span", { class: "score" }, each.score.toFixed(2)),
    h("span", { class: "muted small example" }, each.example ? `e.g. ${each.example}` : ""));
  const kept = h("ol", {}, level.kept.slice(0, FIRST).map((each) => line(each, "kept")));
  const numPruned = level.num_children - level.num_kept;
  return h("section", { class: "level", "aria-label": `Level ${place + 1}` },
    h("h3", {}, `Level ${place + 1}`),
    h("p", { class: "muted small" }, `${count(level.num_children)} living ${level.num_children === 1 ? "child" : "children"}, ` +
      `${count(level.num_kept)} survived, ${count(numPruned)} pruned`),
    kept,
    level.kept.length > FIRST ? h("button", { type: "button", onclick: (event) => {
      put(kept, level.kept.map((each) => line(each, "kept")));
      event.target.remove();
    } }, level.kept.length < level.num_kept ? `the best ${count(level.kept.length)} of ${count(level.num_kept)}` : `all ${count(level.num_kept)}`) : null,
    level.pruned.length ? [h("h4", {}, numPruned > level.pruned.length ? `Pruned: the best ${level.pruned.length} of ${count(numPruned)}` : "Pruned"),
      h("ol", {}, level.pruned.map((each) => line(each, "pruned")))] : h("h4", {}, "Nothing was pruned"));
}
