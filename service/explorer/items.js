/** How items look: their pictures, their Semantic IDs as paths, cards and rows. */

import { blob, itemPath } from "./api.js";
import { h, put, to } from "./dom.js";

const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    target.draw();
  }
}, { rootMargin: "300px" });

/** A picture of the item, drawn once it comes near the screen. `part` as in GET /items/{id}/image. */
export function picture(item, part, label) {
  const canvas = h("canvas", { class: "picture", role: "img", "aria-label": label, width: 8, height: 2 });
  const frame = h("span", { class: `frame ${part}` }, canvas);
  frame.draw = async () => {
    try {
      const bitmap = await createImageBitmap(await blob(itemPath(item.item_id, `/image?part=${part}`)));
      Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
      canvas.getContext("2d").drawImage(bitmap, 0, 0);
      frame.classList.add("drawn");
    } catch (error) {
      put(frame, h("span", { class: "muted none" }, error.slug === "picture-not-found" ? "no picture" : "not loaded"));
    }
  };
  seen.observe(frame);
  return frame;
}

/** Whether the service keeps a photo of the item: its field `image` is a reference then. */
export const hasPhoto = (item) => typeof item.image === "object" && typeof item.image?.sha256 === "string";

export const titleOf = (item) => String(item.title ?? "").trim() || item.item_id;

export function categoriesOf(item) {
  const given = item.categories ?? item.category ?? [];
  return (Array.isArray(given) ? given : [given]).map(String);
}

/** A Semantic ID as a path: each code leads to its branch of the tree. The first `shared` ones are marked. */
export function path(codes, { slot, shared = 0 } = {}) {
  return h("span", { class: "path" },
    codes.map((code, level) => h("a", {
      href: to("tree", { codes: codes.slice(0, level + 1).join("-") }),
      class: `code l${level % 4}${level < shared ? " shared" : ""}`,
      title: `the branch ${codes.slice(0, level + 1).join("-")}`,
    }, String(code))),
    slot === undefined ? null : h("span", { class: "slot", title: "slot: tells items with the same codes apart" }, slot));
}

export const slotOf = (sid) => sid.slice(sid.lastIndexOf("-") + 1);
export const codesOf = (sid) => sid.split("-").slice(0, -1).map(Number);

/** A card for a grid. `note` is shown below the title, such as a score. */
export function card({ item, codes, semantic_id: sid }, note = null) {
  const title = titleOf(item);
  return h("li", { class: "card" },
    h("a", { class: "cover", href: to("item", { id: item.item_id }), "aria-label": title },
      hasPhoto(item) ? picture(item, "kept", `photo of ${title}`) : null,
      picture(item, "text", `${title}, as the encoder sees it`),
      h("span", { class: "title" }, title)),
    h("span", { class: "muted small" }, categoriesOf(item).join(" › ") || item.item_id),
    h("span", { class: "row" }, path(codes, { slot: slotOf(sid) }), note && h("span", { class: "note" }, note)));
}

export const grid = (items, noteOf = () => null) => h("ul", { class: "grid" }, items.map((each) => card(each, noteOf(each))));

/** A list of items, one a line. Each row is `{id, stored, codes, slot, note, shared, action}`; `stored` may be missing. */
export const rows = (items) => h("ol", { class: "rows" }, items.map((each) => {
  const item = each.stored?.item ?? { item_id: each.id };
  return h("li", { class: each.class ?? null },
    picture(item, "text", ""),
    h("span", { class: "what" },
      h("a", { href: to("item", { id: each.id }) }, titleOf(item)),
      h("span", { class: "muted small" }, categoriesOf(item).join(" › ") || each.id)),
    each.codes && path(each.codes, { shared: each.shared, slot: each.slot }),
    each.note ?? null);
}));
