"""The cost of a filter: a request under it once its view is cached, the first request, every edit meanwhile.

    python -m benchmarks.filters

History 20 items, three levels of 256, 50 beams, 100,000 random-code items with a price each, the exported
graph of `tree` with random weights on one thread. Filters are ranges of the price. A request is one run of
SearchesInBatches on a real Catalog, without HTTP and queue; filtered and unfiltered ones take turns. The
baseline is the unfiltered request.

The last line is JSON. filtered_cost_ratio is the slower of the two filters with a cached view over no filter;
target: 1.3.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import report
from benchmarks.timing import each_ms, elapsed_ms, in_turns
from benchmarks.workload.shapes import BEAMS, FULL, HISTORY, TINY, Shapes, export_cached
from service.catalog.catalog import Catalog
from service.core.filters import Attributes, Filter, Range
from service.core.sid import Sid
from service.flows.search import Page, Query, Search, SearchesInBatches
from service.inference.runtime import RecommenderSession
from service.store.items import TrieEntry

LIMIT = 10
WARM_VIEWS = (0, 1, 10, 100)
FILTERS = {"unfiltered_ms": None, "half_pass_ms": 0.5, "one_percent_passes_ms": 0.01}  # by price, below it


def main(argv: Sequence[str]) -> int:
    parser = report.arguments(__doc__)
    parser.add_argument("--graphs", type=Path, help="where the exported graph is kept for the next run")
    args = parser.parse_args(argv)
    shapes, repeats = (TINY, 20) if args.tiny else (FULL, 400)
    with tempfile.TemporaryDirectory() as name:
        figures = request_ms(shapes, repeats, args.graphs or Path(name))
    baseline = {"unfiltered_ms": figures.pop("unfiltered_ms")}
    none, half, few = baseline["unfiltered_ms"], figures["half_pass_ms"], figures["one_percent_passes_ms"]
    figures["filtered_cost_ratio"] = max(half, few) / none
    figures["cold_view_ms"] = cold_view_ms(shapes, repeats // 10)
    figures |= edit_us(shapes, repeats)
    rows = [
        ("one request, no filter", f"{none:.2f} ms", ""),
        ("one request, half of the items pass", f"{half:.2f} ms", f"{half / none:.2f}"),
        ("one request, 1 % of the items pass", f"{few:.2f} ms", f"{few / none:.2f}"),
        ("a view that was not cached", f"{figures['cold_view_ms']:.2f} ms", ""),
        *(
            (f"one edit, {n} cached views", f"{figures[f'edit_us_with_{n}_views']:.1f} us", "")
            for n in WARM_VIEWS
        ),
    ]
    report.table(("", "median", "times no filter"), rows)
    report.finish("filters", argv, figures, baseline)
    return 0


def cheaper_than(price: float) -> Filter:
    return Filter(attributes=(("price", Range(lt=price)),))


def priced(price: float) -> Attributes:
    return Attributes((), True, {"price": price})


def catalog_of(shapes: Shapes) -> Catalog:
    """Items of all prices from 0 to 1; of each codes the slots in order."""
    slots, entries = dict[tuple[int, ...], int](), []
    codes = shapes.codes
    prices = np.random.default_rng(1).random(len(codes)).tolist()
    for place, (each, price) in enumerate(zip(map(tuple, codes.tolist()), prices, strict=True)):
        slot = slots[each] = slots.get(each, -1) + 1
        entries.append(TrieEntry(f"item-{place}", Sid(each, slot), priced(price)))
    return Catalog.from_entries(shapes.spec, entries)


def request_ms(shapes: Shapes, repeats: int, folder: Path) -> dict[str, float]:
    catalog, rng = catalog_of(shapes), np.random.default_rng(2)
    session = RecommenderSession(*export_cached("tree", folder, shapes), threads=1)
    run = SearchesInBatches(session, catalog, history_length=HISTORY).run
    histories = [
        [f"item-{i}" for i in rng.integers(0, shapes.num_items, size=HISTORY)] for _ in range(repeats + 5)
    ]

    def request(n: int, below: float | None) -> None:
        asked = None if below is None else cheaper_than(below)
        page = run([Search(Query(histories[n], LIMIT, filter=asked), BEAMS, is_last=False)])[0]
        assert isinstance(page, Page)
        pages.append((page, asked))

    pages: list[tuple[Page, Filter | None]] = []
    calls = {name: lambda n, below=below: request(n, below) for name, below in FILTERS.items()}
    took = in_turns(calls, repeats, warm_up=5)
    for page, asked in pages:
        check(page, catalog, asked)
    return {name: float(np.median(values)) for name, values in took.items()}


def check(page: Page, catalog: Catalog, asked: Filter | None) -> None:
    """The page is full, and all of it passes."""
    assert len(page.items) == LIMIT
    if asked is not None:
        assert all(asked.passes(i.item_id, catalog.views.attributes_of(i.item_id)) for i in page.items)


def cold_view_ms(shapes: Shapes, repeats: int) -> float:
    catalog = catalog_of(shapes)
    bounds = np.linspace(0.01, 0.99, max(repeats, 4)).tolist()
    took_ms = each_ms(lambda n: catalog.views.view_of(cheaper_than(bounds[n])), len(bounds))
    return float(np.median(took_ms))


def edit_us(shapes: Shapes, repeats: int) -> dict[str, float]:
    """An item gets another text and another price, so every view looks at it and half of them take part."""
    catalog, rng = catalog_of(shapes), np.random.default_rng(3)
    found = {}

    def edit() -> float:
        item_id, to = (
            f"item-{rng.integers(shapes.num_items)}",
            tuple(rng.integers(0, shapes.spec.levels).tolist()),
        )
        sid, attributes = Sid(to, len(catalog.items_at(to))), priced(float(rng.random()))
        return 1_000 * elapsed_ms(lambda: catalog.put(item_id, sid, attributes))

    for num_views in WARM_VIEWS:
        for place in range(catalog.views.num_views, num_views):
            catalog.views.view_of(cheaper_than((0.5 + 0.618 * place) % 1))  # spread, and no two alike
        took_us = [edit() for _ in range(repeats)]
        assert catalog.views.num_views == num_views
        found[f"edit_us_with_{num_views}_views"] = float(np.median(took_us))
    return found


if __name__ == "__main__":
    report.run(main)
