"""First timings of a served bundle: start-up, memory, POST /recommend, POST /items one by one and in bulk.

    python -m benchmarks.first [--bundle FOLDER]        by default the newest bundle that `make demo` made

Starts a service of its own on an embedded Redis that is thrown away, and speaks to it over one connection.
The baseline is the exported graph called directly in this process, on the same inputs. The last line is JSON.
"""

import os
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.timing import Times, each_ms
from benchmarks.workload import bundles
from benchmarks.workload.processes import resident_mb, service_of
from service.core.bundle import RECOMMENDER, TOKENIZER, Bundle
from service.core.graphs import beam_widths
from service.core.render import item_text, render_text
from service.core.trie import SidTrie
from service.errors import GlyphrecError
from service.inference.runtime import RecommenderSession, Tokenizer, TokenizerInput
from service.settings import default_threads

HISTORY = 20
NUM_BEAMS = 50
WARM_UP = 5


def main(argv: Sequence[str]) -> int:
    parser = report.arguments(__doc__)
    bundles.add_argument(parser)
    parser.add_argument("--requests", type=int, default=1_000, help="POST /recommend")
    parser.add_argument("--items", type=int, default=100, help="POST /items one by one")
    parser.add_argument("--bulk", type=int, default=400, help="items in the bulk request")
    args = parser.parse_args(argv)
    num_requests, num_items, num_bulk = (20, 10, 20) if args.tiny else (args.requests, args.items, args.bulk)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = bundles.chosen(args, folder)
        catalog = bundles.catalog_of(bundle)
        rng = np.random.default_rng(0)
        places = [rng.choice(len(catalog), HISTORY, replace=False) for _ in range(num_requests)]
        print(
            f"{bundle.path.name}: {len(catalog):,} items, {os.cpu_count()} cores, "
            f"history {HISTORY}, {NUM_BEAMS} beams"
        )
        with service_of(bundle, folder) as service:
            figures = {"first_ready_s": service.ready_s}
            measured, baseline = measure(service.client, bundle, catalog, places, num_items, num_bulk)
            figures |= measured | {"rss_mb": resident_mb(service.process.pid)}
        # Once more on the Redis that now holds the catalog: the start that operations see.
        with service_of(bundle, folder) as service:
            figures["ready_s"] = service.ready_s
    report.finish("first", argv, figures, baseline, shown=False)
    return 0


def measure(
    client: httpx.Client,
    bundle: Bundle,
    catalog: list[dict[str, Any]],
    places: list[NDArray[np.int64]],
    num_items: int,
    num_bulk: int,
) -> tuple[dict[str, float], dict[str, float]]:
    """Figures and baseline, by name."""
    manifest = bundle.manifest
    ids = [[catalog[place]["item_id"] for place in row] for row in places]
    histories = [np.array([[catalog[place]["codes"] for place in row]]) for row in places]
    histories = [history[:, -manifest.history_length :] for history in histories]
    widths = beam_widths(manifest.sid, min(NUM_BEAMS, manifest.beam_limit))
    trie = SidTrie.from_codes(manifest.sid, np.array([row["codes"] for row in catalog]))
    threads = default_threads()
    session = RecommenderSession(bundle.file(RECOMMENDER), manifest.recommender, threads=threads)
    graph_ms = each_ms(lambda n: session.run(histories[n], trie.tables, widths), len(ids), warm_up=WARM_UP)

    stages = Stages()
    recommend = each_ms(
        lambda n: stages.take(client.post("/recommend", json={"history": ids[n], "limit": 10})),
        len(ids),
        warm_up=WARM_UP,
    )
    show("POST /recommend", recommend, stages, graph_ms, "recommender.onnx alone")

    # Nothing of the catalog is read twice: a number in the title makes each a new text of the same length.
    fresh = [
        {**catalog[n % len(catalog)]["item"], "item_id": f"bench-{n}"} for n in range(num_items + num_bulk)
    ]
    for n, item in enumerate(fresh):
        item["title"] = f"{item.get('title', '')} {n}"
    tokenizer = Tokenizer(bundle.file(TOKENIZER), manifest.tokenizer, threads=threads)
    drawn = [render_text(item_text(item, manifest.render), manifest.render) for item in fresh]
    inputs = [TokenizerInput(each.strips) for each in drawn]
    tokenizer_ms = each_ms(lambda n: tokenizer.run([inputs[n]]), num_items, warm_up=WARM_UP)
    item_stages = Stages()
    one_by_one = each_ms(
        lambda n: item_stages.take(client.post("/items", json=fresh[n])), num_items, warm_up=WARM_UP
    )
    show("POST /items, one", one_by_one, item_stages, tokenizer_ms, "tokenizer.onnx alone")

    started = time.perf_counter()
    answer = client.post("/items", json={"items": fresh[num_items:]})
    bulk_s = time.perf_counter() - started
    failed = [row for row in answer.raise_for_status().json()["items"] if row["status"] == "failed"]
    if failed:
        raise GlyphrecError(f"{len(failed)} of {num_bulk} items failed: {failed[0]['error']['detail']}")
    started = time.perf_counter()
    for first in range(num_items, len(inputs), 16):
        tokenizer.run(inputs[first : first + 16])
    direct = num_bulk / (time.perf_counter() - started)
    per_item = np.mean([len(each.strips) for each in drawn])
    print(
        f"POST /items, bulk  {num_bulk / bulk_s:8.1f} items/s of {per_item:.1f} strips; "
        f"tokenizer.onnx alone {direct:.1f}"
    )
    figures = {
        "recommend_ms_p50": float(np.percentile(recommend, 50)),
        "recommend_ms_p99": float(np.percentile(recommend, 99)),
        "item_ms_p50": float(np.percentile(one_by_one, 50)),
        "item_ms_p99": float(np.percentile(one_by_one, 99)),
        "bulk_items_per_s": num_bulk / bulk_s,
    }
    baseline = {
        "recommender_graph_ms_p50": float(np.median(graph_ms)),
        "tokenizer_graph_ms_p50": float(np.median(tokenizer_ms)),
        "tokenizer_items_per_s": direct,
    }
    return figures, baseline


class Stages:
    """The service's own account of its time, from Server-Timing."""

    def __init__(self) -> None:
        self.ms: dict[str, list[float]] = defaultdict(list)

    def take(self, response: httpx.Response) -> None:
        response.raise_for_status()
        for name, duration in re.findall(r"(\w+);dur=([\d.]+)", response.headers["Server-Timing"]):
            self.ms[name].append(float(duration))


def show(what: str, total: Times, stages: Stages, graph: Times, graph_name: str) -> None:
    p50, p99 = np.percentile(total, [50, 99])
    print(
        f"{what:18} {p50:8.2f} ms p50, {p99:.2f} ms p99; {graph_name} {np.percentile(graph, 50):.2f} ms p50"
    )
    medians = {name: float(np.median(values)) for name, values in stages.ms.items() if name != "total"}
    for name, median in sorted(medians.items(), key=lambda row: -row[1]):
        print(f"    {name:14} {median:8.2f} ms  {median / p50:5.0%}")


if __name__ == "__main__":
    report.run(main)
