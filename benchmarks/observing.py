"""The cost of metrics for a recommendation and a scrape, and how well their buckets show a latency.

    python -m benchmarks.observing [--items 1000000] [--bundle FOLDER] [--rate 100]

Costs are those of the calls that POST /recommend makes, the best of five runs; the baseline is one increment
of a bare counter. With a bundle it also starts a service, asks it for recommendations from another process at
a steady rate, and compares the quantiles that Prometheus would compute from the buckets with those of the
answers. The last line is JSON.
"""

import itertools
import tempfile
import timeit
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from uuid import uuid4

import numpy as np
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import report
from benchmarks.serving import OK
from benchmarks.workload import bundles
from benchmarks.workload.catalog import write_body
from benchmarks.workload.load import send
from benchmarks.workload.processes import service_of
from service.catalog.catalog import Catalog
from service.catalog.follower import CatalogFollower, Lag
from service.core.bundle import load_bundle
from service.core.sid import Sid, SidSpec
from service.flows.served_pages import ServedPages
from service.store.items import TrieEntry
from service.telemetry.metrics import Metrics
from service.telemetry.stages import Stages

SPEC = SidSpec(levels=(256, 256, 256, 256))
ONE_PAGE = [f"B{n:09d}" for n in range(10)]
CALLS = 20_000
REPEATS = 5
REMEMBERED_PAGES = 100_000


def main(argv: Sequence[str]) -> int:
    parser = report.arguments(__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--rate", type=float, default=100, help="recommendations a second")
    parser.add_argument("--seconds", type=float, default=20)
    args = parser.parse_args(argv)
    figures, baseline = costs(num_pages=2_000 if args.tiny else 300_000, calls=100 if args.tiny else CALLS)
    figures |= scrape(1_000 if args.tiny else args.items)
    if args.bundle:
        figures |= buckets(args.bundle, args.rate, args.seconds)
    report.finish("observing", argv, figures, baseline)
    return 0


def costs(*, num_pages: int, calls: int) -> tuple[dict[str, float], dict[str, float]]:
    """Figures and baseline, by name."""
    metrics, pages, stages = Metrics(), ServedPages(REMEMBERED_PAGES, 1_800), Stages()
    stages.flow = "recommend"
    stages.seconds = {
        "parse": 5e-5,
        "queue": 5e-4,
        "history": 5e-5,
        "decode": 1.5e-3,
        "resolve": 2e-4,
        "write": 1e-4,
    }
    request_ids = [uuid4().hex for _ in range(num_pages)]
    upcoming = itertools.cycle(request_ids)
    counter = Counter("bare", "Baseline.", registry=CollectorRegistry())
    baseline_us = _microseconds(counter.inc, calls)
    work: dict[str, Callable[[], object]] = {
        "its six stages": lambda: metrics.observe_stages(stages),
        "its answer": lambda: metrics.observe_http("/recommend", "POST", 200, 2e-3),
        "its kind": lambda: metrics.observe_recommendation("model", exact=True, filtered=False),
        "its search": lambda: metrics.observe_searches([50]),
        "its ten items": lambda: metrics.observe_recommended(ONE_PAGE, 9),
        "its page, for POST /events": lambda: pages.remember(
            next(upcoming), "0123456789ab", ONE_PAGE, ONE_PAGE[-5:]
        ),
    }
    took_us = {name: _microseconds(call, calls) for name, call in work.items()}
    found = {"recommendation_us": sum(took_us.values())}
    rows = [("one increment of a bare counter", f"{baseline_us:.2f}")]
    rows += [(name, f"{microseconds:.2f}") for name, microseconds in took_us.items()]
    report.table(("of a recommendation", "us"), [*rows, ("together", f"{found['recommendation_us']:.2f}")])

    tracemalloc.start()
    pages = ServedPages(REMEMBERED_PAGES, 1_800)
    for _ in range(num_pages):
        # It keeps the request id and the ids of the history, too, which came with the request.
        history = [f"{item_id}."[:-1] for item_id in ONE_PAGE[-5:]]
        pages.remember(uuid4().hex, "0123456789ab", ONE_PAGE, history)
    found["page_bytes"] = tracemalloc.get_traced_memory()[0] / pages.num_pages
    tracemalloc.stop()
    print(f"{found['page_bytes']:.0f} bytes a remembered page")
    return found, {"baseline_us": baseline_us}


def scrape(num_items: int) -> dict[str, float]:
    """The event loop's time for one, with tables that have changed since the last one and with the same."""
    rng = np.random.default_rng(0)
    codes = zip(*(rng.integers(0, num_codes, num_items).tolist() for num_codes in SPEC.levels), strict=True)
    entries = [TrieEntry(f"B{n:09d}", Sid(each, 0)) for n, each in enumerate(codes)]
    catalog, metrics = Catalog.from_entries(SPEC, entries), Metrics()
    follower = SimpleNamespace(stale_for_s=0.0, lag=Lag(0, 0.0), num_unreadable=0)
    metrics.watch_catalog(catalog, cast(CatalogFollower, follower))

    def changed() -> None:
        catalog.version += 1
        generate_latest(metrics.registry)

    changed_ms = min(timeit.repeat(changed, number=1, repeat=REPEATS)) * 1e3
    same_ms = min(timeit.repeat(lambda: generate_latest(metrics.registry), number=1, repeat=REPEATS)) * 1e3
    print(f"a scrape of {num_items:,} items {changed_ms:.1f} ms, {same_ms:.1f} ms where nothing has changed")
    return {"scrape_changed_ms": changed_ms, "scrape_same_ms": same_ms}


def buckets(path: Path, rate: float, seconds: float) -> dict[str, float]:
    bundle = load_bundle(path)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        body = write_body(bundles.catalog_of(bundle), folder)
        with service_of(bundle, folder) as service:
            answers = send(f"{service.url}/recommend", body, rate=rate, seconds=seconds)
            text = service.client.get("/metrics").text
    buckets_told = [
        (float(sample.labels["le"]), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "glyphrec_http_request_seconds_bucket"
        and (sample.labels["route"], sample.labels["outcome"]) == ("/recommend", "answered")
    ]
    found = {}
    for percent in (50, 99):
        true_ms = float(np.percentile(answers.latency_ms[answers.status == OK], percent))
        found[f"p{percent}_ms"], found[f"p{percent}_told_ms"] = (
            true_ms,
            1e3 * _quantile(buckets_told, percent / 100),
        )
        print(f"p{percent} {true_ms:7.2f} ms seen from outside, {found[f'p{percent}_told_ms']:.2f} ms told")
    return found


def _quantile(told: list[tuple[float, float]], q: float) -> float:
    """As Prometheus' histogram_quantile: linear within the bucket."""
    goal, below, from_s = q * told[-1][1], 0.0, 0.0
    for up_to_s, count in told:
        if count >= goal and up_to_s != float("inf"):
            return from_s + (up_to_s - from_s) * (goal - below) / (count - below)
        below, from_s = count, up_to_s
    return from_s


def _microseconds(call: Callable[[], object], calls: int) -> float:
    return min(timeit.repeat(call, number=calls, repeat=REPEATS)) / calls * 1e6


if __name__ == "__main__":
    report.run(main)
