"""First timings of a served bundle: start-up, memory, POST /recommend, POST /items one by one and in bulk.

    python benchmarks/first.py [--bundle FOLDER]        by default the newest bundle that `make demo` made

Starts a service of its own on an embedded Redis that is thrown away, and speaks to it over one connection.
The baseline of the same run is the exported graph called directly in this process, on the same inputs.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np

from model_export.local_service import local_service
from service.core.bundle import ITEMS, RECOMMENDER, TOKENIZER, Bundle, load_bundle
from service.core.graphs import beam_widths
from service.core.json_lines import read_json_lines
from service.core.render import item_text, render_text
from service.core.trie import SidTrie
from service.errors import GlyphrecError
from service.inference.runtime import RecommenderSession, Tokenizer

HISTORY = 20
NUM_BEAMS = 50


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--requests", type=int, default=1000, help="POST /recommend")
    parser.add_argument("--items", type=int, default=100, help="POST /items one by one")
    parser.add_argument("--bulk", type=int, default=400, help="items in the bulk request")
    args = parser.parse_args()
    bundle = load_bundle(args.bundle or newest_demo_bundle())
    catalogue = [line.value for line in read_json_lines(bundle.file(ITEMS))]
    rng = np.random.default_rng(0)
    places = [rng.choice(len(catalogue), HISTORY, replace=False) for _ in range(args.requests)]
    print(
        f"{bundle.path.name}: {len(catalogue):,} items, {os.cpu_count()} cores, "
        f"history {HISTORY}, {NUM_BEAMS} beams"
    )

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with local_service(bundle.path, data_dir=folder / "redis", log=folder / "log") as service:
            first_ready_s = service.ready_s
            figures = measure(service.client, bundle, catalogue, places, args.items, args.bulk)
            figures["rss_mb"] = resident_mb(service.process.pid)
        # Once more on the Redis that now holds the catalogue: the start that operations see.
        with local_service(bundle.path, data_dir=folder / "redis", log=folder / "log") as service:
            figures["ready_s"] = service.ready_s
    print(
        f"start to ready     {first_ready_s:8.2f} s with an empty Redis, "
        f"{figures['ready_s']:.2f} s with a full one"
    )
    print(f"resident memory    {figures['rss_mb']:8.0f} MB")
    print(
        json.dumps(
            {name: round(value, 3) for name, value in (figures | {"first_ready_s": first_ready_s}).items()}
        )
    )
    return 0


def measure(
    client: httpx.Client,
    bundle: Bundle,
    catalogue: list[dict],
    places: list[np.ndarray],
    num_items: int,
    num_bulk: int,
) -> dict[str, float]:
    manifest = bundle.manifest
    ids = [[catalogue[place]["item_id"] for place in row] for row in places]
    histories = [np.array([[catalogue[place]["codes"] for place in row]]) for row in places]
    histories = [history[:, -manifest.history_length :] for history in histories]
    widths = beam_widths(manifest.sid, min(NUM_BEAMS, manifest.beam_limit))
    trie = SidTrie.from_codes(manifest.sid, np.array([row["codes"] for row in catalogue]))
    threads = max(1, (os.cpu_count() or 2) // 2)  # what the service gives each graph
    session = RecommenderSession(bundle.file(RECOMMENDER), manifest.recommender, threads=threads)
    graph = timed_ms(lambda n: session.run(histories[n], trie.tables, widths), len(ids))

    stages = Stages()
    recommend = timed_ms(
        lambda n: stages.take(client.post("/recommend", json={"history": ids[n], "limit": 10})), len(ids)
    )
    show("POST /recommend", recommend, stages, graph, "recommender.onnx alone")

    # Nothing of the catalogue is read twice: a number in the title makes each a new text of the same length.
    fresh = [
        {**catalogue[n % len(catalogue)]["item"], "item_id": f"bench-{n}"}
        for n in range(num_items + num_bulk)
    ]
    for n, item in enumerate(fresh):
        item["title"] = f"{item.get('title', '')} {n}"
    tokenizer = Tokenizer(bundle.file(TOKENIZER), manifest.tokenizer, threads=threads)
    strips = [render_text(item_text(item, manifest.render), manifest.render).strips for item in fresh]
    graph = timed_ms(lambda n: tokenizer.run([strips[n]]), num_items)
    stages = Stages()
    one_by_one = timed_ms(lambda n: stages.take(client.post("/items", json=fresh[n])), num_items)
    show("POST /items, one", one_by_one, stages, graph, "tokenizer.onnx alone")

    started = time.perf_counter()
    answer = client.post("/items", json={"items": fresh[num_items:]})
    bulk_s = time.perf_counter() - started
    failed = [row for row in answer.raise_for_status().json()["items"] if row["status"] == "failed"]
    if failed:
        raise GlyphrecError(f"{len(failed)} of {num_bulk} items failed: {failed[0]['error']['detail']}")
    started = time.perf_counter()
    for first in range(num_items, len(strips), 16):
        tokenizer.run(strips[first : first + 16])
    direct = num_bulk / (time.perf_counter() - started)
    per_item = np.mean([len(drawn) for drawn in strips])
    print(
        f"POST /items, bulk  {num_bulk / bulk_s:8.1f} items/s of {per_item:.1f} strips; "
        f"tokenizer.onnx alone {direct:.1f}"
    )
    return {
        "recommend_ms_p50": float(np.percentile(recommend, 50)),
        "recommend_ms_p99": float(np.percentile(recommend, 99)),
        "item_ms_p50": float(np.percentile(one_by_one, 50)),
        "item_ms_p99": float(np.percentile(one_by_one, 99)),
        "bulk_items_per_s": num_bulk / bulk_s,
        "tokenizer_items_per_s": direct,
    }


class Stages:
    """The service's own account of its time, from Server-Timing."""

    def __init__(self) -> None:
        self.ms: dict[str, list[float]] = defaultdict(list)

    def take(self, response: httpx.Response) -> None:
        response.raise_for_status()
        for name, duration in re.findall(r"(\w+);dur=([\d.]+)", response.headers["Server-Timing"]):
            self.ms[name].append(float(duration))


def show(what: str, total: np.ndarray, stages: Stages, graph: np.ndarray, graph_name: str) -> None:
    p50, p99 = np.percentile(total, [50, 99])
    print(
        f"{what:18} {p50:8.2f} ms p50, {p99:.2f} ms p99; {graph_name} {np.percentile(graph, 50):.2f} ms p50"
    )
    medians = {name: float(np.median(values)) for name, values in stages.ms.items() if name != "total"}
    for name, median in sorted(medians.items(), key=lambda row: -row[1]):
        print(f"    {name:14} {median:8.2f} ms  {median / p50:5.0%}")


def timed_ms(call: Callable[[int], object], count: int) -> np.ndarray:
    """Milliseconds of each of `count` calls but the first few, which warm up."""
    took = []
    for n in range(count):
        started = time.perf_counter()
        call(n)
        took.append((time.perf_counter() - started) * 1000)
    return np.array(took[min(5, count - 1) :])


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def newest_demo_bundle() -> Path:
    found = sorted(
        Path(".glyphrec/demo/bundles").glob("*/manifest.json"), key=lambda path: path.stat().st_mtime
    )
    if not found:
        raise GlyphrecError("there is no bundle yet. Run `make demo` once, or give --bundle FOLDER.")
    return found[-1].parent


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GlyphrecError as error:
        sys.exit(f"first.py: {error}")
