/** The playground: a history goes in; a page, the beam and the equivalent curl come out, after each change. */

import { ask, contents, hasKey, info } from "./api.js";
import { bar, count, h, later, put, to } from "./dom.js";
import { beamOf } from "./beam.js";
import { filterForm, label } from "./filters.js";
import { historyEditor } from "./history.js";
import { codesOf, rows, slotOf } from "./items.js";
import { nothing, problem, waiting } from "./problems.js";

export async function show(params, signal) {
  const asked = { history: [], ...(params.get("ask") ? JSON.parse(params.get("ask")) : {}) };
  const { limits } = await info();
  const out = h("div", { class: "out", "aria-live": "polite" });
  const update = later(() => run(request(), out, signal), 120);
  const history = await historyEditor(asked.history, update, signal);
  const filter = await filterForm(asked.filter, update);
  const number = (id, value, most) => h("input", { id, type: "number", min: "1", max: String(most), value: String(value ?? ""), placeholder: "no limit" });
  const limit = number("limit", asked.limit ?? 10, limits.limit);
  const perCode = number("per-code", asked.diversity?.max_per_first_code, 1000);
  const perCategory = number("per-category", asked.diversity?.max_per_category, 1000);
  const exact = h("input", { id: "exact", type: "checkbox", checked: asked.guarantee === "exact" });
  const repeats = h("input", { id: "repeats", type: "checkbox", checked: asked.exclude_history === false });

  /** The body of POST /recommend that the form stands for, without what is at its default. */
  function request() {
    const body = { history: history.ids(), limit: Number(limit.value) || 10 };
    if (exact.checked) body.guarantee = "exact";
    if (repeats.checked) body.exclude_history = false;
    const conditions = filter.filter();
    if (conditions) body.filter = conditions;
    const diversity = {};
    if (perCode.value) diversity.max_per_first_code = Number(perCode.value);
    if (perCategory.value) diversity.max_per_category = Number(perCategory.value);
    if (Object.keys(diversity).length) body.diversity = diversity;
    return body;
  }

  run(request(), out, signal);
  return {
    title: "Playground",
    nodes: [
      h("h1", { tabindex: "-1" }, "Playground"),
      h("div", { class: "play" },
        h("form", { class: "controls", onsubmit: (event) => event.preventDefault(), oninput: (event) => {
          if (!event.target.closest(".history, .filter")) update();
        } },
        history,
        h("fieldset", {}, h("legend", {}, "Page"),
          label("Items", limit),
          h("label", { class: "check" }, exact, "prove the page (guarantee: exact)"),
          h("label", { class: "check" }, repeats, "may repeat items of the history")),
        h("fieldset", {}, h("legend", {}, "Diversity"),
          label("Most per first code", perCode), label("Most per category", perCategory)),
        filter),
        out),
    ],
  };
}

let newest = 0; // an answer that comes after a later one is not shown

async function run(body, out, signal) {
  const mine = ++newest;
  history.replaceState(null, "", to("play", { ask: JSON.stringify(body) }));
  out.classList.add("old");
  try {
    const answer = await ask("recommend", { body, signal });
    const stored = await contents(answer.items.map((each) => each.item_id), signal).catch(() => new Map()); // Redis may be lost
    const isNewest = () => mine === newest && !signal.aborted;
    if (!isNewest()) return;
    const beam = h("div", {}, waiting());
    put(out, page(answer, stored), beam, curl(body));
    out.classList.remove("old");
    const told = answer.search
      ? await ask("explorer/beam", { body: { ...body, num_beams: answer.search.num_beams }, signal }).catch((error) => error) : null;
    if (isNewest()) put(beam, beamOf(told, answer));
  } catch (error) {
    if (mine !== newest || error.name === "AbortError") return;
    put(out, problem(error, () => run(body, out, signal)), curl(body));
  }
  out.classList.remove("old");
  out.dataset.run = String(mine); // the tests wait for it
}

function page(answer, stored) {
  if (!answer.items.length) {
    return [facts(answer), nothing("The page is empty", "No item passes the filter, or all of them are excluded.")];
  }
  const scores = answer.items.map((each) => each.score).filter((each) => each !== null);
  const [best, worst] = [Math.max(...scores), Math.min(...scores)];
  return h("section", { "aria-label": "Recommended items" }, facts(answer), rows(answer.items.map((each) => ({
    id: each.item_id, stored: stored.get(each.item_id), codes: codesOf(each.semantic_id), slot: slotOf(each.semantic_id),
    note: each.score === null ? h("span", { class: "note" }, "popular")
      : h("span", { class: "note" }, bar(best === worst ? 1 : 0.15 + 0.85 * (each.score - worst) / (best - worst)), each.score.toFixed(2)),
  }))));
}

function facts(answer) {
  const { search } = answer;
  const fact = (words, name, title = null) => h("li", { class: name, title }, words);
  return h("ul", { class: "facts" },
    answer.exact ? fact("✓ exact", "exact good", "No item left out scores higher: this is proven")
      : fact("not proven", "exact", "The best that the beam found. A wider search may prove it"),
    fact(answer.source === "model" ? "from the model" : "popular items: no item of the history is known", "source"),
    search && fact(`${count(search.num_beams, "beam")}${search.widened ? `, widened ${count(search.widened, "time")}` : ""}`, "search"),
    search?.beam_limit_reached && fact("beam limit reached", "bad", "The widest search left the page short or unproven"),
    answer.matching_items !== null && fact(`${count(answer.matching_items, "item")} pass the filter`, "matching_items"),
    answer.unknown_item_ids.length > 0 && fact(`unknown: ${answer.unknown_item_ids.slice(0, 5).join(", ")}`, "unknown_item_ids bad"),
    fact(`catalog version ${answer.catalog_version}`, "catalog_version"));
}

function curl(body) {
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  const words = `curl -s ${new URL("recommend", document.baseURI)} -H 'content-type: application/json' ` +
    `${hasKey() ? '-H "X-API-Key: $GLYPHREC_KEY" ' : ""}-d '${quoted}'`;
  const copy = h("button", { type: "button", onclick: async () => {
    await navigator.clipboard?.writeText(words);
    put(copy, "copied");
  } }, "copy");
  return h("section", {}, h("h2", {}, "The same by curl"), h("pre", { tabindex: "0", id: "curl" }, words), copy);
}
