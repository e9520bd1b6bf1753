"""The table of what was taken together: its memory, its load from Redis' rows, the neighbors of a request.

    python -m benchmarks.co_counts [--items 1000000]

Every item has 64 neighbors at random, which is the most: real rows are shorter. A request has a history of 20
items. The baseline gathers the same neighbors from dictionaries. The last line is JSON.
"""

import math
import os
import struct
from collections.abc import Sequence

import numpy as np

from benchmarks import report
from benchmarks.timing import elapsed_ms, in_turns
from benchmarks.workload.processes import resident_mb
from service.core.co_counts import CoCounts, CoCountSpec
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
    report.table(
        (f"{num_items:,} items", ""),
        [
            ("arrays", f"{figures['arrays_mb']:,.0f} MB"),
            ("with the ids of the items", f"{table_mb:,.0f} MB"),
            ("reading all rows", f"{load_s:.1f} s"),
            ("asking anew where all items are", f"{figures['place_all_ms']:.0f} ms"),
            ("the neighbors of a request", f"{figures['gather_us']:.0f} µs"),
            ("the same from dictionaries", f"{baseline['dictionaries_us']:.0f} µs"),
        ],
    )
    report.finish("co_counts", argv, figures, baseline)
    return 0


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
