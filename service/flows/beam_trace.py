"""How the beam of a search went, level by level, for a person who looks. It needs no Redis.

The levels come out of the graph that serves (service/inference/beam_levels.py), on the tables, the filter and
the counts of the same version of the catalog. Nothing is opened before the first person asks.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from service.catalog.browsing import first_below
from service.catalog.catalog import Catalog
from service.core.filters import DeclaredFields
from service.core.graphs import beam_widths
from service.core.sid import Codes
from service.flows.deadlines import within
from service.flows.histories import neighbors_of, newest
from service.flows.search import Asked, Query, Search, look_up
from service.inference.batching import MicroBatcher, Reservation
from service.inference.beam_levels import LevelBeams, LevelSession

NUM_PRUNED = 12  # of each level, the best ones


class TracedPrefix(NamedTuple):
    """A prefix that the search scored."""

    codes: Codes
    score: float
    example_id: str | None  # an item that begins with it, among those that pass the filter


class TracedLevel(NamedTuple):
    """What one level of the search chose from."""

    num_children: int  # living children of the prefixes that survived the level above
    kept: list[TracedPrefix]  # best first
    pruned: list[TracedPrefix]  # the best of those that were pruned, best first


class BeamTrace(NamedTuple):
    """One search under one version of the catalog. Without a known history or items it has no levels."""

    num_beams: int
    levels: list[TracedLevel]
    catalog_version: int


class Tracing(NamedTuple):
    """A job of the queue."""

    session: LevelSession
    search: Search


def trace_in_batches(catalog: Catalog, *, history_length: int) -> Callable[[list[Tracing]], list[BeamTrace]]:
    """The function that the queue's batcher runs while it holds `catalog.lock`."""

    def run(jobs: list[Tracing]) -> list[BeamTrace]:
        return [_trace(job, catalog, look_up(catalog, job.search), history_length) for job in jobs]

    return run


class BeamTracer:
    """Tells how the beam of a query went. `timeout_s` limits each, including its time in the queue."""

    def __init__(
        self,
        open_session: Callable[[], LevelSession],
        queue: MicroBatcher[Tracing, BeamTrace],
        *,
        fields: DeclaredFields,
        timeout_s: float,
    ) -> None:
        """`open_session` opens the graph once more. It is called at the first query, in a thread."""
        self._open_session = open_session
        self._queue = queue
        self._fields = fields
        self._timeout_s = timeout_s
        self._session: LevelSession | None = None
        self._opening = asyncio.Lock()

    async def trace(
        self, query: Query, num_beams: int, deadline: float, reservation: Reservation | None = None
    ) -> BeamTrace:
        """The search of `num_beams` for the query, by the deadline (of the event loop's clock).

        Raises UnknownFilterField, InvalidFilter, BeamNotTold, Overloaded, TookTooLong.
        """
        if query.filter is not None:
            self._fields.check(query.filter)
        async with within(deadline, self._timeout_s, "The look at the beam") as deadline:
            async with self._opening:
                if self._session is None:
                    self._session = await asyncio.to_thread(self._open_session)
            is_admitted = reservation is not None and reservation.is_held
            if reservation is not None:
                reservation.release()
            job = Tracing(self._session, Search(query, num_beams, is_last=True))
            answer = await self._queue.submit(job, is_admitted=is_admitted, deadline=deadline)
        return answer.result


def _trace(job: Tracing, catalog: Catalog, asked: Asked, history_length: int) -> BeamTrace:
    num_beams = job.search.num_beams
    if not (asked.history.is_known and asked.num_candidates):
        return BeamTrace(num_beams, [], catalog.version)
    found = job.session.run(
        newest([asked.history], history_length),
        asked.trie.tables,
        beam_widths(catalog.spec, num_beams),
        neighbors_of([asked.history]),
        num_pruned=NUM_PRUNED,
    )
    levels, above = [], np.zeros(1, np.int64)
    for level, beams in enumerate(found):
        children = sum(len(asked.trie.children(level, prefix)) for prefix in above.tolist())
        told = _told(catalog, asked, level, beams)
        levels.append(TracedLevel(children, told[: beams.num_kept], told[beams.num_kept :]))
        above = beams.prefixes[: beams.num_kept]
    return BeamTrace(num_beams, levels, catalog.version)


def _told(catalog: Catalog, asked: Asked, level: int, beams: LevelBeams) -> list[TracedPrefix]:
    spec = catalog.spec
    told = []
    for prefix, score in zip(beams.prefixes.tolist(), beams.scores.tolist(), strict=True):
        codes = spec.codes_of(prefix, level + 1)
        told.append(TracedPrefix(codes, score, first_below(catalog, asked.view, codes)))
    return told
