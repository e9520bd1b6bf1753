"""POST /search and the index of vectors: time, recall, build, edits and memory, by the number of items.

    python -m benchmarks.search                       the newest bundle of the demo
    python -m benchmarks.search --bundle FOLDER --sizes 10000,100000 --http 10000,100000

The index is measured in this process with vectors of 320 numbers that lie in clusters, as those of items do,
and queries near them: one search by the graph, with every row compared, and by faiss called directly, in
turns; the ten nearest of the graph beside those of the exact search; the time of building; edits, and one
search while a thousand edits wait for the graph; the bytes of an item. Then a service of its own gets so many
items of the bundle, with vectors that differ a little, and answers POST /search and POST /recommend of the
same items (workload/load.py). It reads the text of each search anew, and another service remembers it, as the
settings have it. One thread each. The last line is JSON; `_10k`, `_100k` and `_1m` are numbers
of items:

  search_ms_p50_100k      one caller of POST /search over HTTP, median
  search_rps_100k         answers a second of 32 callers
  search_again_ms_p50_100k  the same where the text was searched for before
  recall_at_10            of the graph at the largest size, beside the exact search
  candidates_1m           that a search of the graph keeps, after it has measured its recall on items
  edit_us                 one edit of the index, before the graph has it
  bytes_per_item          in a replica, at the largest size
  exact_is_faster_up_to   the largest size tried at which comparing every row is faster than the graph
"""

import json
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.timing import each_ms, elapsed_ms, in_turns
from benchmarks.workload import bundles
from benchmarks.workload.catalog import enlarged, idle_service, redis_with, write_body
from benchmarks.workload.load import require_h2load, send
from model_export.local_service import LocalService
from service.catalog.graph_builder import RECALL_AT, SAMPLES
from service.catalog.nearest import CONNECTIVITY, EXPANSION_ADD, NearestGraph
from service.catalog.vectors import EXACT_UP_TO, VectorIndex
from service.core.bundle import Bundle
from service.core.vectors import as_text, from_text, packed, quantized, unpacked

DIM = 320  # as many as the tokenizers of texts give
LIMIT = 10
CALLERS = 32
OK = 200
NUM_CLUSTERS = 1_000
CROSSOVER = (500, 1_000, 2_000, 5_000, 10_000, 20_000)
ROWS_PER_TURN = 256
PENDING = 1_000
NEVER = 10**9

Rows = NDArray[np.int8]  # [row, dim]


class Scale(NamedTuple):
    """How much."""

    sizes: tuple[int, ...]  # of the index in this process
    http_sizes: tuple[int, ...]
    crossover: tuple[int, ...]
    repeats: int
    seconds: int  # of each load


def main(argv: Sequence[str]) -> int:
    parser = report.arguments(__doc__)
    bundles.add_argument(parser)
    parser.add_argument("--sizes", default="10000,100000,1000000", help="of the index in this process")
    parser.add_argument("--http", default="10000,100000,1000000", help="of the catalogs of a service")
    parser.add_argument("--seconds", type=int, default=5, help="of each load")
    args = parser.parse_args(argv)
    require_h2load()
    scale = Scale(_sizes(args.sizes), _sizes(args.http), CROSSOVER, 200, args.seconds)
    if args.tiny:
        scale = Scale((400,), (300,), (100, 200), repeats=5, seconds=1)
    import faiss

    faiss.omp_set_num_threads(1)
    figures: dict[str, float] = {}
    baseline: dict[str, float] = {}
    for size in scale.sizes:
        of_size, its_baseline = index_figures(size, scale.repeats)
        figures |= of_size
        baseline |= its_baseline
    figures["exact_is_faster_up_to"] = crossover(scale)
    with tempfile.TemporaryDirectory() as name:
        bundle = bundles.chosen(args, Path(name))
        for size in scale.http_sizes:
            folder = Path(name) / str(size)
            folder.mkdir()
            of_size, its_baseline = http_figures(bundle, size, scale.seconds, folder)
            figures |= of_size
            baseline |= its_baseline
    report.finish("search", argv, figures, baseline, shown=False)
    return 0


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(sorted(int(part) for part in text.split(",") if part))


def label(size: int) -> str:
    """10000 as `10k`, 1000000 as `1m`."""
    if size % 1_000_000 == 0:
        return f"{size // 1_000_000}m"
    return f"{size // 1_000}k" if size % 1_000 == 0 else str(size)


# --- the index in this process ---


def clustered(num_rows: int, seed: int) -> NDArray[np.float32]:
    """Vectors around the same centers for every seed."""
    centers = np.random.default_rng(0).normal(size=(NUM_CLUSTERS, DIM)).astype(np.float32)
    rng = np.random.default_rng(seed)
    rows = centers[rng.integers(NUM_CLUSTERS, size=num_rows)]
    noise: NDArray[np.float32] = rng.normal(size=rows.shape).astype(np.float32)
    result: NDArray[np.float32] = rows + 0.7 * noise
    return result


def index_of(vectors: NDArray[np.float32]) -> VectorIndex:
    index = VectorIndex(DIM, exact_up_to=NEVER)
    index.load(range(len(vectors)), [f"item-{n}" for n in range(len(vectors))], packed(vectors))
    return index


def with_graph(index: VectorIndex) -> float:
    """Build the graph of the index as graph_builder.py does -> seconds."""
    index.exact_up_to = 0
    sample = index.sample(10_000, np.random.default_rng(0))

    def build() -> None:
        index.begin(NearestGraph(DIM, sample))
        following = index.building
        assert following is not None
        while following.pending:
            edits = index.take_pending(following, ROWS_PER_TURN)
            following.graph.apply([edit.place for edit in edits], [edit.row for edit in edits])
            index.settle(following, edits)

    return elapsed_ms(build) / 1_000


def exactly(index: VectorIndex, query: Rows) -> list[int]:
    index.exact_up_to, before = NEVER, index.exact_up_to
    places = index.nearest(query, LIMIT).places
    index.exact_up_to = before
    return places


def index_figures(size: int, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    at = label(size)
    vectors = clustered(size, 1)
    index = index_of(vectors)
    build_s = with_graph(index)
    queries = quantized(clustered(repeats, 2))
    assert index.active is not None
    samples = index.sample(SAMPLES, np.random.default_rng(1))
    index.widen(index.active.graph, samples, [index.truth_of(each, RECALL_AT) for each in samples])
    candidates = index.active.graph.expansion
    direct = faiss_graph(vectors, candidates)
    asked = queries.astype(np.float32)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    took = in_turns(
        {
            "graph": lambda n: index.nearest(queries[n], LIMIT),
            "exact": lambda n: exactly(index, queries[n]),
            "faiss": lambda n: direct.search(asked[n : n + 1], LIMIT),
        },
        repeats,
    )
    hits = [len({*index.nearest(query, LIMIT).places} & {*exactly(index, query)}) for query in queries]
    num_bytes = index.num_bytes
    values = packed(clustered(PENDING, 3))
    count = min(PENDING, size)
    edits_ms = each_ms(lambda n: index.put(n, f"item-{n}", values[n]), count)
    behind_ms = each_ms(lambda n: index.nearest(queries[n], LIMIT), repeats)
    recall = float(np.mean(hits)) / min(LIMIT, size)
    figures = {
        f"graph_ms_p50_{at}": float(np.median(took["graph"])),
        f"graph_behind_ms_p50_{at}": float(np.median(behind_ms)),
        f"recall_at_10_{at}": recall,
        f"candidates_{at}": candidates,
        f"build_s_{at}": build_s,
        f"edit_us_{at}": 1_000 * float(np.median(edits_ms)),
        f"bytes_per_item_{at}": num_bytes / size,
        # Those of the largest size stay.
        "recall_at_10": recall,
        "edit_us": 1_000 * float(np.median(edits_ms)),
        "bytes_per_item": num_bytes / size,
    }
    baseline = {
        f"exact_ms_p50_{at}": float(np.median(took["exact"])),
        f"faiss_ms_p50_{at}": float(np.median(took["faiss"])),
    }
    return figures, baseline


def faiss_graph(vectors: NDArray[np.float32], candidates: int) -> Any:
    """The library alone, with the same parameters: without edits, rescoring and exact rows."""
    faiss: Any = import_module("faiss")  # whose stubs lack names
    graph = faiss.IndexHNSWSQ(DIM, faiss.ScalarQuantizer.QT_8bit, CONNECTIVITY, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction, graph.hnsw.efSearch = EXPANSION_ADD, candidates
    rows = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    graph.train(rows[:10_000])
    graph.add(rows)
    return graph


def crossover(scale: Scale) -> int:
    """The largest size at which comparing every row is the faster way; 0 if the graph always is."""
    best = 0
    for size in scale.crossover:
        index = index_of(clustered(size, 1))
        with_graph(index)
        queries = quantized(clustered(scale.repeats, 2))
        took = in_turns(
            {
                "graph": lambda n, index=index, queries=queries: index.nearest(queries[n], LIMIT),  # type: ignore[misc]
                "exact": lambda n, index=index, queries=queries: exactly(index, queries[n]),  # type: ignore[misc]
            },
            scale.repeats,
        )
        if np.median(took["exact"]) <= np.median(took["graph"]):
            best = size
    return best


# --- over HTTP ---


def http_figures(
    bundle: Bundle, size: int, seconds: int, folder: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """POST /search, and POST /recommend of the same service as the baseline."""
    at, catalog = label(size), varied(bundle, enlarged(bundle, size))
    history = write_body(catalog, folder)
    query = folder / "query.json"
    title = str(catalog[len(catalog) // 2]["item"].get("title") or "a thing")
    query.write_text(json.dumps({"query": " ".join(title.split()[:6]), "limit": LIMIT}), encoding="utf-8")
    with redis_with(bundle, catalog, folder) as url:
        with idle_service(bundle, url, folder, {"GLYPHREC_REMEMBERED_QUERIES": "0"}) as service:
            graph_s = until_built(service)
            info = service.client.get("/info").json()["vectors"]
            searches = load_figures(f"{service.url}/search", query, seconds)
            pages = load_figures(f"{service.url}/recommend", history, seconds)
        with idle_service(bundle, url, folder) as service:
            until_built(service)
            again = load_figures(f"{service.url}/search", query, seconds)
    figures = {
        f"search_ms_p50_{at}": searches[0],
        f"search_rps_{at}": searches[1],
        f"search_again_ms_p50_{at}": again[0],
        f"search_again_rps_{at}": again[1],
        f"search_over_recommend_ratio_{at}": searches[0] / pages[0],
        f"search_again_over_recommend_ratio_{at}": again[0] / pages[0],
        f"graph_ready_s_{at}": graph_s,
    }
    if info["recall_at_10"] is not None:
        figures[f"info_recall_at_10_{at}"] = info["recall_at_10"]
    return figures, {f"recommend_ms_p50_{at}": pages[0], f"recommend_rps_{at}": pages[1]}


def varied(bundle: Bundle, catalog: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copies of an item get vectors that differ from its own, or they would all be equally near."""
    rng, dim = np.random.default_rng(0), bundle.manifest.vector_dim
    rows = unpacked([from_text(row["vector"]) for row in catalog], dim).astype(np.float32)
    rows += rng.normal(scale=12, size=rows.shape).astype(np.float32)
    return [row | {"vector": as_text(value)} for row, value in zip(catalog, packed(rows), strict=True)]


def until_built(service: LocalService) -> float:
    """Seconds until the service searches as it will from then on."""
    started_at = time.perf_counter()
    while True:
        vectors = service.client.get("/info").json()["vectors"]
        is_small = vectors["items"] <= EXACT_UP_TO
        if is_small or (vectors["recall_at_10"] is not None and not vectors["pending"]):
            return time.perf_counter() - started_at
        time.sleep(0.2)


def load_figures(url: str, body: Path, seconds: int) -> tuple[float, float]:
    """The median of one caller in ms, and answers a second of many."""
    send(url, body, callers=CALLERS, seconds=1)  # warms everything up
    alone = send(url, body, callers=1, seconds=seconds)
    many = send(url, body, callers=CALLERS, seconds=seconds)
    return float(np.median(alone.latency_ms)), float(np.sum(many.status == OK) / many.took_s)


if __name__ == "__main__":
    report.run(main)
