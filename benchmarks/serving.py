"""What HTTP, JSON, batching and Redis add to the graphs: latency against load, to saturation and beyond.

    python benchmarks/serving.py                      the newest bundle of the demo
    python benchmarks/serving.py --bundle FOLDER --plot docs/latency.svg

A service of its own with 100,000 items, histories of 20 items, 50 beams. Requests come from another process,
at a rate that does not wait for answers (load.py). Baselines in the same run: both graphs called directly in
a loop, with as many threads as the service gives them; a bare FastAPI route that returns a canned answer
(bare.py); a two-tower recommender with exact search and with HNSW (two_tower.py). The last line is JSON:

  overhead_ms_p50         one caller: the median over HTTP less that of the graph
  saturation_share        answers a second at saturation / what the graph does in its best batches
  p99_ratio_at_70pct      at 70 % of saturation: p99 / the median of one caller
  ingest_share            items a second in bulk / what the tokenizer does in its best batches
  ready_s_100k            from the start of the process to ready, with a full Redis
  p99_rise_while_ingesting  of /recommend at 30 % of saturation, with `glyphrec import --rate` beside it

(It is not called http.py: that would hide the standard library's http from every file beside it.)
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import matplotlib
import numpy as np
import two_tower
from first import newest_demo_bundle
from ingest import Load, ingest, run_import
from load import HISTORY, send

from model_export.local_service import LocalService, free_port, local_service
from service.core.bundle import ITEMS, RECOMMENDER, Bundle, load_bundle
from service.core.graphs import beam_widths
from service.core.json_lines import read_json_lines
from service.core.trie import SidTrie
from service.inference.runtime import RecommenderSession
from service.store.server import start_server

NUM_ITEMS = 100_000
NUM_BEAMS = 50
LIMIT = 10
CALLERS = 32  # that only wait for their answers: saturation
SHARES = (0.1, 0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
OK = 200


class Point(NamedTuple):
    """One load. The percentiles are of those that were answered, from one second on."""

    offered_rps: float
    answered_rps: float
    refused_share: float
    p50_ms: float
    p99_ms: float


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--seconds", type=int, default=10, help="of each load")
    parser.add_argument("--items", type=int, default=NUM_ITEMS)
    parser.add_argument("--new-items", type=int, default=1_000, help="that are read in bulk")
    parser.add_argument("--rate", type=float, default=10, help="items a second of an import beside a load")
    parser.add_argument("--plot", type=Path, help="draw latency against load there")
    args = parser.parse_args()
    bundle = load_bundle(args.bundle or newest_demo_bundle())
    catalogue = catalogue_of(bundle, args.items)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        body = body_of(catalogue, folder)
        figures = graph_alone(bundle, catalogue)
        with full(bundle, catalogue, folder) as service:
            figures["ready_s_100k"] = service.ready_s
            points = recommend(service, body, args.seconds, figures)

            def load(share: float) -> float:
                return point_at(service, body, share * figures["saturation_rps"], args.seconds).p99_ms

            figures |= ingest(
                service, bundle, catalogue, folder, args.new_items, Load(load, args.seconds, args.rate)
            )
            answer = service.client.post("/recommend", content=body.read_bytes(), headers=JSON).content
        figures |= bare(answer, body, folder, args.seconds)
    for search, found in two_tower.measure(args.items, HISTORY).items():
        figures |= {f"two_tower_{search}_{key}": value for key, value in found._asdict().items()}
    show(points, figures)
    if args.plot:
        plot(points, figures, args.plot)
    print(json.dumps({key: round(float(value), 4) for key, value in figures.items()}))
    return 0


JSON = {"content-type": "application/json"}


# --- the catalogue ---


def catalogue_of(bundle: Bundle, num_items: int) -> list[dict[str, Any]]:
    """Lines of so many tokenised items: the bundle's again and again, with another last code each time."""
    known = [line.value for line in read_json_lines(bundle.file(ITEMS))]
    rng = np.random.default_rng(0)
    last = rng.integers(bundle.manifest.sid.levels[-1], size=num_items).tolist()
    rows = []
    for n in range(num_items):
        row = known[n % len(known)]
        item_id = row["item_id"] if n < len(known) else f"{row['item_id']}-{n // len(known)}"
        codes = row["codes"] if n < len(known) else [*row["codes"][:-1], last[n]]
        rows.append({**row, "item_id": item_id, "codes": codes, "item": {**row["item"], "item_id": item_id}})
    return rows


def body_of(catalogue: Sequence[dict[str, Any]], folder: Path) -> Path:
    places = np.random.default_rng(0).choice(len(catalogue), HISTORY, replace=False)
    path = folder / "body.json"
    path.write_text(
        json.dumps({"history": [catalogue[place]["item_id"] for place in places], "limit": LIMIT})
    )
    return path


@contextmanager
def full(bundle: Bundle, catalogue: Sequence[dict[str, Any]], folder: Path) -> Iterator[LocalService]:
    """A service that starts on a Redis which holds the catalogue."""
    lines = folder / "catalogue.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in catalogue), encoding="utf-8")
    with start_server(folder / "redis") as server:
        run_import(lines, "--tokenized", "--bundle", bundle.path, "--redis-url", server.url)
        with local_service(bundle.path, redis_url=server.url, log=folder / "log") as service:
            yield service


# --- what is measured ---


def graph_alone(bundle: Bundle, catalogue: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Called in a loop, with as many threads as the service gives it."""
    manifest = bundle.manifest
    threads = max(1, (os.cpu_count() or 2) // 2)
    session = RecommenderSession(bundle.file(RECOMMENDER), manifest.recommender, threads=threads)
    codes = np.array([row["codes"] for row in catalogue])
    tables = SidTrie.from_codes(manifest.sid, codes).tables
    widths = beam_widths(manifest.sid, min(NUM_BEAMS, manifest.beam_limit))
    rng = np.random.default_rng(0)

    def median_s(batch: int) -> float:
        histories = codes[rng.integers(len(codes), size=(batch, HISTORY))][:, -manifest.history_length :]
        return two_tower.median_s(lambda _: session.run(histories, tables, widths), 50)

    took_s = {batch: median_s(batch) for batch in BATCHES}
    best = max(took_s, key=lambda batch: batch / took_s[batch])
    return {
        "graph_p50_ms": 1_000 * took_s[1],
        "graph_best_rps": best / took_s[best],
        "graph_best_batch": best,
    }


def recommend(service: LocalService, body: Path, seconds: int, figures: dict[str, float]) -> list[Point]:
    """Adds to the figures -> latency at each load."""
    url = f"{service.url}/recommend"
    send(url, body, callers=CALLERS, seconds=2)  # warms everything up
    alone = send(url, body, callers=1, seconds=seconds).latency_ms
    spent_s = -cpu_seconds(service.process.pid)
    saturated = [send(url, body, callers=CALLERS, seconds=seconds) for _ in range(3)]
    spent_s += cpu_seconds(service.process.pid)
    num_answers = [int(np.sum(each.status == OK)) for each in saturated]
    saturation = float(
        np.median([num / each.took_s for num, each in zip(num_answers, saturated, strict=True)])
    )
    points = [point_at(service, body, share * saturation, seconds) for share in SHARES]
    p50_ms = float(np.median(alone))
    figures |= {
        "http_p50_ms": p50_ms,
        "http_p99_ms": float(np.percentile(alone, 99)),
        "overhead_ms_p50": p50_ms - figures["graph_p50_ms"],
        "share_outside_the_graph": 1 - figures["graph_p50_ms"] / p50_ms,
        "saturation_rps": saturation,
        "saturation_share": saturation / figures["graph_best_rps"],
        "p99_ratio_at_70pct": points[SHARES.index(0.7)].p99_ms / p50_ms,
        "cpu_s_per_1000": 1_000 * spent_s / sum(num_answers),
    }
    return points


def point_at(service: LocalService, body: Path, rate: float, seconds: float) -> Point:
    answers = send(f"{service.url}/recommend", body, rate=rate, seconds=seconds)
    is_ok = answers.status == OK
    settled = answers.latency_ms[is_ok & (answers.sent_at_s >= 1)]
    return Point(
        offered_rps=rate,
        answered_rps=float(np.sum(is_ok) / answers.took_s),
        refused_share=float(np.mean(~is_ok)),
        p50_ms=float(np.percentile(settled, 50)),
        p99_ms=float(np.percentile(settled, 99)),
    )


def cpu_seconds(pid: int) -> float:
    """That the process has used, in user and system mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def bare(answer: bytes, body: Path, folder: Path, seconds: int) -> dict[str, float]:
    """Of the canned answer."""
    path, port = folder / "answer.json", free_port()
    path.write_bytes(answer)
    url = f"http://127.0.0.1:{port}/recommend"
    process = subprocess.Popen([sys.executable, Path(__file__).with_name("bare.py"), str(port), path])
    try:
        until_answered(url)
        send(url, body, callers=CALLERS, seconds=2)
        alone = send(url, body, callers=1, seconds=seconds)
        saturated = send(url, body, callers=CALLERS, seconds=seconds)
    finally:
        process.terminate()
        process.wait()
    return {
        "bare_p50_ms": float(np.median(alone.latency_ms)),
        "bare_saturation_rps": len(saturated.status) / saturated.took_s,
    }


def until_answered(url: str) -> None:
    for _ in range(200):
        try:
            httpx.post(url, trust_env=False)
            return
        except httpx.TransportError:
            time.sleep(0.05)
    sys.exit(f"{url} does not answer")


# --- what is shown ---


def show(points: Sequence[Point], figures: dict[str, float]) -> None:
    print(f"{'offered/s':>10} {'answered/s':>10} {'refused':>8} {'p50 ms':>8} {'p99 ms':>8}")
    for each in points:
        print(
            f"{each.offered_rps:10.0f} {each.answered_rps:10.0f} {each.refused_share:8.1%} "
            f"{each.p50_ms:8.2f} {each.p99_ms:8.2f}"
        )
    for key, value in figures.items():
        print(f"{key:28} {value:12,.3f}")


def plot(points: Sequence[Point], figures: dict[str, float], path: Path) -> None:
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "glyphrec"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
    load = [each.offered_rps for each in points]
    axes.plot(load, [each.p99_ms for each in points], "o-", color="#b5482a", label="p99 of what is answered")
    axes.plot(load, [each.p50_ms for each in points], "o-", color="#27548a", label="p50")
    axes.axhline(
        figures["graph_p50_ms"], color="#777777", linestyle=":", label="the graph alone, one request"
    )
    axes.axvline(figures["saturation_rps"], color="#777777", linestyle="--", label="saturation")
    axes.set(xlabel="requests a second that are sent to POST /recommend", ylabel="milliseconds", yscale="log")
    axes.grid(alpha=0.3, which="both")
    shares = axes.twinx()
    shares.fill_between(load, [100 * each.refused_share for each in points], color="#999999", alpha=0.25)
    shares.set(ylabel="refused with 429, % (grey)", ylim=(0, 100))
    axes.legend(loc="upper left", frameon=False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
