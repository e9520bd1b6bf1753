"""Half an hour at 70 % of saturation, with items coming and going: does memory grow, does p99 drift?

    python benchmarks/soak.py                         the newest bundle of the demo
    python benchmarks/soak.py --bundle FOLDER --minutes 30

The service of serving.py, 100,000 items. Beside the requests a client posts new items and deletes them half a
minute later. Each minute is one line. Baseline: the first third, after the minutes that warm up; the last
third is held against it, by medians. The last line is JSON.
"""

import argparse
import itertools
import json
import sys
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
from first import newest_demo_bundle, resident_mb
from load import send
from serving import CALLERS, NUM_ITEMS, OK, body_of, catalogue_of, full

from model_export.local_service import LocalService
from service.core.bundle import load_bundle

SHARE = 0.7
KEPT_S = 30.0  # that a posted item lives
WARM_UP_MINUTES = 3


class Minute(NamedTuple):
    p50_ms: float
    p99_ms: float
    refused_share: float
    num_failed: int  # neither answered nor refused
    memory_mb: float


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--rate", type=float, default=5, help="items a second that come, and that go")
    args = parser.parse_args()
    bundle = load_bundle(args.bundle or newest_demo_bundle())
    catalogue = catalogue_of(bundle, NUM_ITEMS)
    with tempfile.TemporaryDirectory() as name:
        body = body_of(catalogue, Path(name))
        with full(bundle, catalogue, Path(name)) as service:
            rate = SHARE * saturation(service, body)
            with items_that_come_and_go(service, catalogue, args.rate) as changes:
                minutes = []
                for number in range(args.minutes):
                    minutes.append(minute(service, body, rate))
                    print(number, *(f"{value:.3g}" for value in minutes[-1]), changes, flush=True)
    settled = minutes[min(WARM_UP_MINUTES, len(minutes) - 1) :]
    third = max(1, len(settled) // 3)
    first, last = settled[:third], settled[-third:]
    figures = {
        "minutes": args.minutes,
        "offered_rps": rate,
        "refused_share": float(np.mean([each.refused_share for each in minutes])),
        "failed": sum(each.num_failed for each in minutes),
        "changes": changes["put"] + changes["deleted"],
        "changes_refused": changes["refused"],
        "memory_mb": median(last, "memory_mb"),
        "memory_growth": median(last, "memory_mb") / median(first, "memory_mb") - 1,
        "p99_ms": median(last, "p99_ms"),
        "p99_drift": median(last, "p99_ms") / median(first, "p99_ms") - 1,
    }
    for key, value in figures.items():
        print(f"{key:18} {value:12,.4f}")
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))
    return 0


def saturation(service: LocalService, body: Path) -> float:
    loads = [send(f"{service.url}/recommend", body, callers=CALLERS, seconds=5) for _ in range(4)]
    return float(np.median([np.sum(each.status == OK) / each.took_s for each in loads[1:]]))


def minute(service: LocalService, body: Path, rate: float) -> Minute:
    answers = send(f"{service.url}/recommend", body, rate=rate, seconds=60)
    settled = answers.latency_ms[(answers.status == OK) & (answers.sent_at_s >= 1)]
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
    service: LocalService, catalogue: Sequence[dict[str, Any]], rate: float
) -> Iterator[dict[str, int]]:
    """-> how many were put, deleted and refused so far."""
    counts = {"put": 0, "deleted": 0, "refused": 0}
    is_over = threading.Event()

    def change() -> None:
        alive: deque[tuple[float, str]] = deque()
        with httpx.Client(base_url=service.url, timeout=60, trust_env=False) as client:
            for number in itertools.count():
                if is_over.wait(1 / rate):
                    return
                item_id = f"soak-{number}"
                item = catalogue[number % len(catalogue)]["item"]
                given = {**item, "item_id": item_id, "title": f"{item.get('title', '')} {number}"}
                count(client.post("/items", json=given), "put")
                alive.append((time.monotonic(), item_id))
                while time.monotonic() - alive[0][0] > KEPT_S:
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
    sys.exit(main())
