"""Ten times more requests than can be answered: how those fare that are taken, and what the others are told.

POST /recommend comes from many connections, each at its own steady rate; load.py says how. First the capacity
is measured, by connections that only wait for their answers; then a tenth of it is offered, and then ten
times as much.

  python benchmarks/overload.py                     the newest bundle of the demo
  python benchmarks/overload.py --bundle folder

The accepted are to stay within `limit_p99_ms`: twice the unloaded p99, and the wait for a batch that the
service allows (GLYPHREC_MAX_WAIT_MS). Baseline: the same service without load. Latencies count from one
second on, when all connections are there. The last line is JSON.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from first import newest_demo_bundle, resident_mb
from load import Answers, body_of, send

from model_export.local_service import LocalService, local_service
from service.core.bundle import ITEMS, load_bundle
from service.settings import Settings

CLOSED_CALLERS = 32  # a full batch
SETTLE_S = 1.0
ACCEPTED, REFUSED = 200, (429, 503)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--seconds", type=int, default=10, help="of each of the three loads")
    parser.add_argument("--times", type=float, default=10, help="how many times the capacity is offered")
    parser.add_argument("--limit", type=int, default=10, help="items of a page")
    args = parser.parse_args()
    bundle = load_bundle(args.bundle or newest_demo_bundle())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with local_service(bundle.path, data_dir=folder / "redis", log=folder / "log") as service:
            figures = measure(service, bundle.file(ITEMS), folder, args)
    for key, value in figures.items():
        print(f"{key:22} {value:12,.3f}")
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))
    return 0


def measure(service: LocalService, items: Path, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    body = body_of(items, folder, limit=args.limit)

    def load(rate: float = 0) -> Answers:
        callers = 0 if rate else CLOSED_CALLERS
        return send(f"{service.url}/recommend", body, callers=callers, rate=rate, seconds=args.seconds)

    load()  # warms everything up
    closed = load()
    capacity = np.sum(closed.status == ACCEPTED) / closed.took_s
    unloaded = load(capacity / 10)
    before_mb = resident_mb(service.process.pid)
    overloaded = load(capacity * args.times)
    after_mb = resident_mb(service.process.pid)
    is_accepted, is_refused = overloaded.status == ACCEPTED, np.isin(overloaded.status, REFUSED)
    has_settled = overloaded.sent_at_s >= SETTLE_S
    accepted = overloaded.latency_ms[is_accepted & has_settled]
    refused = overloaded.latency_ms[is_refused & has_settled]
    unloaded_p99 = float(np.percentile(unloaded.latency_ms[unloaded.status == ACCEPTED], 99))
    return {
        "capacity_rps": capacity,
        "offered_rps": len(overloaded.status) / overloaded.took_s,
        "accepted_rps": np.sum(is_accepted) / overloaded.took_s,
        "unloaded_p50_ms": float(np.percentile(unloaded.latency_ms, 50)),
        "unloaded_p99_ms": unloaded_p99,
        "overloaded_p50_ms": float(np.percentile(accepted, 50)),
        "overloaded_p99_ms": float(np.percentile(accepted, 99)),
        "limit_p99_ms": 2 * unloaded_p99 + Settings.model_fields["max_wait_ms"].default,
        "rejected_share": np.mean(is_refused),
        "reject_p50_ms": float(np.percentile(refused, 50)) if len(refused) else 0.0,
        "reject_p99_ms": float(np.percentile(refused, 99)) if len(refused) else 0.0,
        "failed": float(np.sum(~is_accepted & ~is_refused)),
        "memory_growth": after_mb / before_mb - 1,
    }


if __name__ == "__main__":
    sys.exit(main())
