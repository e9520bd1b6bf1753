"""What Python costs in one recommendation at saturation: all of it, and the stages that can be called alone.

All of it is what the process spends on a request, less the time of the graph in its batches, as the service
itself measures it. Both are of the same seconds, so that a busy machine slows both. Each stage is called here
as the service calls it, with random histories of its catalog. What is left is HTTP, the event loop, the queue
and the metrics.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import thread_time
from typing import Any, NamedTuple

import numpy as np

from benchmarks.workload.catalog import HISTORY, LIMIT
from model_export.local_service import LocalService
from service.api.recommend_shortcut import PreparedItems, body_of, ordinary_body
from service.catalog.catalog import Catalog
from service.core.bundle import RECOMMENDER, Bundle
from service.core.bundle_co_counts import bundle_co_counts
from service.core.co_counts import CoCounts
from service.core.graphs import beam_widths
from service.core.sid import Sid
from service.flows.histories import neighbors_of, newest
from service.flows.recommend import Recommended
from service.flows.search import Query, Search, found_in, look_up_all, page_of
from service.inference.runtime import RecommenderSession
from service.store.items import TrieEntry

ROUNDS = 30  # calls of each stage; the median counts


class Work(NamedTuple):
    """What the recommender has done so far."""

    batches: float
    requests: float
    decode_s: float  # of each request, the time of the graph in its whole batch

    def since(self, before: "Work") -> "Work":
        """What came after that."""
        return Work(*(late - early for early, late in zip(before, self, strict=True)))

    @property
    def batch(self) -> float:
        """The mean number of requests in a batch."""
        return self.requests / self.batches

    @property
    def graph_us(self) -> float:
        """Microseconds of the graph for each request."""
        return 1e6 * self.decode_s / self.requests / self.batch


def work_so_far(service: LocalService) -> Work:
    """What its metrics say."""
    found = dict(
        line.rsplit(" ", 1) for line in service.client.get("/metrics").text.splitlines() if line[0] != "#"
    )
    return Work(
        float(found['glyphrec_batch_jobs_count{queue="recommender"}']),
        float(found['glyphrec_batch_jobs_sum{queue="recommender"}']),
        float(found['glyphrec_stage_seconds_sum{flow="recommend",stage="decode"}']),
    )


def stages_us(
    bundle: Bundle, rows: Sequence[Mapping[str, Any]], body: Path, batch: int, num_beams: int
) -> dict[str, float]:
    """Microseconds of one request, in batches of this size, by stage of Python."""
    manifest = bundle.manifest
    catalog = catalog_of(bundle, rows)
    session = RecommenderSession(bundle.file(RECOMMENDER), manifest.recommender, threads=1)
    widths = beam_widths(manifest.sid, num_beams)
    ids, rng = [row["item_id"] for row in rows], np.random.default_rng(0)
    searches = [
        Search(Query([ids[n] for n in rng.integers(len(ids), size=HISTORY)], LIMIT), num_beams, False)
        for _ in range(batch)
    ]
    asked = look_up_all(catalog, searches)
    histories = [each.history for each in asked]

    codes = newest(histories, manifest.history_length)
    beams = session.run(codes, catalog.trie.tables, widths, neighbors_of(histories))
    found = found_in(manifest.sid, beams)
    pages = [page_of(catalog, each, row) for each, row in zip(asked, found, strict=True)]
    prepared, sent = PreparedItems(), body.read_bytes()

    def write() -> None:
        for page in pages:
            body_of(prepared.of(page.items, catalog), Recommended(page, num_beams, 0, False), "0" * 12)

    calls: dict[str, Callable[[], object]] = {
        "read the body": lambda: [ordinary_body(sent) for _ in range(batch)],
        "look up": lambda: look_up_all(
            catalog, [each._replace(query=fresh(each.query)) for each in searches]
        ),
        "order the beams": lambda: found_in(manifest.sid, beams),
        "choose the items": lambda: [page_of(catalog, *each) for each in zip(asked, found, strict=True)],
        "write the body": write,
    }
    return {name: 1e6 * median_s(call) / batch for name, call in calls.items()}


def fresh(query: Query) -> Query:
    """Without what an earlier look-up has kept of it."""
    return Query(query.history, query.limit)


def median_s(call: Callable[[], object]) -> float:
    """Processor seconds of this thread, on which other processes have less effect than on the wall clock."""
    took = []
    for _ in range(ROUNDS):
        began = thread_time()
        call()
        took.append(thread_time() - began)
    return float(np.median(took))


def catalog_of(bundle: Bundle, rows: Sequence[Mapping[str, Any]]) -> Catalog:
    """As a service has it, with the bundle's counts."""
    manifest = bundle.manifest
    slots = Counter[tuple[int, ...]]()
    entries = []
    for row in rows:
        codes = tuple(row["codes"])
        entries.append(TrieEntry(row["item_id"], Sid(codes, slots[codes])))
        slots[codes] += 1
    catalog = Catalog.from_entries(manifest.sid, entries)
    if manifest.co_counts is not None:
        catalog.co_counts = CoCounts(manifest.co_counts, catalog.prefix_of)
        for counted in bundle_co_counts(bundle):
            catalog.co_counts.set_row(*counted)
    return catalog
