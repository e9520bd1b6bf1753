/** A CSV of orders, read in the browser: which user took which items, oldest first. */

const MAX_BYTES = 100e6;
const MAX_HISTORY = 500;
const NAMES = {
  user: /user|customer|client|household|visitor|session|buyer|member/i,
  item: /item|product|sku|article|asin/i,
  time: /time|date|when|_at$|^at$/i,
};

/** Rows of a CSV, RFC 4180: quotes may enclose separators and line ends. */
export function parseRows(text, separator) {
  const rows = [[]];
  let field = "";
  let isQuoted = false;
  const endField = () => {
    rows.at(-1).push(field);
    field = "";
  };
  for (let place = 0; place < text.length; place += 1) {
    const letter = text[place];
    if (isQuoted) {
      if (letter !== '"') field += letter;
      else if (text[place + 1] === '"') {
        field += '"';
        place += 1;
      } else isQuoted = false;
    } else if (letter === '"' && field === "") isQuoted = true;
    else if (letter === separator) endField();
    else if (letter === "\n") {
      endField();
      rows.push([]);
    } else if (letter !== "\r") field += letter;
  }
  endField();
  return rows.filter((row) => row.some((value) => value !== ""));
}

/** `{histories: Map of user to item ids, columns}`. Throws an Error that says which column is missing. */
export async function readOrders(file) {
  if (file.size > MAX_BYTES) throw new Error(`The file has ${Math.round(file.size / 1e6)} MB; 100 MB is the limit here.`);
  const text = (await file.text()).replace(/^\uFEFF/, "");
  const firstLine = text.slice(0, text.indexOf("\n") >>> 0);
  const separator = ["\t", ";", ","].find((each) => firstLine.includes(each)) ?? ",";
  const [header, ...lines] = parseRows(text, separator);
  const place = {};
  for (const [name, pattern] of Object.entries(NAMES)) {
    place[name] = header.findIndex((each, at) => pattern.test(each) && !Object.values(place).includes(at));
  }
  if (place.user < 0 || place.item < 0) {
    throw new Error(`The first line has no column for ${place.user < 0 ? "the user" : "the item"}: ${header.join(", ")}. ` +
      "Names such as user_id and item_id are understood.");
  }
  const orders = place.time < 0 ? lines : lines.map((line) => [timeOf(line[place.time]), line])
    .sort(([a], [b]) => a - b).map(([, line]) => line); // stable, so equal times keep the order of the file
  const histories = new Map();
  for (const line of orders) {
    const [user, item] = [line[place.user], line[place.item]];
    if (user && item) histories.set(user, [...(histories.get(user) ?? []).slice(1 - MAX_HISTORY), item]);
  }
  return { histories, columns: Object.values(place).filter((at) => at >= 0).map((at) => header[at]) };
}

const timeOf = (text) => (text?.trim() && !Number.isNaN(Number(text)) ? Number(text) : Date.parse(text) || 0);
