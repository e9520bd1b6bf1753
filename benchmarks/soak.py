"""Half an hour at 70 % of saturation, with items coming and going: does memory grow, does p99 drift?

    python -m benchmarks.soak                         the newest bundle of the demo
    python -m benchmarks.soak --bundle FOLDER --minutes 30

The service of serving.py, 100,000 items. Beside the requests a client posts new items and deletes them half a
minute later. Each minute is one line. The baseline is the first third, after the minutes that warm up; the
last third is compared with it, by medians. The last line is JSON. With --tiny a minute has two seconds.
"""

import itertools
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np

from benchmarks import report
from benchmarks.serving import CALLERS, NUM_ITEMS, OK, settle_s
from benchmarks.workload import bundles
from benchmarks.workload.catalog import enlarged, service_with, write_body
from benchmarks.workload.load import require_h2load, send
from benchmarks.workload.processes import resident_mb
from model_export.local_service import LocalService

SHARE = 0.7
KEPT_S = 30.0  # that a posted item lives
WARM_UP_MINUTES = 3
MINUTE_S, TINY_MINUTE_S = 60.0, 2.0
TINY_ITEMS, TINY_MINUTES = 300, 2


class Minute(NamedTuple):
    p50_ms: float
    p99_ms: float
    refused_share: float
    num_failed: int  # neither answered nor refused
    memory_mb: float


def main(argv: Sequence[str]) -> int:
    parser = report.arguments(__doc__)
    bundles.add_argument(parser)
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--rate", type=float, default=5, help="items a second that come, and that go")
    args = parser.parse_args(argv)
    require_h2load()
    num_items, num_minutes = (TINY_ITEMS, TINY_MINUTES) if args.tiny else (NUM_ITEMS, args.minutes)
    minute_s = TINY_MINUTE_S if args.tiny else MINUTE_S
    minutes = []
    with tempfile.TemporaryDirectory() as name:
        bundle = bundles.chosen(args, Path(name))
        catalog = enlarged(bundle, num_items)
        body = write_body(catalog, Path(name))
        with service_with(bundle, catalog, Path(name)) as service:
            rate = SHARE * saturation(service, body, seconds=minute_s / 12)
            with items_that_come_and_go(service, catalog, args.rate, KEPT_S * minute_s / MINUTE_S) as changes:
                for number in range(num_minutes):
                    minutes.append(minute(service, body, rate, minute_s))
                    print(number, *(f"{value:.3g}" for value in minutes[-1]), changes, flush=True)
    settled = minutes[min(WARM_UP_MINUTES, len(minutes) - 1) :]
    third = max(1, len(settled) // 3)
    first, last = settled[:third], settled[-third:]
    baseline = {"first_memory_mb": median(first, "memory_mb"), "first_p99_ms": median(first, "p99_ms")}
    figures = {
        "minutes": num_minutes,
        "offered_rps": rate,
        "refused_share": float(np.mean([each.refused_share for each in minutes])),
        "failed": sum(each.num_failed for each in minutes),
        "changes": changes["put"] + changes["deleted"],
        "changes_refused": changes["refused"],
        "memory_mb": median(last, "memory_mb"),
        "memory_growth": median(last, "memory_mb") / baseline["first_memory_mb"] - 1,
        "p99_ms": median(last, "p99_ms"),
        "p99_drift": median(last, "p99_ms") / baseline["first_p99_ms"] - 1,
    }
    report.finish("soak", argv, figures, baseline, shown=False)
    return 0


def saturation(service: LocalService, body: Path, seconds: float) -> float:
    loads = [send(f"{service.url}/recommend", body, callers=CALLERS, seconds=seconds) for _ in range(4)]
    return float(np.median([np.sum(each.status == OK) / each.took_s for each in loads[1:]]))


def minute(service: LocalService, body: Path, rate: float, seconds: float) -> Minute:
    answers = send(f"{service.url}/recommend", body, rate=rate, seconds=seconds)
    settled = answers.latency_ms[(answers.status == OK) & (answers.sent_at_s >= settle_s(seconds))]
    is_refused = np.isin(answers.status, (429, 503))
    return Minute(
        p50_ms=float(np.percentile(settled, 50)),
        p99_ms=float(np.percentile(settled, 99)),
        refused_share=float(np.mean(is_refused)),
        num_failed=int(np.sum((answers.status != OK) & ~is_refused)),
        memory_mb=resident_mb(service.process.pid),
    )


@contextmanager
def items_that_come_and_go(
    service: LocalService, catalog: Sequence[dict[str, Any]], rate: float, kept_s: float
) -> Iterator[dict[str, int]]:
    """How many were put, deleted and refused so far. An item lives `kept_s` seconds."""
    counts = {"put": 0, "deleted": 0, "refused": 0}
    is_over = threading.Event()

    def change() -> None:
        alive: deque[tuple[float, str]] = deque()
        with httpx.Client(base_url=service.url, timeout=60, trust_env=False) as client:
            for number in itertools.count():
                if is_over.wait(1 / rate):
                    return
                item_id = f"soak-{number}"
                item = catalog[number % len(catalog)]["item"]
                given = {**item, "item_id": item_id, "title": f"{item.get('title', '')} {number}"}
                count(client.post("/items", json=given), "put")
                alive.append((time.monotonic(), item_id))
                while time.monotonic() - alive[0][0] > kept_s:
                    count(client.delete(f"/items/{alive.popleft()[1]}"), "deleted")

    def count(answer: httpx.Response, what: str) -> None:
        counts[what if answer.is_success else "refused"] += 1

    thread = threading.Thread(target=change, daemon=True)
    thread.start()
    try:
        yield counts
    finally:
        is_over.set()
        thread.join(60)


def median(minutes: Sequence[Minute], what: str) -> float:
    return float(np.median([getattr(each, what) for each in minutes]))


if __name__ == "__main__":
    report.run(main)
