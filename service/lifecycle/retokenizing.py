"""Brings the catalog under a new tokenizer: first every item, then every change in the old log.

It also gives vectors to items that have none.
"""

import asyncio
import logging

from service.errors import SidSpaceFull
from service.lifecycle.model import Model, Readiness
from service.lifecycle.seeding import give_vectors, read_the_unread
from service.store.rollout import LogGap, RolloutStore

log = logging.getLogger(__name__)

LOOK_S = 0.02  # between two looks at the queue
MAX_YIELD_S = 5.0  # how long a chunk of items waits at most for items that are being posted


class Retokenizer:
    """Every step may be repeated, and several replicas may do them at the same time."""

    def __init__(self, changes: RolloutStore, readiness: Readiness, *, share: float) -> None:
        """`share`: how much of the time it may work, over 0 and up to 1. The rest is for requests."""
        self._changes = changes
        self._readiness = readiness
        self._share = share

    async def read_all(self, model: Model) -> None:
        """Give codes and a vector to every item that the model's tokenizer has not read."""
        loaded = model.loaded
        await read_the_unread(model.store, model.indexer, loaded.items, loaded.manifest, self._pace)
        await model.store.forget_dropped()
        await self.give_vectors(model)  # the bundle may have known the codes alone

    async def give_vectors(self, model: Model) -> None:
        """Give vectors to all items that have none, if any are kept. Requests are answered meanwhile."""
        loaded = model.loaded
        if model.store.vectors.dim is not None:
            await give_vectors(model.store, model.indexer, loaded.items, loaded.manifest, self._pace)

    async def take_over_log(self, model: Model, previous: str, read_to: int) -> None:
        """Apply the changes that the previous tokenizer's log has now, after the version `read_to`."""
        goal, first = await self._changes.log_version(previous), read_to
        while read_to < goal:
            try:
                touched = await self._changes.touched(previous, read_to)
            except LogGap:
                await self.read_all(model)
                read_to = goal
                break
            if touched is None:
                break
            try:
                await model.indexer.take_over(touched.item_ids)
            except SidSpaceFull as error:
                log.warning("an item of the old tokenizer is lost to the new one: %s", error)
            read_to = touched.version
        if read_to > first:
            # This has an effect only if this replica leads the change.
            await self._changes.lead(model.tokenizer_id, read_to=read_to)

    async def _pace(self, spent_s: float) -> None:
        """Leave the machine to requests: rest, then wait while posted items are queued."""
        await asyncio.sleep(spent_s * (1 - self._share) / self._share)
        waited_s = 0.0
        while self._has_queue() and waited_s < MAX_YIELD_S:
            await asyncio.sleep(LOOK_S)
            waited_s += LOOK_S

    def _has_queue(self) -> bool:
        serving = self._readiness.model
        return serving is not None and serving.strips.queued_units > 0
