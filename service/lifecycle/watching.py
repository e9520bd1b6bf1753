"""Watches whether Redis still holds the whole catalog, and whether it may evict parts of it.

Replicas follow the log, and an eviction or a DEL writes nothing there. So this looks at the sizes of the
keys, which Redis tells in O(1).
"""

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import suppress

from service.errors import DamagedCatalog, ServiceError
from service.lifecycle.model import Model, Readiness
from service.store.persistence import Persistence
from service.store.pictures import PicturesSize
from service.store.retry import is_cancelled
from service.store.standing import Sizes, StandingStore
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

LOOK_S = 1.0
LOOKS_PER_POLICY = 30  # the policy of Redis changes rarely, and asking takes three calls
LOOKS_PER_RELOAD = 60  # a catalog of a million items loads for half a minute


class CatalogWatch:
    """Tells readiness and metrics what is wrong with the catalog in Redis."""

    def __init__(
        self, standing_of: Callable[[Model], StandingStore], metrics: Metrics, readiness: Readiness
    ) -> None:
        self._standing_of = standing_of
        self._metrics = metrics
        self._readiness = readiness
        self._num_looks = 0
        self._reloaded_at = -LOOKS_PER_RELOAD
        self._has_gone = False  # at the last look, records of items were gone that this replica recommends

    async def run(self) -> None:
        """Look until cancelled. While Redis does not answer, everything stays as it was."""
        try:
            while not is_cancelled():
                with suppress(ServiceError):  # logged where it was raised, and the follower says so too
                    await self.look()
                await asyncio.sleep(LOOK_S)
        except Exception:  # outermost loop of a task that nobody awaits
            log.exception("the catalog in Redis is no longer watched")

    async def look(self) -> None:
        """Look once. Raises StoreUnavailable or StoreFault."""
        model = self._readiness.model
        if model is None or model.follower.lost is not None:
            return
        if self._num_looks % LOOKS_PER_POLICY == 0:
            note_persistence(await model.store.persistence(), self._metrics, self._readiness)
            note_pictures(await model.store.pictures.size(), self._metrics)
        self._num_looks += 1
        standings = self._standing_of(model)
        sizes = await standings.sizes(model.tokenizer_id)
        self._note_damage(sizes.damage)
        self._note_gone(model, sizes)
        await self._keep_claim(standings)

    def _note_damage(self, damage: str) -> None:
        told = str(DamagedCatalog(damage)) if damage else ""
        if told != self._readiness.damage:
            log.error("%s", told) if told else log.info("the catalog in Redis is whole again")
        self._readiness.damage = told
        self._metrics.catalog_damaged.set(bool(told))
        self._metrics.ready.set(not told)

    def _note_gone(self, model: Model, sizes: Sizes) -> None:
        """Load the catalog anew if it names items whose records are gone: a load leaves those out.

        An item that was dropped under another tokenizer has codes for a moment. So two looks must agree.
        """
        has_gone = sizes.items < min(sizes.codes, model.catalog.num_items)
        if has_gone and self._has_gone and self._num_looks - self._reloaded_at >= LOOKS_PER_RELOAD:
            self._reloaded_at = self._num_looks
            model.follower.load_again("Redis has lost the records of items")
        self._has_gone = has_gone

    async def _keep_claim(self, standings: StandingStore) -> None:
        """After a FLUSHALL, say again whose catalog this is: no start may put a bundle's items into it."""
        standing = await standings.look(find_others=False)
        if standing.active is None and not standing.raw_active and standing.owner is None:
            await standings.settle(standing)
            await standings.mark_schema()


def note_pictures(size: PicturesSize, metrics: Metrics) -> None:
    """Let metrics tell how many pictures are kept, and what they take."""
    metrics.kept_pictures.set(size.num_pictures)
    metrics.kept_picture_bytes.set(math.nan if size.num_bytes is None else size.num_bytes)


def note_persistence(persistence: Persistence, metrics: Metrics, readiness: Readiness) -> None:
    """Let metrics and readiness tell what a failure of Redis or its eviction may lose."""
    metrics.redis_loss_window_seconds.set(persistence.loss_window.seconds)
    for keys, may_go in persistence.evictable.items():
        metrics.redis_may_evict.labels(keys).set(may_go)
    metrics.redis_used_memory_bytes.set(persistence.used_memory_bytes)
    metrics.redis_max_memory_bytes.set(persistence.max_memory_bytes)
    metrics.redis_append_file_bytes.set(persistence.append_file_bytes)
    for what, is_failing in persistence.failing.items():
        metrics.redis_failing.labels(what).set(is_failing)
    readiness.warnings = tuple(persistence.warnings())
