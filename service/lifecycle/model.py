"""One bundle at work: its graphs, a batcher for each, the catalogue of its tokenizer, and both flows.

While models change, two of these live side by side. What answers requests now is `Readiness.parts`; a request
keeps the one it began with, and a model that was replaced ends when the last of its requests has.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from redis.asyncio import Redis, RedisCluster

from service.catalog.catalog import Catalog
from service.catalog.follower import CatalogFollower
from service.core.sid import Codes
from service.errors import GlyphrecError
from service.flows.indexing import Indexer, Strips, tokenise_in_batches
from service.flows.recommend import Page, Recommender, Search, observed_by, recommend_in_batches
from service.inference.batching import MicroBatcher
from service.lifecycle.bundles import LoadedBundle
from service.settings import Settings
from service.store.items import ItemStore
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_RETRY_S = 0.2
MAX_RETRY_S = 5.0


class Model:
    def __init__(
        self, loaded: LoadedBundle, redis: Redis | RedisCluster, settings: Settings, metrics: Metrics
    ) -> None:
        manifest = loaded.manifest
        self.loaded = loaded
        self.manifest = manifest
        self.popularity = {each.item_id: each.popularity for each in loaded.items}
        self.catalog = Catalog(manifest.sid, self.popularity, max_view_bytes=settings.max_view_bytes)
        self.strips: MicroBatcher[Strips, Codes] = MicroBatcher(
            tokenise_in_batches(loaded.tokenizer),
            name="tokenizer",
            max_batch_units=settings.max_batch_strips,
            max_queued_units=settings.max_queued_strips,
            gives_way=True,  # nobody waits for an ingest as for a page
            units=len,
            observe=lambda stats: metrics.observe_batch("tokenizer", stats),
        )
        self.searches: MicroBatcher[Search, Page] = MicroBatcher(
            recommend_in_batches(
                loaded.session,
                self.catalog,
                history_length=manifest.history_length,
                observe=observed_by(metrics, self.popularity),
            ),
            name="recommender",
            max_batch_units=loaded.max_batch_beams,
            max_queued_units=settings.max_queued_beams,
            max_wait_s=settings.max_wait_ms / 1_000,
            units=lambda search: search.num_beams,
            observe=lambda stats: metrics.observe_batch("recommender", stats),
            turns=self.catalog.turns,
        )
        self.store = ItemStore(
            redis,
            catalog=settings.catalog,
            tokenizer_id=manifest.tokenizer_id,
            spec=manifest.sid,
            fields=settings.filter_fields,
            log_length=settings.log_length,
        )
        self.follower = CatalogFollower(self.catalog, self.store)
        self.indexer = Indexer(
            self.store,
            self.follower,
            self.strips,
            render=manifest.render,
            max_item_chars=settings.max_item_chars,
            timeout_s=settings.index_timeout_s,
            metrics=metrics,
        )
        self.recommender = Recommender(
            self.searches,
            fields=settings.filter_fields,
            num_beams=settings.num_beams,
            beam_limit=manifest.beam_limit,
            timeout_s=settings.recommend_timeout_s,
            metrics=metrics,
        )
        self._metrics = metrics
        self._following: asyncio.Task[None] | None = None
        self._num_requests = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @property
    def tokenizer_id(self) -> str:
        return self.manifest.tokenizer_id

    def start(self) -> None:
        self.strips.start()
        self.searches.start()

    async def join(self) -> None:
        """Load the catalogue, search it once, and follow it from here on. May be repeated."""
        if self._following is None:
            await self.follower.load()
            async with self.catalog.turns:
                await asyncio.to_thread(self.loaded.search_once, self.catalog.trie)
            self._following = asyncio.create_task(self.follower.run(), name="follower")

    @property
    def has_joined(self) -> bool:
        return self._following is not None

    def check(self) -> None:
        """Raise what ended the following of the log; nothing of ours should."""
        if self._following is not None and self._following.done():
            self._following.result()

    async def level(self, timeout_s: float = 60) -> bool:
        """Wait until the catalogue has all that is in the log now. False where that took longer."""
        return await self.follower.wait_for(await self.store.last_version(), timeout_s)

    def show(self) -> None:
        """From now on the metrics are of this model."""
        metrics = self._metrics
        metrics.describe_model(self.manifest)
        metrics.watch_queue("tokenizer", self.strips)
        metrics.watch_queue("recommender", self.searches)
        metrics.watch_catalog(self.catalog, self.follower)

    @contextmanager
    def in_use(self) -> "Iterator[Model]":
        """Around each request: the model does not end before it."""
        self._num_requests += 1
        self._unused.clear()
        try:
            yield self
        finally:
            self._num_requests -= 1
            if not self._num_requests:
                self._unused.set()

    async def retire(self) -> None:
        """End after the last request that has begun with it."""
        await self._unused.wait()
        await self.stop()

    async def stop(self) -> None:
        if self._following is not None:
            await end(self._following)
        await self.strips.stop()
        await self.searches.stop()


@dataclass
class Readiness:
    """What answers requests now. `parts` is None until the start is done, and after the end."""

    phase: str = "starting"
    is_stopping: bool = False  # asked to end: to be sent no more requests, though it still answers
    parts: Model | None = None

    def say(self, phase: str) -> None:
        self.phase = phase


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for it. asyncio.wait_for, in redis-py, may swallow one before Python 3.12."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=1)


async def persist(
    attempt: Callable[[], Awaitable[T]],
    say: Callable[[str], None],
    passing: tuple[type[GlyphrecError], ...] = (GlyphrecError,),
) -> T:
    """Try until it works, as long as what stands in the way may pass; `say` is told of it."""
    retry_s = FIRST_RETRY_S
    while True:
        try:
            return await attempt()
        except passing as error:
            log.warning("%s Trying again in %.1f s.", error, retry_s)
            say(str(error))
        await asyncio.sleep(retry_s)
        retry_s = min(2 * retry_s, MAX_RETRY_S)
