"""One bundle at work: its graphs, a batcher for each, the catalog of its tokenizer, and both flows.

While models change, two of them live side by side. `Readiness.model` answers new requests. A request keeps
the model that it began with, and a replaced model ends after the last of its requests.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from service.catalog.catalog import Catalog
from service.catalog.co_count_follower import CoCountFollower
from service.catalog.follower import CatalogFollower
from service.catalog.graph_builder import GraphBuilder
from service.core.bundle_co_counts import bundle_co_counts
from service.core.co_counts import CoCounts
from service.errors import GlyphrecError, ServiceError
from service.flows.beam_trace import BeamTrace, BeamTracer, Tracing
from service.flows.drawing import Tokenized
from service.flows.indexing import Indexer
from service.flows.item_ranking import ItemRanker, RankedItems, Ranking
from service.flows.item_search import Finding, FoundItems, ItemSearcher
from service.flows.learning import Learned
from service.flows.query_encoder import Vector
from service.flows.ranker import Ranker
from service.flows.recommend import Recommender
from service.flows.search import Page, Search
from service.inference.batching import MicroBatcher
from service.inference.runtime import TokenizerInput
from service.lifecycle.bundles import LoadedBundle
from service.lifecycle.tasks import cancel
from service.store.co_counts import CoCountStore
from service.store.items import ItemStore
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)


class Model:
    """Answers requests with one bundle. service/app.py builds its parts."""

    def __init__(
        self,
        loaded: LoadedBundle,
        *,
        store: ItemStore,
        catalog: Catalog,
        follower: CatalogFollower,
        counts: CoCountStore,
        co_counts: CoCountFollower | None,
        strips: MicroBatcher[TokenizerInput, Tokenized],
        queries: MicroBatcher[TokenizerInput, Vector],
        findings: MicroBatcher[Finding, FoundItems | ServiceError],
        searches: MicroBatcher[Search, Page],
        rankings: MicroBatcher[Ranking, RankedItems],
        traces: MicroBatcher[Tracing, BeamTrace],
        indexer: Indexer,
        recommender: Recommender,
        item_ranker: ItemRanker,
        searcher: ItemSearcher,
        tracer: BeamTracer,
        metrics: Metrics,
    ) -> None:
        """`strips` is the queue before the tokenizer, `searches` the queue before the recommender, and
        `rankings` that of POST /rank before the ranker, or before the recommender if there is none.

        `queries` is a queue of its own before the tokenizer, for POST /search, and `findings` the queue
        before the vectors. `traces` is the queue for people who look at how a search went.

        `co_counts` is None for a bundle in whose searches counts have no say.
        """
        self.loaded = loaded
        self.manifest = loaded.manifest
        self.popularity = loaded.popularity
        self.store = store
        self.catalog = catalog
        self.follower = follower
        self.counts = counts
        self.co_counts = co_counts
        self.strips = strips
        self.searches = searches
        self.rankings = rankings
        self.traces = traces
        self.indexer = indexer
        self.queries = queries
        self.findings = findings
        self.recommender = recommender
        self.item_ranker = item_ranker
        self.searcher = searcher
        self.tracer = tracer
        self._metrics = metrics
        self._following: asyncio.Task[None] | None = None
        self._following_counts: asyncio.Task[None] | None = None
        self._building: asyncio.Task[None] | None = None
        self._num_requests = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @property
    def tokenizer_id(self) -> str:
        """The id of the tokenizer whose catalog this model serves."""
        return self.manifest.tokenizer_id

    @property
    def ranker_id(self) -> str | None:
        """The id of the bundle's ranker; None if it has none."""
        return None if self.manifest.ranker is None else self.manifest.ranker.ranker_id

    @property
    def _queues(self) -> tuple[MicroBatcher[Any, Any], ...]:
        return self.strips, self.queries, self.searches, self.rankings, self.findings, self.traces

    @property
    def num_remembered(self) -> int:
        """How many items of a history an event about its page can be counted with."""
        return self.manifest.co_counts.window if self.manifest.co_counts is not None else 0

    def start(self) -> None:
        """Let all queues run. The catalog comes with `join`."""
        for queue in self._queues:
            queue.start()

    async def join(self) -> None:
        """Load the catalog, search it once, and follow the log from here on. May be repeated.

        Raises StoreUnavailable or StoreFault if Redis does not give the catalog.
        """
        if self._following is None:
            await self.follower.load()
            await self._join_counts()
            async with self.catalog.lock:
                await asyncio.to_thread(self.loaded.search_once, self.catalog.trie)
            self._following = asyncio.create_task(self.follower.run(), name="follower")
            if self.catalog.vectors is not None:
                builder = GraphBuilder(self.catalog, self.catalog.vectors)
                self._building = asyncio.create_task(builder.run(), name="builder of the graph of vectors")

    async def _join_counts(self) -> None:
        """Bring the bundle's counts into Redis if none are there. Load the counts and follow their log."""
        if self.co_counts is None or self._following_counts is not None:
            return
        if not await self.counts.is_seeded():
            rows = await asyncio.to_thread(bundle_co_counts, self.loaded.bundle)
            num_written = await self.counts.seed(rows)
            log.info("put the counts of %d items of the bundle into the catalog", num_written)
        await self.co_counts.load()
        self._following_counts = asyncio.create_task(self.co_counts.run(), name="follower of the counts")

    @property
    def has_joined(self) -> bool:
        """Whether the catalog is loaded and follows the log."""
        return self._following is not None

    def check(self) -> None:
        """Raise the error that ended a task which follows a log or the vectors. Only a bug ends it."""
        for following in (self._following, self._following_counts, self._building):
            if following is not None and following.done():
                following.result()

    async def catch_up(self, timeout_s: float = 60) -> bool:
        """Wait until the catalog has every change that is in the log now. False if that took longer."""
        return await self.follower.wait_for(await self.store.last_version(), timeout_s)

    def show(self) -> None:
        """Let the metrics describe this model from now on."""
        metrics = self._metrics
        metrics.describe_model(self.manifest)
        metrics.watch_queue("tokenizer", self.strips)
        metrics.watch_queue("recommender", self.searches)
        metrics.watch_queue("rankings", self.rankings)
        metrics.watch_queue("query", self.queries)
        metrics.watch_queue("vectors", self.findings)
        metrics.watch_queue("beam", self.traces)
        metrics.watch_catalog(self.catalog, self.follower, self.co_counts)

    @contextmanager
    def in_use(self) -> "Iterator[Model]":
        """Surrounds each request: `retire` waits for it."""
        self.enter()
        try:
            yield self
        finally:
            self.leave()

    def enter(self) -> None:
        """`in_use` for a request that has no block of code to surround. `leave` must follow."""
        self._num_requests += 1
        self._unused.clear()

    def leave(self) -> None:
        """The end of a request that began with `enter`."""
        self._num_requests -= 1
        if not self._num_requests:
            self._unused.set()

    async def retire(self) -> None:
        """End after the last request that began with this model."""
        await self._unused.wait()
        await self.stop()

    async def stop(self) -> None:
        """End now. Jobs that still wait in a queue fail."""
        for following in (self._following, self._following_counts, self._building):
            if following is not None:
                await cancel(following)
        for queue in self._queues:
            await queue.stop()


@dataclass
class Readiness:
    """Whether this replica answers requests, and with which model."""

    phase: str = "starting"  # for people: GET /health/ready shows it
    is_stopping: bool = False  # it was asked to end: it still answers, but wants no new requests
    model: Model | None = None  # None until the start is done, and after the end
    damage: str = ""  # what Redis has lost of the catalog, and what to do; '' while it is whole
    failure: GlyphrecError | None = None  # why the start cannot succeed: the process ends with it
    warnings: tuple[str, ...] = ()  # what in Redis' settings endangers the catalog

    def say(self, phase: str) -> None:
        """Set the phase: a callback for `retry`."""
        self.phase = phase

    def state(self) -> "ReadyState":
        """What GET /health/ready says of this process."""
        if self.is_stopping:
            return ReadyState("stopping", "answering the last requests")
        if self.damage:
            return ReadyState("damaged", self.damage)
        return ReadyState("ready" if self.model else "starting", self.phase)


class ReadyState(NamedTuple):
    """The state of one process, and what it is at, for people."""

    status: Literal["ready", "starting", "stopping", "damaged"]
    phase: str


def ranker_of(loaded: LoadedBundle) -> Ranker | None:
    """The ranker of a bundle, if it has one."""
    spec = loaded.manifest.ranker
    if loaded.ranker is None or spec is None:
        return None
    return Ranker(loaded.ranker, spec.history_length, loaded.popularity)


def learned_by(readiness: Readiness) -> Learned | None:
    """What events are counted by now."""
    model = readiness.model
    if model is None or model.manifest.co_counts is None:
        return None
    return Learned(model.catalog, model.manifest.co_counts)


def counts_of(readiness: Readiness) -> CoCounts | None:
    """The table of counts that searches use now."""
    return None if readiness.model is None else readiness.model.catalog.co_counts
