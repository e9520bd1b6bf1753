"""From which size of the catalog on a beam is the cheaper way to the exact ten best items.

    python -m benchmarks.exactness --data DATA

For catalogs of 10,000 to 10 million items, one request at a time on one core:

- one search of 50 beams, and how many of its pages are proven;
- `guarantee: exact` as the service does it: 50 beams, doubled until the page is proven or there are 400;
- RecJPQPrune: dynamic pruning over sub-items, always exact;
- a full pass over all sub-items, in numpy and in faiss, and a full pass over all vectors, in numpy.

Each system is exact for its own scores. The beams rank by the log-probability of `tree`. The others rank by
the inner product of the items' vectors with the history's, and those with sub-items by its quantized form.
The time of a beam includes reading the history; the others get the request's vector for free.

One model is trained on DATA, whose catalog grows by near copies, and one has random weights. The stages of
the training are kept, so only the first run trains. Times are of the CPU, because other work on the machine
would stretch the long requests most. The last line is JSON.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks import report
from benchmarks.peers.sub_items import Found, SubItemIndex, VectorTable, faiss_index, sub_scores
from benchmarks.timing import cpu_ms
from benchmarks.workload.bundles import tiny_bundle, tiny_data
from benchmarks.workload.grown import BEAM_LIMIT, Catalog, Model, Random, Trained, large
from model_export.configs import tiny
from service.core.graphs import FILLER_SCORE, beam_widths, recommender_graph
from service.core.sid import SidSpec
from service.core.trie import SidTrie
from service.flows.recommend import widths
from service.inference.runtime import RecommenderSession

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
TINY_SIZES = (500, 2_000)
REQUESTS, TINY_REQUESTS = 300, 10
ITEMS_TO_SCORE = 40_000_000  # by a full pass, all its requests together
FEWEST, MOST = 15, 200  # requests of a system that visits the items
START = 50
TOP_K = 10
CACHE = Path(".glyphrec/benchmarks/cache")
PEERS = ("pruned", "sub_items", "sub_items_faiss", "vectors")


class Page(NamedTuple):
    """The ten best items of a search."""

    items: NDArray[np.int32]  # [item], best first
    scores: NDArray[np.float32]  # [item]
    is_proven: bool


class BeamPages:
    """Pages by beam search, as the service makes them."""

    def __init__(self, graph: Path, spec: SidSpec, codes: NDArray[np.int32]) -> None:
        self._spec = spec
        prefixes = spec.prefixes_of(codes.astype(np.int64))[-1]  # [item]
        self._session = RecommenderSession(graph, recommender_graph(spec), threads=1)
        self._trie = SidTrie.from_prefixes(spec, prefixes)
        self._order = np.argsort(prefixes, kind="stable").astype(np.int32)  # [item], sorted by their codes
        self._prefixes = prefixes[self._order].astype(np.int32)
        self.num_codes = 1 + int(np.count_nonzero(np.diff(self._prefixes)))
        self.num_bytes = (
            graph.stat().st_size + self._trie.num_bytes + self._order.nbytes + self._prefixes.nbytes
        )

    def page(self, history: NDArray[np.int64], num_beams: int) -> Page:
        """The page of one search, for a history [1, position, level]."""
        beams = self._session.run(history, self._trie.tables, beam_widths(self._spec, num_beams))
        scores, bound = beams.scores[0], float(beams.bound[0])
        living = scores > FILLER_SCORE
        prefixes = self._spec.prefixes_of(beams.codes[0][living])[-1].astype(np.int32)
        first = np.searchsorted(self._prefixes, prefixes)
        end = np.searchsorted(self._prefixes, prefixes, side="right")
        counts = np.minimum(end - first, TOP_K)
        items = np.concatenate(
            [self._order[a : a + n] for a, n in zip(first, counts, strict=True)] or [self._order[:0]]
        )[:TOP_K]
        of_items = np.repeat(scores[living], counts)[:TOP_K]
        is_full = len(items) == TOP_K
        return Page(items, of_items, bound < FILLER_SCORE or (is_full and bool(of_items[-1] > bound)))

    def proven_page(self, history: NDArray[np.int64]) -> Page:
        """Doubles the beams until the page is proven, or until there are as many as the graph takes."""
        for num_beams in widths(START, BEAM_LIMIT):
            if (page := self.page(history, num_beams)).is_proven:
                break
        return page


def main(argv: Sequence[str]) -> int:
    parser = report.arguments(__doc__)
    parser.add_argument("--data", help="a data set to train on")
    parser.add_argument("--cache", type=Path, default=CACHE, help="keeps the trained stages")
    parser.add_argument("--items", type=int, nargs="+", default=SIZES, help="sizes of the catalogs")
    args = parser.parse_args(argv)
    if not args.tiny and not args.data:
        parser.error("--data is needed, or --tiny")
    figures: dict[str, float] = {}
    baseline: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name, threadpool_limits(1):
        for model_name, model in models(args, Path(name)).items():
            graph = Path(name) / f"{model_name}.onnx"
            model.export(graph)
            print(f"{model_name}: {model.description}")
            for num_items in TINY_SIZES if args.tiny else args.items:
                ours, theirs = measure(model, graph, num_items)
                figures |= {f"{model_name}_{num_items}_{key}": value for key, value in ours.items()}
                baseline |= {f"{model_name}_{num_items}_{key}": value for key, value in theirs.items()}
                show(num_items, ours, theirs)
    report.finish("exactness", argv, figures, baseline)
    return 0


def models(args: Any, folder: Path) -> dict[str, Model]:
    if args.tiny:  # one model, because writing a graph takes seconds
        data = tiny_data(tiny_bundle(folder), folder / "data")
        config = replace(
            tiny(), sid=SidSpec(levels=(16, 16)), training=replace(tiny().training, max_steps=10)
        )
        return {"trained": Trained(str(data), folder / "cache", config, TINY_REQUESTS)}
    return {"trained": Trained(args.data, args.cache, large(), REQUESTS), "random": Random(REQUESTS)}


def measure(model: Model, graph: Path, num_items: int) -> tuple[dict[str, float], dict[str, float]]:
    """The beam's figures and the baselines', for one size."""
    catalog = model.catalog(num_items)
    theirs = measure_peers(model, catalog)
    codes = catalog.codes
    del catalog
    return measure_beam(BeamPages(graph, model.spec, codes), model), theirs


def measure_beam(beam: BeamPages, model: Model) -> dict[str, float]:
    histories = model.histories
    proven: list[bool] = []
    once_ms = cpu_ms(lambda n: proven.append(beam.page(histories[n], START).is_proven), len(histories))
    proven_once, proven = float(np.mean(proven)), []
    exact_ms = cpu_ms(lambda n: proven.append(beam.proven_page(histories[n]).is_proven), len(histories))
    return {
        "beam_ms": float(np.median(once_ms)),
        "beam_proven": proven_once,
        "exact_ms": float(np.median(exact_ms)),
        "exact_p95_ms": float(np.percentile(exact_ms, 95)),
        "exact_proven": float(np.mean(proven)),
        "beam_mb": beam.num_bytes / 1e6,
        "codes": beam.num_codes,
    }


def measure_peers(model: Model, catalog: Catalog) -> dict[str, float]:
    """Raises ValueError if pruning changed a score."""
    num_items = len(catalog.codes)
    queries = model.queries[: int(np.clip(ITEMS_TO_SCORE // num_items, FEWEST, MOST))]
    index, table = SubItemIndex(catalog.sub_items), VectorTable(catalog.vectors)
    compiled = faiss_index(model.sub_embeddings, catalog.sub_items)
    pruned: list[Found] = []
    full: list[Found] = []
    calls: dict[str, Callable[[int], object]] = {
        "pruned": lambda n: pruned.append(index.pruned(sub_scores(model.sub_embeddings, queries[n]), TOP_K)),
        "sub_items": lambda n: full.append(
            index.full_pass(sub_scores(model.sub_embeddings, queries[n]), TOP_K)
        ),
        "sub_items_faiss": lambda n: compiled.search(queries[n : n + 1], TOP_K),
        "vectors": lambda n: table.full_pass(queries[n], TOP_K),
    }
    found = {f"{name}_ms": float(np.median(cpu_ms(calls[name], len(queries)))) for name in PEERS}
    for ours, truth in zip(pruned, full, strict=True):
        if not np.array_equal(ours.scores, truth.scores):
            raise ValueError(f"pruning found {ours.scores}, and a full pass {truth.scores}")
    return found | {
        "pruned_scored": float(np.median([each.num_scored for each in pruned])) / num_items,
        "pruned_mb": index.num_bytes / 1e6,
        "sub_items_mb": catalog.sub_items.nbytes / 1e6,
        "vectors_mb": table.num_bytes / 1e6,
    }


def show(num_items: int, ours: dict[str, float], theirs: dict[str, float]) -> None:
    scored = {"pruned": theirs["pruned_scored"]}
    mb = f"{ours['beam_mb']:,.0f}"
    rows = [
        (f"{START} beams", f"{ours['beam_ms']:.2f}", f"{ours['beam_proven']:.1%}", "", mb),
        ("guarantee: exact", f"{ours['exact_ms']:.2f}", f"{ours['exact_proven']:.1%}", "", mb),
    ]
    for name in PEERS:
        mb = f"{theirs[name.removesuffix('_faiss') + '_mb']:,.0f}"
        rows.append((name, f"{theirs[f'{name}_ms']:.2f}", "100.0%", f"{scored.get(name, 1):.1%}", mb))
    print(f"{num_items:,} items with {ours['codes']:,} different codes")
    report.table(("search", "ms p50", "exact", "of all items scored", "MB"), rows)


if __name__ == "__main__":
    report.run(main)
