"""Builds the graph of a VectorIndex and lets it catch up with the edits, in a thread of low priority.

A search needs none of this to be right: it compares what its graph lacks one by one.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter
from typing import TypeVar

import numpy as np

from service.catalog.catalog import Catalog
from service.catalog.nearest import NearestGraph
from service.catalog.vectors import Following, VectorIndex
from service.core.cpus import give_way
from service.store.retry import is_cancelled

log = logging.getLogger(__name__)

# Rows that a graph takes in one go. While the graph of searches does, a search of it waits, so they are few.
ROWS_PER_TURN, ROWS_PER_BUILDING_TURN = 4, 256
TRAINING_ROWS = 10_000
RECALL_AT = 10
SAMPLES = 100
# The recall is measured again when so large a share of the rows has changed.
CHANGED_SHARE = 0.1

T = TypeVar("T")


class GraphBuilder:
    """Builds the graph of a catalog's vectors and keeps it up to date, until cancelled."""

    def __init__(self, catalog: Catalog, vectors: VectorIndex) -> None:
        self._catalog = catalog
        self._vectors = vectors
        self._num_applied = 0  # to the graph of searches, since its recall was measured
        self._thread: ThreadPoolExecutor | None = None

    async def run(self) -> None:
        """Follow the edits of the vectors until cancelled."""
        with ThreadPoolExecutor(1, thread_name_prefix="vectors", initializer=give_way) as self._thread:
            while not is_cancelled():
                await self._vectors.changed.wait()
                self._vectors.changed.clear()
                await self._catch_up()
        raise asyncio.CancelledError

    async def _catch_up(self) -> None:
        vectors = self._vectors
        if vectors.wants_graph:
            await self._begin()
        started_at = perf_counter()
        while True:
            active, building = vectors.active, vectors.building
            if active is not None and active.pending:
                await self._turn(active, ROWS_PER_TURN)
            if building is not None:
                await self._turn(building, ROWS_PER_BUILDING_TURN)
            elif active is None or not active.pending:
                break
        if vectors.active is None:
            return
        if vectors.recall is None or self._num_applied > CHANGED_SHARE * vectors.num_vectors:
            is_new = vectors.recall is None
            await self._measure(vectors.active)
            if is_new:
                log.info(
                    "the graph of %d vectors took %.1f s; its recall is %s with %d candidates",
                    vectors.num_vectors,
                    perf_counter() - started_at,
                    vectors.recall,
                    vectors.active.graph.expansion,
                )

    async def _begin(self) -> None:
        vectors, catalog = self._vectors, self._catalog
        async with catalog.lock:
            rows = vectors.sample(TRAINING_ROWS, np.random.default_rng(0))
        graph = await self._in_thread(lambda: NearestGraph(vectors.dim, rows))
        async with catalog.lock:
            vectors.begin(graph)

    async def _turn(self, following: Following, count: int) -> None:
        async with self._catalog.lock:
            edits = self._vectors.take_pending(following, count)
        places, rows = [edit.place for edit in edits], [edit.row for edit in edits]
        await self._in_thread(lambda: following.graph.apply(places, rows))
        async with self._catalog.lock:
            self._vectors.settle(following, edits)
        if following is self._vectors.active:
            self._num_applied += len(edits)

    async def _measure(self, active: Following) -> None:
        """Measure the recall on items as queries, and let searches keep more candidates if it is low.

        An edit meanwhile can only make the figure smaller.
        """
        vectors = self._vectors
        async with self._catalog.lock:
            queries = vectors.sample(SAMPLES, np.random.default_rng(self._catalog.version))
        if not len(queries):
            return
        truths = [await self._in_thread(partial(vectors.truth_of, query, RECALL_AT)) for query in queries]
        recall = await self._in_thread(partial(vectors.widen, active.graph, queries, truths))
        if active is vectors.active:
            vectors.recall, self._num_applied = recall, 0

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
