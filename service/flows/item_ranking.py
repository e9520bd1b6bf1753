"""The POST /rank flow: given items in the order in which the model would recommend them. It needs no Redis.

Three things can order them: the ranker, if the bundle has one; else the generator, which gives each item the
score that a search would give it (inference/listed.py); and without a ranker and a known history, popularity.

The queue's batches hold the lock of the catalog, so an answer belongs to one version of it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from time import perf_counter
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.catalog.catalog import SLOT_BITS, Catalog
from service.core.filters import DeclaredFields, Filter
from service.core.sid import Sid
from service.flows.deadlines import within
from service.flows.histories import History, neighbors_of, newest, read_history
from service.flows.ranker import Candidates, Ranker
from service.inference.batching import MicroBatcher, Reservation
from service.inference.listed import score_listed
from service.inference.runtime import RecommenderSession
from service.telemetry.metrics import Metrics
from service.telemetry.stages import Stages

RankedBy = Literal["ranker", "generator", "popularity"]


@dataclass(frozen=True)
class Ranking:
    """A request for the order of some items. An id that comes twice counts once."""

    history: Sequence[str]  # item ids, oldest first
    item_ids: Sequence[str]
    limit: int
    exclude_item_ids: frozenset[str] = frozenset()
    filter: Filter | None = None


class RankedItem(NamedTuple):
    """One item, and its score: of the ranker or of the generator, None by popularity."""

    item_id: str
    sid: Sid
    score: float | None


@dataclass(frozen=True)
class RankedItems:
    """The items in order, under one version of the catalog."""

    items: list[RankedItem]  # best first; equal scores in trie order
    by: RankedBy
    num_candidates: int  # items that were ranked, of which `items` may be the first
    matching_items: int | None  # known items that pass the filter; None without a filter
    unknown_item_ids: list[str]  # of `item_ids`
    unknown_history_ids: list[str]
    catalog_version: int
    history_s: float = field(compare=False)  # for the look-ups of the whole batch
    decode_s: float = field(compare=False)  # for running the graph, for the whole batch


class _Asked(NamedTuple):
    """A ranking, with what this version of the catalog knows about it."""

    ranking: Ranking
    history: History
    candidates: list[str]  # known items that pass the filter and are not excluded, each once
    unknown_item_ids: list[str]
    matching_items: int | None


class _Scored(NamedTuple):
    by: RankedBy
    scores: NDArray[np.float32] | None  # [candidate]; None by popularity


def rank_in_batches(
    session: RecommenderSession,
    catalog: Catalog,
    *,
    history_length: int,
    beam_limit: int,
    ranker: Ranker | None = None,
) -> Callable[[list[Ranking]], list[RankedItems]]:
    """The function that the queue's batcher runs while it holds `catalog.lock`."""

    def run(rankings: list[Ranking]) -> list[RankedItems]:
        started_at = perf_counter()
        asked = [_look_up(catalog, ranking) for ranking in rankings]
        decoding_at = perf_counter()
        if ranker is not None:
            found = ranker.scores(catalog, [Candidates(each.history, each.candidates) for each in asked])
            scored = [_Scored("ranker", scores) for scores in found]
        else:
            by_place = _score(session, catalog, asked, history_length, beam_limit)
            scored = [_of_generator(each, by_place.get(place)) for place, each in enumerate(asked)]
        took = (decoding_at - started_at, perf_counter() - decoding_at)
        return [_answer(catalog, *each, *took) for each in zip(asked, scored, strict=True)]

    return run


def _look_up(catalog: Catalog, ranking: Ranking) -> _Asked:
    once = dict.fromkeys(ranking.item_ids)
    known = [item_id for item_id in once if catalog.has(item_id)]
    view = None if ranking.filter is None else catalog.views.view_of(ranking.filter)
    passing = known if view is None else [item_id for item_id in known if view.passes(item_id)]
    return _Asked(
        ranking,
        read_history(catalog, ranking.history),
        [item_id for item_id in passing if item_id not in ranking.exclude_item_ids],
        [item_id for item_id in once if not catalog.has(item_id)],
        None if view is None else len(passing),
    )


def _score(
    session: RecommenderSession,
    catalog: Catalog,
    asked: Sequence[_Asked],
    history_length: int,
    beam_limit: int,
) -> Mapping[int, NDArray[np.float32]]:
    """The generator's scores [candidate] by index in `asked`, where there are candidates and a known history.

    Rankings of the same codes share a run: for example the same shelf for many users.
    """
    prefixes: dict[int, NDArray[np.int64]] = {}
    runs: dict[bytes, list[int]] = {}
    for place, each in enumerate(asked):
        if each.history.is_known and each.candidates:
            prefixes[place] = catalog.packed_sids_of(each.candidates) >> SLOT_BITS
            runs.setdefault(np.unique(prefixes[place]).tobytes(), []).append(place)
    found: dict[int, NDArray[np.float32]] = {}
    for listed, places in runs.items():
        codes = np.frombuffer(listed, np.int64)
        histories = [asked[place].history for place in places]
        scores = score_listed(
            session,
            catalog.spec,
            newest(histories, history_length),
            codes,
            beam_limit=beam_limit,
            neighbors=neighbors_of(histories),
        )  # [place, code]
        for place, row in zip(places, scores, strict=True):
            found[place] = row[np.searchsorted(codes, prefixes[place])]
    return found


def _of_generator(asked: _Asked, scores: NDArray[np.float32] | None) -> _Scored:
    if not asked.history.is_known:
        return _Scored("popularity", None)
    return _Scored("generator", np.zeros(0, np.float32) if scores is None else scores)


def _answer(
    catalog: Catalog, asked: _Asked, scored: _Scored, history_s: float, decode_s: float
) -> RankedItems:
    in_trie_order = catalog.packed_sids_of(asked.candidates)
    worst_first = catalog.ranks_of(asked.candidates) if scored.scores is None else -scored.scores
    order = np.lexsort((in_trie_order, worst_first))[: asked.ranking.limit]
    ids = [asked.candidates[place] for place in order.tolist()]
    scores = repeat(None) if scored.scores is None else scored.scores[order].tolist()
    items = list(map(RankedItem, ids, catalog.unpacked_all(in_trie_order[order]), scores))
    return RankedItems(
        items=items,
        by=scored.by,
        num_candidates=len(asked.candidates),
        matching_items=asked.matching_items,
        unknown_item_ids=asked.unknown_item_ids,
        unknown_history_ids=asked.history.unknown_item_ids,
        catalog_version=catalog.version,
        history_s=history_s,
        decode_s=decode_s,
    )


class ItemRanker:
    """Ranks items for one model. `timeout_s` limits each request, including its time in the queue."""

    def __init__(
        self,
        batcher: MicroBatcher[Ranking, RankedItems],
        *,
        fields: DeclaredFields,
        timeout_s: float,
        metrics: Metrics,
    ) -> None:
        self._batcher = batcher
        self._fields = fields
        self._timeout_s = timeout_s
        self._metrics = metrics

    async def rank(
        self,
        ranking: Ranking,
        stages: Stages,
        deadline: float = math.inf,
        reservation: Reservation | None = None,
    ) -> RankedItems:
        """The items in order, by the deadline (of the event loop's clock) or the timeout.

        The job uses the `reservation`, where there is one. Raises UnknownFilterField, InvalidFilter,
        Overloaded, TookTooLong.
        """
        if ranking.filter is not None:
            self._fields.check(ranking.filter)
        is_admitted = reservation is not None and reservation.is_held
        async with within(deadline, self._timeout_s, "The ranking") as deadline:
            if reservation is not None:
                reservation.release()
            answer = await self._batcher.submit(ranking, is_admitted=is_admitted, deadline=deadline)
        ranked = answer.result
        stages.add_row(
            queue=answer.queue_s,
            history=ranked.history_s,
            decode=ranked.decode_s,
            resolve=answer.run_s - ranked.history_s - ranked.decode_s,
        )
        stages.flow = "rank"
        self._metrics.observe_ranking(
            ranked.by,
            filtered=ranking.filter is not None,
            num_candidates=ranked.num_candidates,
            num_unknown=len(ranked.unknown_item_ids),
        )
        self._metrics.unknown_items.inc(len(ranked.unknown_history_ids))
        return ranked


def work_of(ranking: Ranking) -> int:
    """How much work a ranking is: as many beams as it has items."""
    return max(1, len(ranking.item_ids))
