"""The POST /recommend flow, in order: history -> codes -> beam search -> items. It needs no Redis.

The search returns codes, best first, and a bound: no codes that it left out score above it. So a page whose
last score is above the bound is provably the best page there is, and `exact` says so.

Items that share codes share the score and stand in the order of their slots. A page that the widest search
cannot fill is filled up with popular items, whose score is None.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.batching import MicroBatcher
from service.catalog import Catalog
from service.contract import FILLER, PADDING, Codes, Sid
from service.errors import TookTooLong
from service.metrics import Metrics, Stages
from service.runtime import RecommenderSession

History = NDArray[np.int64]  # [position, level], oldest first


class Search(NamedTuple):
    history: History
    num_beams: int


class Found(NamedTuple):
    """One row of Beams: what one request's search found, without filler beams."""

    codes: list[Codes]  # best first
    scores: list[float]
    bound: float  # at least the score of everything that was pruned


@dataclass(frozen=True)
class Query:
    history: Sequence[str]  # item ids, oldest first
    limit: int
    exclude_item_ids: frozenset[str] = frozenset()
    exclude_history: bool = True
    wants_exact: bool = False


@dataclass(frozen=True)
class Ranked:
    item_id: str
    sid: Sid
    score: float | None  # None: a popular item, not scored by the model


@dataclass(frozen=True)
class Recommended:
    items: list[Ranked]
    exact: bool
    source: Literal["model", "popular"]
    unknown_item_ids: list[str]
    catalog_version: int


def search_in_batches(session: RecommenderSession, catalog: Catalog) -> Callable[[list[Search]], list[Found]]:
    """What the recommender's batcher runs. Only searches of one width share a run."""

    def run(searches: list[Search]) -> list[Found]:
        tables = catalog.trie.tables
        found: dict[int, Found] = {}
        for num_beams in sorted({search.num_beams for search in searches}):
            places = [i for i, search in enumerate(searches) if search.num_beams == num_beams]
            beams = session.run(pad_left([searches[i].history for i in places]), tables, num_beams)
            for row, place in enumerate(places):
                living = beams.scores[row] > FILLER
                codes = [tuple(each) for each in beams.codes[row][living].tolist()]
                found[place] = Found(codes, beams.scores[row][living].tolist(), float(beams.bound[row]))
        return [found[i] for i in range(len(searches))]

    return run


def pad_left(histories: Sequence[History]) -> NDArray[np.int64]:
    """Histories of different lengths -> [batch, position, level], each ending in the last position."""
    longest = max(len(history) for history in histories)
    padded = np.full((len(histories), longest, histories[0].shape[1]), PADDING, dtype=np.int64)
    for row, history in zip(padded, histories, strict=True):
        row[longest - len(history) :] = history
    return padded


class Recommender:
    def __init__(
        self,
        catalog: Catalog,
        batcher: MicroBatcher[Search, Found],
        *,
        history_length: int,
        num_beams: int,
        beam_limit: int,
        timeout_s: float,
        metrics: Metrics,
    ) -> None:
        self._catalog = catalog
        self._batcher = batcher
        self._history_length = history_length
        self._widths = widths(num_beams, beam_limit)
        self._timeout_s = timeout_s
        self._metrics = metrics

    async def recommend(self, query: Query, stages: Stages) -> Recommended:
        """A page of items. Raises Overloaded, TookTooLong."""
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._recommend(query, stages)
        except TimeoutError:
            raise TookTooLong("The recommendation", self._timeout_s) from None
        self._metrics.recommendations.labels(answer.source, str(answer.exact).lower()).inc()
        self._metrics.unknown_items.inc(len(answer.unknown_item_ids))
        self._metrics.observe_stages("recommend", stages)
        return answer

    async def _recommend(self, query: Query, stages: Stages) -> Recommended:
        with stages.time("history"):
            version = self._catalog.version
            sids = {item_id: self._catalog.sid_of(item_id) for item_id in query.history}
            unknown = [item_id for item_id, sid in sids.items() if sid is None]
            known = [sid.codes for item_id in query.history if (sid := sids[item_id]) is not None]
            excluded = query.exclude_item_ids | (set(query.history) if query.exclude_history else set())
        if not known:
            page = self._popular(query.limit, excluded)
            return Recommended(page, False, "popular", unknown, version)

        history = np.array(known[-self._history_length :], dtype=np.int64)  # [position, level]
        page, exact = await self._search(history, query, excluded, stages)
        if (
            len(page) < query.limit and not exact
        ):  # the beam limit hides living items: never a short page for that
            shown = excluded | {each.item_id for each in page}
            page += self._popular(query.limit - len(page), shown)
        return Recommended(page, exact, "model", unknown, version)

    async def _search(
        self, history: History, query: Query, excluded: AbstractSet[str], stages: Stages
    ) -> tuple[list[Ranked], bool]:
        """The page and whether it is exact, from the narrowest search that fills the page or proves it."""
        page: list[Ranked] = []
        exact = False
        enough = next(
            (i for i, width in enumerate(self._widths) if width >= query.limit), len(self._widths) - 1
        )
        for step, num_beams in enumerate(self._widths[enough:]):
            if step:
                self._metrics.widenings.inc()
            answer = await self._batcher.submit(Search(history, num_beams))
            stages.add("queue", answer.queue_s)
            stages.add("decode", answer.run_s)
            with stages.time("resolve"):
                page = list(islice(_resolve(answer.result, self._catalog, excluded), query.limit))
                exact = _is_exact(page, query.limit, answer.result.bound)
            if exact or (len(page) == query.limit and not query.wants_exact):
                break
        return page, exact

    def _popular(self, limit: int, excluded: AbstractSet[str]) -> list[Ranked]:
        sids = (
            (item_id, self._catalog.sid_of(item_id)) for item_id in self._catalog.popular(limit, excluded)
        )
        return [Ranked(item_id, sid, None) for item_id, sid in sids if sid is not None]


def widths(num_beams: int, beam_limit: int) -> tuple[int, ...]:
    """The beams a search may have, doubling up to the limit: few widths, so that requests share runs."""
    found = [min(num_beams, beam_limit)]
    while found[-1] < beam_limit:
        found.append(min(2 * found[-1], beam_limit))
    return tuple(found)


def _resolve(found: Found, catalog: Catalog, excluded: AbstractSet[str]) -> Iterator[Ranked]:
    """The living items of the beams, best first; those of the same codes in the order of their slots."""
    for codes, score in zip(found.codes, found.scores, strict=True):
        for item_id in catalog.items_at(codes):
            sid = catalog.sid_of(item_id)
            if sid is not None and item_id not in excluded:
                yield Ranked(item_id, sid, score)


def _is_exact(page: Sequence[Ranked], limit: int, bound: float) -> bool:
    """A full page is proven by its last score, a short one by nothing at all having been pruned."""
    if len(page) < limit:
        return bound <= FILLER
    last = page[-1].score
    return last is not None and last > bound
