/** Elements from names, properties and children. Texts become text nodes, so no text of an item is ever read as HTML. */

export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && typeof value !== "string") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  return put(node, ...children);
}

/** Replace the children of a node. */
export function put(node, ...children) {
  node.replaceChildren(...children.flat(9).filter((each) => each !== null && each !== undefined && each !== false));
  return node;
}

/** A number as people write it. */
export const count = (number, noun = "") =>
  number.toLocaleString("en-US") + (noun && ` ${noun}${number === 1 ? "" : "s"}`);

/** A bar from 0 to 1 of its width. */
export function bar(share) {
  const filled = h("span", { class: "filled" });
  filled.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return h("span", { class: "bar", "aria-hidden": "true" }, filled);
}

/** Call `work` once nobody has asked for `ms`. */
export function later(work, ms = 180) {
  let timer = 0;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...args), ms);
  };
}

/** The address of a view with parameters; empty ones are left out. */
export function to(view, params = {}) {
  const query = new URLSearchParams(Object.entries(params).filter(([, value]) => value));
  return `#/${view}${query.size ? `?${query}` : ""}`;
}

/** Arrow keys, Home and End move the focus among the elements that `all` gives. */
export function roving(event, all) {
  const place = all.indexOf(document.activeElement);
  const next = { ArrowDown: place + 1, ArrowUp: place - 1, Home: 0, End: all.length - 1 }[event.key];
  if (next === undefined || !all.length) return;
  event.preventDefault();
  all[Math.max(0, Math.min(all.length - 1, next))].focus();
}
