"""POST /rank beside POST /recommend: time and throughput by the number of items to rank.

    python -m benchmarks.rank                   the newest bundle of the demo
    python -m benchmarks.rank --bundle FOLDER --items 100000

A service gets so many items of the bundle. Requests have a history of 20 items, and 100 or 1,000 random items
to rank; POST /recommend with the same history is the baseline. The requests take turns (workload/load.py),
so that a busy minute hits all of them. With a bundle that has a ranker, the ranker gives the scores, and the
same page is also asked for with `rerank`; without one it is the generator. The last line is JSON:

  rank_100_ms_p50         one caller over HTTP, 100 items, median
  rank_1000_ms_p50        the same with 1,000 items
  rank_100_rps            answers a second of 32 callers; rank_1000_rps as well
  rank_100_ratio          of its median and that of a recommendation; the aim is at most 1
  by_ranker               1 if the ranker gave the scores, 0 if the generator did
  rerank_ms_p50           a page of POST /recommend in the ranker's order, if there is one
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.workload import bundles
from benchmarks.workload.catalog import enlarged, service_with, write_body
from benchmarks.workload.load import require_h2load, send
from model_export.local_service import LocalService
from service.core.bundle import Bundle
from service.core.limits import MAX_CANDIDATES

NUM_CANDIDATES = (100, MAX_CANDIDATES)
CALLERS = 32
TURNS = 3
OK = 200
PATIENT = {"GLYPHREC_MAX_WAIT_MS": "10000"}  # 32 callers are several batches, and none of them is refused


def main(argv: Sequence[str]) -> int:
    parser = report.arguments(__doc__)
    bundles.add_argument(parser)
    parser.add_argument("--items", type=int, default=100_000, help="of the catalog")
    parser.add_argument("--seconds", type=int, default=5, help="of each load, in each of its turns")
    args = parser.parse_args(argv)
    require_h2load()
    num_items, seconds, turns = (300, 1, 1) if args.tiny else (args.items, args.seconds, TURNS)
    with tempfile.TemporaryDirectory() as name:
        bundle = bundles.chosen(args, Path(name))
        figures, baseline = measure(bundle, num_items, seconds, turns, Path(name))
    report.finish("rank", argv, figures, baseline, shown=False)
    return 0


def measure(
    bundle: Bundle, num_items: int, seconds: int, turns: int, folder: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """Figures and baseline, by name."""
    catalog = enlarged(bundle, num_items)
    has_ranker = bundle.manifest.ranker is not None
    requests = bodies(catalog, folder, has_ranker=has_ranker)
    with service_with(bundle, catalog, folder, PATIENT) as service:
        found = in_turns(service, requests, seconds, turns)
    baseline = {f"recommend_{name}": value for name, value in found.pop("recommend").items()}
    figures = {f"{request}_{name}": value for request, each in found.items() for name, value in each.items()}
    figures["rank_100_ratio"] = figures["rank_100_ms_p50"] / baseline["recommend_ms_p50"]
    return figures | {"by_ranker": float(has_ranker), "items": float(num_items)}, baseline


def bodies(
    catalog: Sequence[dict[str, Any]], folder: Path, *, has_ranker: bool
) -> dict[str, tuple[str, Path]]:
    """The path of the route and the file of the body, by the name of the request."""
    page = write_body(catalog, folder)
    asked = json.loads(page.read_text(encoding="utf-8"))
    found = {"recommend": ("/recommend", page)}
    rng = np.random.default_rng(1)
    for count in NUM_CANDIDATES:
        places = rng.choice(len(catalog), min(count, len(catalog)), replace=False)
        body = {"history": asked["history"], "item_ids": [catalog[place]["item_id"] for place in places]}
        found[f"rank_{count}"] = ("/rank", written(folder / f"rank-{count}.json", body))
    if has_ranker:
        found["rerank"] = ("/recommend", written(folder / "rerank.json", asked | {"rerank": True}))
    return found


def written(path: Path, body: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(body), encoding="utf-8")
    return path


def in_turns(
    service: LocalService, requests: Mapping[str, tuple[str, Path]], seconds: int, turns: int
) -> dict[str, dict[str, float]]:
    """For each request, the median of one caller in ms and the answers a second of many callers."""
    latencies: dict[str, list[float]] = {name: [] for name in requests}
    rates: dict[str, list[float]] = {name: [] for name in requests}
    for route, body in requests.values():
        send(service.url + route, body, callers=CALLERS, seconds=1)  # warms everything up
    for _ in range(turns):
        for name, (route, body) in requests.items():
            alone = send(service.url + route, body, callers=1, seconds=seconds)
            many = send(service.url + route, body, callers=CALLERS, seconds=seconds)
            latencies[name] += alone.latency_ms[alone.status == OK].tolist()
            rates[name].append(float(np.sum(many.status == OK) / many.took_s))
    return {
        name: {"ms_p50": float(np.median(latencies[name])), "rps": float(np.median(rates[name]))}
        for name in requests
    }


if __name__ == "__main__":
    report.run(main)
