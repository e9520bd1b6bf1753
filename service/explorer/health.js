/** A strip that says how this replica does, from /metrics, which needs no key. */

import { text } from "./api.js";
import { count, h, put } from "./dom.js";

const EVERY_MS = 5000;

/** Prometheus' text format -> samples `{name, labels, value}`. */
export function parse(metrics) {
  return metrics.split("\n").filter((line) => line && !line.startsWith("#")).map((line) => {
    const [, name, labels = "", value] = /^(\w+)(?:\{(.*)\})? (\S+)/.exec(line) ?? [];
    const pairs = [...labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, key, each]) => [key, each]);
    return { name, labels: Object.fromEntries(pairs), value: Number(value) };
  });
}

const of = (samples, name, fits = () => true) => samples.filter((each) => each.name === name && fits(each.labels));
const sum = (samples) => samples.reduce((total, each) => total + each.value, 0);

/** The time below which 95 of 100 requests of a route stayed between two scrapes, in seconds; null without requests. */
export function p95(now, before, route) {
  const counts = (samples) => {
    const found = new Map();
    for (const { labels, value } of of(samples, "glyphrec_http_request_seconds_bucket", (each) => each.route === route)) {
      const le = labels.le === "+Inf" ? Infinity : Number(labels.le);
      found.set(le, (found.get(le) ?? 0) + value);
    }
    return found;
  };
  const was = counts(before);
  const grown = [...counts(now)].map(([le, value]) => [le, value - (was.get(le) ?? 0)]).sort(([a], [b]) => a - b);
  const all = grown.at(-1)?.[1] ?? 0;
  return all ? grown.find(([, value]) => value >= 0.95 * all)[0] : null;
}

export function watchHealth(strip) {
  let before = [];
  let at = 0;
  let isRunning = false;
  const look = async () => {
    if (document.hidden || isRunning) return;
    isRunning = true;
    try {
      const now = parse(await text("metrics"));
      const seconds = (performance.now() - at) / 1000;
      put(strip, words(now, before, at ? seconds : null));
      [before, at] = [now, performance.now()];
    } catch (error) {
      put(strip, h("span", { class: "bad" }, `● ${error.title ?? "no metrics"}`));
    } finally {
      isRunning = false;
    }
  };
  setInterval(look, EVERY_MS);
  document.addEventListener("visibilitychange", look);
  look();
}

function words(now, before, seconds) {
  const value = (name) => sum(of(now, name));
  const isReady = value("glyphrec_ready") === 1;
  const isStale = value("glyphrec_catalog_stale_seconds") > 0;
  const slow = p95(now, before, "/recommend");
  const requests = (samples) => sum(of(samples, "glyphrec_http_requests_total", (each) => each.route !== "/metrics"));
  const fact = (words_, number) => h("span", {}, h("span", { class: "muted" }, words_), " ", h("b", {}, number));
  return [
    h("span", { class: isReady ? "good" : "bad" }, isReady ? "● ready" : "● not ready"),
    h("span", { class: isStale ? "bad" : "good" }, isStale ? "● Redis is lost" : "● Redis"),
    fact("items", count(value("glyphrec_catalog_items"))),
    seconds ? fact("requests/s", ((requests(now) - requests(before)) / seconds).toFixed(1)) : null,
    slow === null ? null : fact("recommend p95", slow === Infinity ? "slow" : `≤ ${count(slow * 1000)} ms`),
    fact("queued", count(value("glyphrec_queue_units"))),
  ];
}
