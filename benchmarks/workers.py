"""What more workers give and cost on this machine: answers a second, processor time and memory.

    python -m benchmarks.workers                      the newest bundle of the demo
    python -m benchmarks.workers --bundle FOLDER --most 4

The same load comes to a service with 1, 2, 4, … workers: connections that only wait for their answers. The
client runs on the same machine, so on few processors it competes with the workers. The baseline is one
worker. The last line is JSON:

  saturation_2_workers_rps   answers a second of two workers
  gain_2_workers_ratio       that, over those of one worker
  worker_mb                  memory of one more worker
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import report
from benchmarks.serving import CALLERS, OK
from benchmarks.workload import bundles
from benchmarks.workload.catalog import enlarged, service_with, write_body
from benchmarks.workload.load import require_h2load, send
from benchmarks.workload.processes import children, cpu_seconds, resident_mb
from service.core.cpus import usable_cpus

NUM_ITEMS = 100_000
REPEATS = 3


class Found(NamedTuple):
    workers: int
    saturation_rps: float
    p50_ms: float  # of one caller
    cpu_s_per_1000: float  # of all workers together
    memory_mb: float  # of all workers together


def main(argv: Sequence[str]) -> int:
    parser = report.arguments(__doc__)
    bundles.add_argument(parser)
    parser.add_argument("--seconds", type=int, default=10, help="of each load")
    parser.add_argument("--items", type=int, default=NUM_ITEMS)
    parser.add_argument("--most", type=int, default=usable_cpus().num_threads, help="workers")
    args = parser.parse_args(argv)
    require_h2load()
    seconds, num_items = (1, 300) if args.tiny else (args.seconds, args.items)
    most = min(args.most, 2) if args.tiny else args.most
    found = []
    with tempfile.TemporaryDirectory() as name:
        bundle = bundles.chosen(args, Path(name))
        catalog = enlarged(bundle, num_items)
        for workers in [2**n for n in range(most.bit_length()) if 2**n <= most]:
            folder = Path(name) / str(workers)
            folder.mkdir()
            body = write_body(catalog, folder)
            with service_with(bundle, catalog, folder, {"GLYPHREC_WORKERS": str(workers)}) as service:
                pids = children(service.process.pid) if workers > 1 else [service.process.pid]
                found.append(measure(f"{service.url}/recommend", body, pids, seconds, workers))
    one = found[0]
    rows = [
        (
            str(each.workers),
            f"{each.saturation_rps:.0f}",
            f"{each.saturation_rps / one.saturation_rps:.2f}",
            f"{each.p50_ms:.2f}",
            f"{each.cpu_s_per_1000:.2f}",
            f"{each.memory_mb:.0f}",
        )
        for each in found
    ]
    report.table(("workers", "answered/s", "gain", "p50 ms", "CPU s/1,000", "MB"), rows)
    figures: dict[str, float] = {}
    for each in found[1:]:
        figures |= {
            f"saturation_{each.workers}_workers_rps": each.saturation_rps,
            f"gain_{each.workers}_workers_ratio": each.saturation_rps / one.saturation_rps,
            "worker_mb": (each.memory_mb - one.memory_mb) / (each.workers - 1),
        }
    baseline = {"saturation_1_worker_rps": one.saturation_rps, "memory_1_worker_mb": one.memory_mb}
    report.finish("workers", argv, figures, baseline, shown=False)
    return 0


def measure(url: str, body: Path, pids: Sequence[int], seconds: int, workers: int) -> Found:
    send(url, body, callers=CALLERS, seconds=2)  # warms everything up
    alone = send(url, body, callers=1, seconds=seconds).latency_ms
    spent_s = -sum(map(cpu_seconds, pids))
    loads = [send(url, body, callers=CALLERS * workers, seconds=seconds) for _ in range(REPEATS)]
    spent_s += sum(map(cpu_seconds, pids))
    num_answers = [int(np.sum(each.status == OK)) for each in loads]
    rates = [num / each.took_s for num, each in zip(num_answers, loads, strict=True)]
    return Found(
        workers,
        float(np.median(rates)),
        float(np.median(alone)),
        1_000 * spent_s / sum(num_answers),
        sum(map(resident_mb, pids)),
    )


if __name__ == "__main__":
    report.run(main)
