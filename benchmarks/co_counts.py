"""The table of what was taken together: its memory, its load from Redis' rows, what a request pays for it.

    python -m benchmarks.co_counts [--items 1000000]

Every item has 64 neighbors at random, which is the most: real rows are shorter. All places of a history that
count are filled. The baselines gather the same neighbors from dictionaries, and search with a graph that was
exported without the opinion of the counts. The last line is JSON.
"""

import math
import os
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import report
from benchmarks.timing import elapsed_ms, in_turns
from benchmarks.workload.processes import resident_mb
from benchmarks.workload.shapes import (
    BEAM_LIMIT,
    FULL,
    HISTORY,
    TINY,
    Shapes,
    make_generator,
    random_histories,
)
from model_export.bundle.recommender import export_recommender
from model_export.generators import beam_search
from service.core.co_counts import CoCounts, CoCountSpec
from service.core.graphs import Neighbors
from service.core.sid import SidSpec
from service.core.trie import SidTrie
from service.inference.runtime import RecommenderSession
from service.store.co_counts import pack_neighbors, read_row

SPEC = CoCountSpec()
NUM_REQUESTS = 1_000
ROWS_PER_PAGE = 1_000  # are made, then read, so that the memory is the table's


def main(argv: Sequence[str]) -> int:
    parser = report.arguments(__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    args = parser.parse_args(argv)
    num_items = 2_000 if args.tiny else args.items
    rng = np.random.default_rng(0)
    ids = [f"B{number:09d}" for number in range(num_items)]
    places = {item_id: number for number, item_id in enumerate(ids)}
    before_mb = resident_mb(os.getpid())
    table = CoCounts(SPEC, places.__getitem__)
    load_s = 0.0
    for start in range(0, num_items, ROWS_PER_PAGE):
        page = [packed(item_id, ids, rng) for item_id in ids[start : start + ROWS_PER_PAGE]]
        load_s += elapsed_ms(lambda page=page: load(table, page)) / 1_000  # type: ignore[misc]
    table_mb = resident_mb(os.getpid()) - before_mb
    num_requests = 20 if args.tiny else NUM_REQUESTS
    histories = [
        [ids[n] for n in rng.integers(0, num_items, SPEC.num_positions)] for _ in range(num_requests)
    ]
    # As the rows are at random, those of the histories are made anew for the dictionaries.
    rows = {
        item_id: read_row(*packed(item_id, ids, rng)).row for item_id in {i for h in histories for i in h}
    }

    def by_dictionaries(number: int) -> None:
        found: dict[int, float] = {}
        for age, item_id in enumerate(reversed(histories[number])):
            row = rows[item_id]
            for other, count in row.neighbors.items():
                mass = count / math.sqrt(row.popularity) * SPEC.decay**age / SPEC.smoothing
                found[places[other]] = found.get(places[other], 0.0) + mass

    took = in_turns(
        {"table": lambda n: table.neighbors_of(histories[n]), "dictionaries": by_dictionaries}, num_requests
    )
    figures = {
        "items": float(num_items),
        "table_mb": table_mb,
        "arrays_mb": table.num_bytes / 1e6,
        "load_s": load_s,
        "place_all_ms": elapsed_ms(table.place_all),
        "gather_us": float(np.median(took["table"])) * 1_000,
    }
    baseline = {"dictionaries_us": float(np.median(took["dictionaries"])) * 1_000}
    searches = search_ms(TINY if args.tiny else FULL, num_requests)
    figures["search_ms"], baseline["search_without_counts_ms"] = searches
    figures["search_cost"] = searches[0] / searches[1] - 1
    report.table(
        (f"{num_items:,} items", ""),
        [
            ("arrays", f"{figures['arrays_mb']:,.0f} MB"),
            ("with the ids of the items", f"{table_mb:,.0f} MB"),
            ("reading all rows", f"{load_s:.1f} s"),
            ("asking anew where all items are", f"{figures['place_all_ms']:.0f} ms"),
            ("the neighbors of a request", f"{figures['gather_us']:.0f} µs"),
            ("the same from dictionaries", f"{baseline['dictionaries_us']:.0f} µs"),
            ("a search with all neighbors", f"{searches[0]:.2f} ms"),
            ("a search by a graph without counts", f"{searches[1]:.2f} ms"),
        ],
    )
    report.finish("co_counts", argv, figures, baseline)
    return 0


class Silent(nn.Module):
    """An opinion that has nothing to say, and costs nothing."""

    def __init__(self, spec: SidSpec, weight: float) -> None:  # noqa: ARG002  as NeighborOpinion
        super().__init__()

    def of_items(self, mass: Tensor) -> None:
        """Nothing."""

    def start(self, prefixes: Tensor, of_items: None) -> None:
        """Nothing."""

    def below(self, level: int, prefixes: Tensor, of_items: None, state: None) -> tuple[None, None]:  # noqa: ARG002
        """Nothing."""
        return None, None

    def terms(self, level: int, children: None, state: None) -> float:  # noqa: ARG002
        """No term."""
        return 0.0

    def follow(self, level: int, children: None, place: None, chosen: Tensor) -> None:
        """Nothing."""


def search_ms(shapes: Shapes, num_requests: int) -> tuple[float, float]:
    """The median milliseconds of a search with neighbors, and with a graph that knows no counts."""
    generator = make_generator("tree", shapes)
    codes = shapes.codes
    trie = SidTrie.from_codes(shapes.spec, codes)
    rng = np.random.default_rng(1)
    prefixes = np.unique(shapes.spec.prefixes_of(codes)[-1])
    width = min(SPEC.num_positions * SPEC.max_neighbors, len(prefixes))
    neighbors = Neighbors(
        np.sort(rng.choice(prefixes, (1, width), replace=False)),
        rng.exponential(3.0, (1, width)).astype(np.float32),
    )
    histories = [random_histories(codes, 1, seed=seed) for seed in range(32)]
    sessions = {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for name, opinion in (("counts", beam_search.NeighborOpinion), ("silent", Silent)):
            path = Path(folder) / f"{name}.onnx"
            with mock.patch.object(beam_search, "NeighborOpinion", opinion):
                graph = export_recommender(path, generator, history_length=HISTORY, beam_limit=BEAM_LIMIT)
            sessions[name] = RecommenderSession(path, graph, threads=1)
    took = in_turns(
        {
            name: lambda n, session=session: session.run(  # type: ignore[misc]
                histories[n % len(histories)], trie.tables, shapes.widths, neighbors
            )
            for name, session in sessions.items()
        },
        num_requests,
    )
    return float(np.median(took["counts"])), float(np.median(took["silent"]))


def packed(item_id: str, ids: Sequence[str], rng: np.random.Generator) -> tuple[bytes, bytes]:
    """A field and its value, as Redis holds them."""
    others = rng.integers(0, len(ids), SPEC.max_neighbors).tolist()
    counts = rng.uniform(0.1, 9, SPEC.max_neighbors).tolist()
    neighbors = {ids[other]: count for other, count in zip(others, counts, strict=True)}
    return item_id.encode(), struct.pack(">dd", 10.0, 1.7e9) + pack_neighbors(neighbors)


def load(table: CoCounts, page: Sequence[tuple[bytes, bytes]]) -> None:
    for key, value in page:
        row, _ = read_row(key, value)
        table.set_row(*row)


if __name__ == "__main__":
    report.run(main)
