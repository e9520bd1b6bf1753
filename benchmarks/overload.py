"""Ten times more requests than the capacity: how the accepted ones fare, and how the others are refused.

POST /recommend comes from many connections, each at its own steady rate; workload/load.py says how. First the
capacity is measured, by connections that only wait for their answers; then a tenth of it is offered, and then
ten times as much.

    python -m benchmarks.overload                     the newest bundle of the demo
    python -m benchmarks.overload --bundle FOLDER

The accepted are to stay within `limit_p99_ms`: four times the unloaded p99, and the wait for a batch that the
service allows (GLYPHREC_MAX_WAIT_MS). The baseline is the same service without load. Latencies count from one
second on, when all connections are there. The load generator runs on the same processors: `generator_cpus` is
what it used of them, and what the service lacked. The last line is JSON; `goodput_share` is the share of the
capacity that was answered.
"""

import resource
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import report
from benchmarks.serving import OK, settle_s
from benchmarks.workload import bundles
from benchmarks.workload.catalog import LIMIT, write_body
from benchmarks.workload.load import Answers, require_h2load, send
from benchmarks.workload.processes import resident_mb, service_of
from model_export.local_service import LocalService
from service.settings import Settings

CLOSED_CALLERS = 32  # a full batch
REFUSED = (429, 503)


def main(argv: Sequence[str]) -> int:
    parser = report.arguments(__doc__)
    bundles.add_argument(parser)
    parser.add_argument("--seconds", type=int, default=10, help="of each of the three loads")
    parser.add_argument("--times", type=float, default=10, help="how many times the capacity is offered")
    parser.add_argument("--limit", type=int, default=LIMIT, help="items of a page")
    args = parser.parse_args(argv)
    require_h2load()
    seconds = 1 if args.tiny else args.seconds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = bundles.chosen(args, folder)
        body = write_body(bundles.catalog_of(bundle), folder, args.limit)
        with service_of(bundle, folder) as service:
            figures, baseline = measure(service, body, seconds, args.times)
    report.finish("overload", argv, {"times": args.times} | figures, baseline, shown=False)
    return 0


def measure(
    service: LocalService, body: Path, seconds: int, times: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Figures and baseline, by name."""

    def load(rate: float = 0) -> Answers:
        callers = 0 if rate else CLOSED_CALLERS
        return send(f"{service.url}/recommend", body, callers=callers, rate=rate, seconds=seconds)

    load()  # warms everything up
    closed = load()
    capacity = float(np.sum(closed.status == OK) / closed.took_s)
    unloaded = load(capacity / 10)
    before_mb = resident_mb(service.process.pid)
    generator_s = -generator_seconds()
    overloaded = load(capacity * times)
    generator_s += generator_seconds()
    after_mb = resident_mb(service.process.pid)
    is_accepted, is_refused = overloaded.status == OK, np.isin(overloaded.status, REFUSED)
    has_settled = overloaded.sent_at_s >= settle_s(seconds)
    accepted = overloaded.latency_ms[is_accepted & has_settled]
    refused = overloaded.latency_ms[is_refused & has_settled]
    baseline = {
        "capacity_rps": capacity,
        "unloaded_p50_ms": float(np.percentile(unloaded.latency_ms, 50)),
        "unloaded_p99_ms": float(np.percentile(unloaded.latency_ms[unloaded.status == OK], 99)),
        "limit_p99_ms": float(
            4 * np.percentile(unloaded.latency_ms[unloaded.status == OK], 99)
            + Settings.model_fields["max_wait_ms"].default
        ),
    }
    figures = {
        "offered_rps": len(overloaded.status) / overloaded.took_s,
        "accepted_rps": float(np.sum(is_accepted) / overloaded.took_s),
        "goodput_share": float(np.sum(is_accepted) / overloaded.took_s / capacity),
        "generator_cpus": generator_s / overloaded.took_s,
        "overloaded_p50_ms": float(np.percentile(accepted, 50)),
        "overloaded_p99_ms": float(np.percentile(accepted, 99)),
        "rejected_share": float(np.mean(is_refused)),
        "reject_p50_ms": float(np.percentile(refused, 50)) if len(refused) else 0.0,
        "reject_p99_ms": float(np.percentile(refused, 99)) if len(refused) else 0.0,
        "failed": int(np.sum(~is_accepted & ~is_refused)),
        "memory_growth": after_mb / before_mb - 1,
    }
    return figures, baseline


def generator_seconds() -> float:
    """Processor time of the load generators that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    report.run(main)
