"""What a filter costs: a request under it once its view is warm, the first request, every edit meanwhile.

    python benchmarks/filters.py [--quick]

Shapes: history 20 items, three levels of 256, 50 beams, 100,000 random-code items with a price each, the
exported graph of `tree` with random weights on one thread. Filters are ranges of the price. A request is one
run of recommend_in_batches on a real Catalog, without HTTP and queue; filtered and not, they take turns.

The last line is JSON. filtered_cost_ratio is the dearer of the two warm filters over none; target: 1.3.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from work_shapes import BEAMS, HISTORY, NUM_ITEMS, export_cached, random_codes, spec

from service.catalog.catalog import Catalog
from service.core.filters import Attributes, Filter, Range
from service.core.sid import Sid
from service.flows.search import Page, Query, Search, recommend_in_batches
from service.inference.runtime import RecommenderSession
from service.store.items import TrieEntry

LIMIT = 10
WARM_VIEWS = (0, 1, 10, 100)
Codes = NDArray[np.int64]  # [item, level]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few repeats, for a first look")
    repeats = 40 if parser.parse_args().quick else 400
    codes = random_codes(NUM_ITEMS, seed=0)
    figures = request_ms(codes, repeats)
    none, half, few = figures["unfiltered_ms"], figures["half_pass_ms"], figures["one_percent_passes_ms"]
    print(f"one request, no filter           {none:8.2f} ms")
    print(f"             half of items pass  {half:8.2f} ms  {half / none:5.2f} times")
    print(f"             1 % of items pass   {few:8.2f} ms  {few / none:5.2f} times")
    figures["filtered_cost_ratio"] = max(half, few) / none
    figures["cold_view_ms"] = cold_view_ms(codes, repeats // 10)
    print(f"a view that was not cached       {figures['cold_view_ms']:8.2f} ms")
    for num_views, took in edit_us(codes, repeats).items():
        print(f"one edit, {num_views:3} warm views         {took:8.1f} us")
        figures[f"edit_us_with_{num_views}_views"] = took
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))
    return 0


def cheaper_than(price: float) -> Filter:
    return Filter(attributes=(("price", Range(lt=price)),))


def priced(price: float) -> Attributes:
    return Attributes((), True, {"price": price})


def catalog_of(codes: Codes) -> Catalog:
    """Items of all prices from 0 to 1; of each codes the slots in order."""
    slots, entries = dict[tuple[int, ...], int](), []
    prices = np.random.default_rng(1).random(len(codes)).tolist()
    for place, (each, price) in enumerate(zip(map(tuple, codes.tolist()), prices, strict=True)):
        slot = slots[each] = slots.get(each, -1) + 1
        entries.append(TrieEntry(f"item-{place}", Sid(each, slot), priced(price)))
    return Catalog.from_entries(spec(), entries)


def request_ms(codes: Codes, repeats: int) -> dict[str, float]:
    catalog, rng = catalog_of(codes), np.random.default_rng(2)
    filters = {
        "unfiltered_ms": None,
        "half_pass_ms": cheaper_than(0.5),
        "one_percent_passes_ms": cheaper_than(0.01),
    }
    took: dict[str, list[float]] = {name: [] for name in filters}
    with tempfile.TemporaryDirectory() as folder:
        session = RecommenderSession(*export_cached("tree", Path(folder)), threads=1)
        run = recommend_in_batches(session, catalog, history_length=HISTORY)
        for n in range(repeats + 5):
            history = [f"item-{place}" for place in rng.integers(0, NUM_ITEMS, size=HISTORY)]
            for name, asked in filters.items():
                search = Search(Query(history, LIMIT, filter=asked), BEAMS, is_last=False)
                found, ms = timed_ms(lambda search=search: run([search])[0])
                check(found, catalog, asked)
                if n >= 5:  # the first ones warm up
                    took[name].append(ms)
    return {name: float(np.median(values)) for name, values in took.items()}


def check(page: Page, catalog: Catalog, asked: Filter | None) -> None:
    """The page is full, and all of it passes."""
    assert len(page.items) == LIMIT
    if asked is not None:
        assert all(asked.passes(i.item_id, catalog.views.attributes_of(i.item_id)) for i in page.items)


def cold_view_ms(codes: Codes, repeats: int) -> float:
    catalog = catalog_of(codes)
    bounds = np.linspace(0.01, 0.99, max(repeats, 4)).tolist()
    return float(np.median([timed_ms(lambda p=p: catalog.views.view_of(cheaper_than(p)))[1] for p in bounds]))


def edit_us(codes: Codes, repeats: int) -> dict[int, float]:
    """An item gets another text and another price, so every view looks at it and half of them take part."""
    catalog, rng = catalog_of(codes), np.random.default_rng(3)
    found = {}
    for num_views in WARM_VIEWS:
        for place in range(catalog.views.num_views, num_views):
            catalog.views.view_of(cheaper_than((0.5 + 0.618 * place) % 1))  # spread, and no two alike
        took = []
        for _ in range(repeats):
            item_id, to = f"item-{rng.integers(NUM_ITEMS)}", tuple(rng.integers(0, spec().levels).tolist())
            sid, attributes = Sid(to, len(catalog.items_at(to))), priced(float(rng.random()))
            took.append(timed_ms(lambda i=item_id, s=sid, a=attributes: catalog.put(i, s, a))[1] * 1000)
        assert catalog.views.num_views == num_views
        found[num_views] = float(np.median(took))
    return found


def timed_ms(call: Callable[[], object]) -> tuple[object, float]:
    started = time.perf_counter()
    result = call()
    return result, (time.perf_counter() - started) * 1000


if __name__ == "__main__":
    raise SystemExit(main())
