"""One batch of searches: history -> codes -> beam search -> items. The recommender's batcher runs it.

The catalog does not change while a batch of searches runs, from the look-up of the histories to the items of
the pages. So a page belongs to one version. The search returns codes, best first, and a bound: no codes that
it left out have a higher score. If the last score of a page is above the bound, no better page exists, and
`exact` is true.

Equal scores are in trie order. Items with the same codes have the same score and are in order of their slots.
If the widest search does not fill the page, popular items follow, whose score is None.

A query may ask to rerank: then the ranker orders the items of the page that the search made. Which items are
on it does not change, and `exact` speaks of them alone.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from time import perf_counter
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.catalog.catalog import Catalog
from service.catalog.views import View
from service.core.filters import Filter
from service.core.graphs import FILLER_SCORE, Neighbors, beam_widths
from service.core.sid import SidSpec
from service.core.trie import SidTrie
from service.flows.histories import History, neighbors_of, newest, read_histories
from service.flows.ranker import Candidates, Ranker
from service.flows.selection import Diversity, Ranked, Selection
from service.inference.runtime import Beams, RecommenderSession
from service.telemetry.metrics import Metrics


@dataclass
class Query:
    """A request for `limit` items after a history.

    `wants_exact`: the page must be proven to be the best. `rerank`: the ranker orders its items.
    """

    history: Sequence[str]  # item ids, oldest first
    limit: int
    exclude_item_ids: frozenset[str] = frozenset()
    exclude_history: bool = True
    filter: Filter | None = None
    diversity: Diversity = Diversity()
    wants_exact: bool = False
    rerank: bool = False

    @cached_property
    def excluded(self) -> AbstractSet[str]:
        """Ids of the items that must not be on the page. Some of them may be unknown."""
        return self.exclude_item_ids.union(self.history if self.exclude_history else ())


class Search(NamedTuple):
    """One attempt at a query."""

    query: Query
    num_beams: int
    is_last: bool  # a page that is not full gets popular items


@dataclass(slots=True)
class Page:
    """The result of one search, under one version of the catalog."""

    items: list[Ranked]
    exact: bool
    is_settled: bool  # a wider search would not improve the answer
    source: Literal["model", "popular"]
    unknown_item_ids: list[str]
    matching_items: int | None  # items that pass the filter; None without a filter
    catalog_version: int
    was_searched: bool  # False if there was nothing to find, or no known history
    num_valid_beams: int  # beams that stand for items
    history_s: float = field(compare=False)  # for looking up the histories of the whole batch
    decode_s: float = field(compare=False)  # for running the graph, for the whole batch
    rerank_s: float | None = field(compare=False, default=None)  # for the ranker; None: it has no say


class RankedPrefixes(NamedTuple):
    """One row of Beams, without filler beams. Equal scores are in trie order."""

    prefixes: list[int]  # full prefixes, best first
    scores: list[float]
    bound: float  # at least the score of everything that was pruned


class Asked(NamedTuple):
    """A search, with what this version of the catalog knows about it."""

    search: Search
    history: History
    excluded: AbstractSet[str]
    view: View | None
    trie: SidTrie  # of the view, or of the whole catalog
    num_candidates: int  # items that pass the filter and are not excluded


Observe = Callable[[Sequence[Search], Sequence[Page]], None]  # called once for each batch

# Beams, items of pages, histories and exclusions of a batch that the event loop looks up: some milliseconds.
MAX_PREPARED_WORK = 4_096


def _unobserved(_searches: Sequence[Search], _pages: Sequence[Page]) -> None:
    pass


class SearchesInBatches:
    """What the recommender's batcher calls while it holds `catalog.lock`.

    Without a `ranker`, no query may ask to rerank.
    """

    def __init__(
        self,
        session: RecommenderSession,
        catalog: Catalog,
        *,
        history_length: int,
        ranker: Ranker | None = None,
        observe: Observe = _unobserved,
    ) -> None:
        self._session, self._catalog, self._history_length = session, catalog, history_length
        self._ranker = ranker
        self._observe = observe

    def run(self, searches: list[Search]) -> list[Page]:
        """One page for each search."""
        batch = self._batch(searches)
        batch.run()
        return batch.finish()

    def prepare(self, searches: list[Search]) -> "SearchBatch | None":
        """The batch, with its histories looked up. None if its part in Python could take long."""
        work = 0
        for query, num_beams, _ in searches:
            work += num_beams + query.limit + len(query.history) + len(query.exclude_item_ids)
            if query.filter is not None or query.rerank or work > MAX_PREPARED_WORK:
                return None
        return self._batch(searches)

    def _batch(self, searches: list[Search]) -> "SearchBatch":
        return SearchBatch(
            self._session, self._catalog, searches, self._history_length, self._ranker, self._observe
        )


class SearchBatch:
    """A batch of searches: the histories are looked up first, then the graph runs, then the pages are made.

    The catalog must not change in between.
    """

    def __init__(
        self,
        session: RecommenderSession,
        catalog: Catalog,
        searches: Sequence[Search],
        history_length: int,
        ranker: Ranker | None,
        observe: Observe,
    ) -> None:
        started_at = perf_counter()
        self._session, self._catalog, self._ranker, self._observe = session, catalog, ranker, observe
        self._searches = searches
        self._asked = look_up_all(catalog, searches)
        self._graph_runs = _graph_runs(catalog, self._asked, history_length)
        self._beams: list[Beams] = []
        self._decode_s = 0.0
        self._history_s = perf_counter() - started_at

    def run(self) -> None:
        """The searches of the graph."""
        started_at = perf_counter()
        self._beams = [
            self._session.run(each.histories, each.tables, each.widths, each.neighbors)
            for each in self._graph_runs
        ]
        self._decode_s = perf_counter() - started_at

    def finish(self) -> list[Page]:
        """The pages, in the order of the searches."""
        catalog, found = self._catalog, dict[int, RankedPrefixes]()
        for each, beams in zip(self._graph_runs, self._beams, strict=True):
            found.update(zip(each.places, found_in(catalog.spec, beams), strict=True))
        took = (self._history_s, self._decode_s)
        pages = [page_of(catalog, each, found.get(place), *took) for place, each in enumerate(self._asked)]
        if self._ranker is not None:
            pages = _reranked(self._ranker, catalog, self._asked, pages)
        self._observe(self._searches, pages)
        return pages


def observed_by(metrics: Metrics, popularity: Mapping[str, float]) -> Observe:
    """Passes batches to the metrics. Items without `popularity`, which training counted, are new."""

    def observe(searches: Sequence[Search], pages: Sequence[Page]) -> None:
        metrics.observe_searches([page.num_valid_beams for page in pages if page.was_searched])
        shown = [
            each.item_id
            for search, page in zip(searches, pages, strict=True)
            if page.is_settled
            or search.is_last  # otherwise a wider search follows, and nobody sees this page
            for each in page.items
        ]
        metrics.observe_recommended(shown, sum(popularity.get(item_id, 0) > 0 for item_id in shown))

    return observe


def look_up_all(catalog: Catalog, searches: Sequence[Search]) -> list[Asked]:
    """What this version of the catalog knows about each search. Hold `catalog.lock`."""
    found = []
    histories = read_histories(catalog, [search.query.history for search in searches])
    for search, history in zip(searches, histories, strict=True):
        query = search.query
        view = None if query.filter is None else catalog.views.view_of(query.filter)
        trie, passes = (view.trie, view.passes) if view is not None else (catalog.trie, catalog.has)
        num_excluded = sum(map(passes, query.excluded))
        found.append(Asked(search, history, query.excluded, view, trie, len(trie) - num_excluded))
    return found


def look_up(catalog: Catalog, search: Search) -> Asked:
    """`look_up_all` of one."""
    return look_up_all(catalog, [search])[0]


class _GraphRun(NamedTuple):
    """Searches that share one run of the graph."""

    places: list[int]  # in the batch
    histories: NDArray[np.int64]  # [search, position, level]
    tables: Sequence[NDArray[Any]]
    widths: tuple[int, ...]
    neighbors: Neighbors | None


def _graph_runs(catalog: Catalog, asked: Sequence[Asked], history_length: int) -> list[_GraphRun]:
    """The runs of those with anything to find and a known history.

    Searches share a run if they read the same tables and have the same width.
    """
    runs: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for place, each in enumerate(asked):
        if each.history.is_known and each.num_candidates:
            widths = beam_widths(catalog.spec, each.search.num_beams)
            runs.setdefault((id(each.trie), widths), []).append(place)
    found = []
    for (_, widths), places in runs.items():
        histories = [asked[place].history for place in places]
        tables = asked[places[0]].trie.tables
        found.append(
            _GraphRun(places, newest(histories, history_length), tables, widths, neighbors_of(histories))
        )
    return found


def found_in(spec: SidSpec, beams: Beams) -> list[RankedPrefixes]:
    """The found prefixes of each row. It handles all rows at once, because each array access is slow."""
    batch, width, num_levels = beams.codes.shape
    prefixes = spec.prefixes_of(beams.codes.reshape(-1, num_levels))[-1].reshape(batch, width)
    order = np.lexsort((prefixes, -beams.scores))  # filler beams have the lowest scores, so they are last
    num_living = np.count_nonzero(beams.scores > FILLER_SCORE, axis=1).tolist()
    ordered_prefixes = np.take_along_axis(prefixes, order, axis=1).tolist()
    ordered_scores = np.take_along_axis(beams.scores, order, axis=1).tolist()
    rows = zip(num_living, ordered_prefixes, ordered_scores, beams.bound.tolist(), strict=True)
    return [RankedPrefixes(row[:num], scores[:num], bound) for num, row, scores, bound in rows]


def page_of(
    catalog: Catalog,
    asked: Asked,
    found: RankedPrefixes | None,
    history_s: float = 0.0,
    decode_s: float = 0.0,
) -> Page:
    """The items of the found prefixes that the page may have. The caller holds the lock of the catalog."""
    query = asked.search.query
    selection = Selection(
        query.limit,
        asked.excluded,
        query.diversity,
        first_code_of=catalog.first_code_of,
        category_of=catalog.views.category_of,
    )
    is_popular = not asked.history.is_known
    exact, is_settled = not is_popular, True
    if found:
        selection.offer(_ranked(catalog, asked, found))
        is_full = len(selection.page) >= _room(asked) or found.bound <= FILLER_SCORE
        exact = _is_exact(selection.page, asked, found.bound, is_full=is_full)
        is_settled = is_full and (exact or not query.wants_exact)
    if is_popular or (asked.search.is_last and not is_settled):
        selection.offer(_popular(catalog, asked.view))
    return Page(
        items=selection.page,
        exact=exact,
        is_settled=is_settled,
        source="popular" if is_popular else "model",
        unknown_item_ids=asked.history.unknown_item_ids,
        matching_items=len(asked.trie) if asked.view is not None else None,
        catalog_version=catalog.version,
        was_searched=found is not None,
        num_valid_beams=len(found.prefixes) if found else 0,
        history_s=history_s,
        decode_s=decode_s,
    )


def _reranked(ranker: Ranker, catalog: Catalog, asked: Sequence[Asked], pages: Sequence[Page]) -> list[Page]:
    """The pages, those in the order of the ranker whose query asks for it. Equal scores are in trie order."""
    started_at, found = perf_counter(), list(pages)
    places = [
        place
        for place, (each, page) in enumerate(zip(asked, pages, strict=True))
        if each.search.query.rerank and (page.is_settled or each.search.is_last)
    ]
    candidates = [
        Candidates(asked[place].history, [item.item_id for item in pages[place].items]) for place in places
    ]
    scored = ranker.scores(catalog, candidates) if places else []
    rerank_s = perf_counter() - started_at
    for place, scores in zip(places, scored, strict=True):
        scored_items = sorted(
            zip(scores.tolist(), pages[place].items, strict=True),
            key=lambda pair: (-pair[0], pair[1].packed_sid),
        )
        items = [item._replace(ranker_score=score) for score, item in scored_items]
        found[place] = replace(pages[place], items=items, rerank_s=rerank_s)
    return found


def _room(asked: Asked) -> int:
    """The most items that the page can have, however wide the search is."""
    query = asked.search.query
    room = min(query.limit, asked.num_candidates)
    if query.diversity.max_per_first_code is not None:
        room = min(room, query.diversity.max_per_first_code * len(asked.trie.children(0, 0)))
    return room


def _is_exact(page: Sequence[Ranked], asked: Asked, bound: float, *, is_full: bool) -> bool:
    """A full page is proven by its last score; any page is proven if no other item could be on it."""
    if bound <= FILLER_SCORE or len(page) == asked.num_candidates:
        return True
    last = page[-1].score if page else None
    return is_full and last is not None and last > bound


def _ranked(catalog: Catalog, asked: Asked, found: RankedPrefixes) -> Iterator[Ranked]:
    """The items of the beams that pass the filter, best first; items of the same codes by slot."""
    packed_sid_of = catalog.packed_sid_of
    for prefix, score in zip(found.prefixes, found.scores, strict=True):
        items: Iterable[str] = catalog.items_of(prefix)
        if asked.view is not None:  # stops at the last item that passes
            codes = catalog.spec.codes_of(prefix)
            items = islice(filter(asked.view.passes, items), asked.view.trie.count(codes))
        for item_id in items:
            yield Ranked(item_id, packed_sid_of(item_id), score)


def _popular(catalog: Catalog, view: View | None) -> Iterator[Ranked]:
    return (Ranked(item_id, catalog.packed_sid_of(item_id), None) for item_id in catalog.by_popularity(view))
