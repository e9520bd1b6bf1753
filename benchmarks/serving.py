"""The cost of HTTP, JSON, batching and Redis around the graphs: latency against load, up to overload.

    python -m benchmarks.serving                      the newest bundle of the demo
    python -m benchmarks.serving --bundle FOLDER --plot docs/latency.svg

A service of its own with 100,000 items, histories of 20 items, 50 beams. Requests come from another process,
at a rate that does not wait for answers (workload/load.py). Baselines in the same run: both graphs called in
a loop, with as many threads as the service gives them; a bare FastAPI route that returns a canned answer
(peers/bare.py) and a protocol without a framework (peers/floor.py); a two-tower recommender with exact search
and with HNSW (peers/two_tower.py). The last line is JSON:

  overhead_ms_p50         one caller: the median over HTTP less that of the graph
  saturation_share        answers a second at saturation / answers a second of the graph in its best batches
  python_us_per_request   processor time of a request at saturation, less that of the graph in its batches;
                          printed by stage. The baseline `floor_us` is a bare protocol (peers/floor.py)
  p99_ratio_at_70pct      at 70 % of saturation: p99 / the median of one caller
  ingest_share            items a second in bulk / items a second of the tokenizer in its best batches
  ready_s_100k            from the start of the process to ready, with a full Redis
  p99_rise_while_ingesting  of /recommend at 30 % of saturation, with `glyphrec import --rate` beside it
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np

from benchmarks import report
from benchmarks.peers import two_tower
from benchmarks.timing import median_ms
from benchmarks.workload import bundles
from benchmarks.workload.catalog import HISTORY, JSON, enlarged, service_with, write_body
from benchmarks.workload.ingest import Load, ingest
from benchmarks.workload.load import require_h2load, send
from benchmarks.workload.processes import cpu_seconds
from benchmarks.workload.python_cost import Work, stages_us, work_so_far
from model_export.local_service import LocalService, free_port
from service.core.bundle import RECOMMENDER, Bundle
from service.core.graphs import beam_widths
from service.core.trie import SidTrie
from service.errors import GlyphrecError
from service.inference.runtime import RecommenderSession
from service.settings import default_threads

NUM_ITEMS = 100_000
NUM_BEAMS = 50
CALLERS = 32  # that only wait for their answers: saturation
SHARES = (0.1, 0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
OK = 200
SETTLE_S = 1.0


class Point(NamedTuple):
    """One load. The percentiles are of the answered requests, from `SETTLE_S` on."""

    offered_rps: float
    answered_rps: float
    refused_share: float
    p50_ms: float
    p99_ms: float


class Scale(NamedTuple):
    """How long and how much."""

    items: int
    new_items: int
    seconds: int  # of each load
    repeats: int  # of what is called in a loop
    shares: tuple[float, ...]  # of saturation
    turns: int  # with and without an import


TINY = Scale(items=300, new_items=20, seconds=1, repeats=3, shares=(0.3, 0.7), turns=1)


def main(argv: Sequence[str]) -> int:
    parser = report.arguments(__doc__)
    bundles.add_argument(parser)
    parser.add_argument("--seconds", type=int, default=10, help="of each load")
    parser.add_argument("--items", type=int, default=NUM_ITEMS)
    parser.add_argument("--new-items", type=int, default=1_000, help="that are read in bulk")
    parser.add_argument("--rate", type=float, default=10, help="items a second of an import beside a load")
    parser.add_argument("--plot", type=Path, help="draw latency against load there")
    args = parser.parse_args(argv)
    require_h2load()
    scale = TINY if args.tiny else Scale(args.items, args.new_items, args.seconds, 50, SHARES, turns=3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = bundles.chosen(args, folder)
        catalog = enlarged(bundle, scale.items)
        body = write_body(catalog, folder)
        baseline = graph_alone(bundle, catalog, scale.repeats)
        with service_with(bundle, catalog, folder) as service:
            points, figures, work = recommend(service, body, scale, baseline)
            figures["ready_s_100k"] = service.ready_s

            def p99_ms(share: float) -> float:
                return point_at(service, body, share * figures["saturation_rps"], scale.seconds).p99_ms

            load = Load(p99_ms, scale.seconds, args.rate, scale.turns)
            of_ingest, its_baseline = ingest(service, bundle, catalog, folder, scale.new_items, load)
            answer = service.client.post("/recommend", content=body.read_bytes(), headers=JSON).content
        baseline |= its_baseline | bare(answer, body, folder, scale.seconds)
        num_beams = min(NUM_BEAMS, bundle.manifest.beam_limit)
        stages = stages_us(bundle, catalog, body, max(1, round(work.batch)), num_beams)
    figures["python_us_per_request"] = 1_000 * figures["cpu_s_per_1000"] - work.graph_us
    baseline["graph_us_per_request"] = work.graph_us
    stages["HTTP, event loop, queue, metrics"] = figures["python_us_per_request"] - sum(stages.values())
    for search, found in two_tower.measure(scale.items, HISTORY, scale.repeats).items():
        baseline |= {f"two_tower_{search}_{key}": value for key, value in found._asdict().items()}
    show(points)
    report.table(("Python in a request", "µs"), [(name, f"{us:.1f}") for name, us in stages.items()])
    if args.plot:
        plot(points, baseline["graph_p50_ms"], figures["saturation_rps"], args.plot)
    report.finish("serving", argv, figures | of_ingest, baseline, shown=False)
    return 0


# --- what is measured ---


def graph_alone(bundle: Bundle, catalog: Sequence[dict[str, Any]], repeats: int) -> dict[str, float]:
    """Called in a loop, with as many threads as the service gives it."""
    manifest = bundle.manifest
    session = RecommenderSession(bundle.file(RECOMMENDER), manifest.recommender, threads=default_threads())
    codes = np.array([row["codes"] for row in catalog])
    tables = SidTrie.from_codes(manifest.sid, codes).tables
    widths = beam_widths(manifest.sid, min(NUM_BEAMS, manifest.beam_limit))
    rng = np.random.default_rng(0)

    def batch_ms(batch: int) -> float:
        histories = codes[rng.integers(len(codes), size=(batch, HISTORY))][:, -manifest.history_length :]
        return median_ms(lambda: session.run(histories, tables, widths), repeats)

    took_ms = {batch: batch_ms(batch) for batch in BATCHES}
    best = max(took_ms, key=lambda batch: batch / took_ms[batch])
    return {
        "graph_p50_ms": took_ms[1],
        "graph_best_rps": 1_000 * best / took_ms[best],
        "graph_best_batch": best,
    }


def recommend(
    service: LocalService, body: Path, scale: Scale, baseline: dict[str, float]
) -> tuple[list[Point], dict[str, float], Work]:
    """Latency at each load, figures, and what the recommender did at saturation."""
    url = f"{service.url}/recommend"
    send(url, body, callers=CALLERS, seconds=2)  # warms everything up
    alone = send(url, body, callers=1, seconds=scale.seconds).latency_ms
    before, spent_s = work_so_far(service), -cpu_seconds(service.process.pid)
    saturated = [send(url, body, callers=CALLERS, seconds=scale.seconds) for _ in range(3)]
    spent_s += cpu_seconds(service.process.pid)
    work = work_so_far(service).since(before)
    num_answers = [int(np.sum(each.status == OK)) for each in saturated]
    rates = [num / each.took_s for num, each in zip(num_answers, saturated, strict=True)]
    saturation = float(np.median(rates))
    points = [point_at(service, body, share * saturation, scale.seconds) for share in scale.shares]
    at_70_percent = points[scale.shares.index(0.7)]
    p50_ms = float(np.median(alone))
    figures = {
        "http_p50_ms": p50_ms,
        "http_p99_ms": float(np.percentile(alone, 99)),
        "overhead_ms_p50": p50_ms - baseline["graph_p50_ms"],
        "share_outside_the_graph": 1 - baseline["graph_p50_ms"] / p50_ms,
        "saturation_rps": saturation,
        "saturation_share": saturation / baseline["graph_best_rps"],
        "p50_ms_at_70pct": at_70_percent.p50_ms,
        "p99_ms_at_70pct": at_70_percent.p99_ms,
        "p99_ratio_at_70pct": at_70_percent.p99_ms / p50_ms,
        "cpu_s_per_1000": 1_000 * spent_s / sum(num_answers),
    }
    return points, figures, work


def point_at(service: LocalService, body: Path, rate: float, seconds: float) -> Point:
    answers = send(f"{service.url}/recommend", body, rate=rate, seconds=seconds)
    is_ok = answers.status == OK
    settled = answers.latency_ms[is_ok & (answers.sent_at_s >= settle_s(seconds))]
    return Point(
        offered_rps=rate,
        answered_rps=float(np.sum(is_ok) / answers.took_s),
        refused_share=float(np.mean(~is_ok)),
        p50_ms=float(np.percentile(settled, 50)),
        p99_ms=float(np.percentile(settled, 99)),
    )


def settle_s(seconds: float) -> float:
    """What is left out of the start of a load, until all connections are there."""
    return min(SETTLE_S, seconds / 2)


def bare(answer: bytes, body: Path, folder: Path, seconds: int) -> dict[str, float]:
    """The route that returns the same bytes, and the protocol without a framework."""
    path = folder / "answer.json"
    path.write_bytes(answer)
    figures: dict[str, float] = {}
    for name in ("bare", "floor"):
        port = free_port()
        url = f"http://127.0.0.1:{port}/recommend"
        process = subprocess.Popen([sys.executable, "-m", f"benchmarks.peers.{name}", str(port), path])
        try:
            until_answered(url, body.read_bytes())
            send(url, body, callers=CALLERS, seconds=2)
            alone = send(url, body, callers=1, seconds=seconds)
            spent_s = -cpu_seconds(process.pid)
            saturated = send(url, body, callers=CALLERS, seconds=seconds)
            spent_s += cpu_seconds(process.pid)
        finally:
            process.terminate()
            process.wait()
        figures |= {
            f"{name}_p50_ms": float(np.median(alone.latency_ms)),
            f"{name}_saturation_rps": len(saturated.status) / saturated.took_s,
            f"{name}_us": 1e6 * spent_s / len(saturated.status),
        }
    return figures


def until_answered(url: str, body: bytes) -> None:
    for _ in range(200):
        try:
            httpx.post(url, content=body, headers=JSON, trust_env=False)
            return
        except httpx.TransportError:
            time.sleep(0.05)
    raise GlyphrecError(f"{url} does not answer.")


# --- what is shown ---


def show(points: Sequence[Point]) -> None:
    rows = [
        (
            f"{each.offered_rps:.0f}",
            f"{each.answered_rps:.0f}",
            f"{each.refused_share:.1%}",
            f"{each.p50_ms:.2f}",
            f"{each.p99_ms:.2f}",
        )
        for each in points
    ]
    report.table(("offered/s", "answered/s", "refused", "p50 ms", "p99 ms"), rows)


def plot(points: Sequence[Point], graph_p50_ms: float, saturation_rps: float, path: Path) -> None:
    import matplotlib  # here, as only --plot needs it

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "glyphrec"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
    load = [each.offered_rps for each in points]
    axes.plot(load, [each.p99_ms for each in points], "o-", color="#b5482a", label="p99 of answered requests")
    axes.plot(load, [each.p50_ms for each in points], "o-", color="#27548a", label="p50")
    axes.axhline(graph_p50_ms, color="#777777", linestyle=":", label="the graph alone, one request")
    axes.axvline(saturation_rps, color="#777777", linestyle="--", label="saturation")
    axes.set(xlabel="requests a second that are sent to POST /recommend", ylabel="milliseconds", yscale="log")
    axes.grid(alpha=0.3, which="both")
    shares = axes.twinx()
    shares.fill_between(load, [100 * each.refused_share for each in points], color="#999999", alpha=0.25)
    shares.set(ylabel="refused with 429, % (gray)", ylim=(0, 100))
    axes.legend(loc="upper left", frameon=False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    report.run(main)
