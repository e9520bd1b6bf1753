"""Live quality: how often users take what was recommended to them, counted for each model version.

Every replica remembers the pages that it served. A client may post an event to any replica. All replicas read
it from Redis, and the one that served the page counts the rank of the item. So POST /recommend needs no
Redis.
"""

import asyncio
import logging
from collections.abc import Sequence

from service.errors import StoreFault, StoreUnavailable
from service.flows.learning import Learner
from service.flows.served_pages import ServedPages
from service.store.co_counts import Taken
from service.store.events import Event, EventStore
from service.store.retry import Backoff, is_cancelled
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

BLOCK_MS = 1_000
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 2.0


class Feedback:
    """Stores posted events in Redis, and counts those about the pages that this replica served."""

    def __init__(
        self, store: EventStore, pages: ServedPages, metrics: Metrics, learner: Learner | None = None
    ) -> None:
        """Without a `learner` nothing is learned from events; they only measure quality."""
        self._store = store
        self._pages = pages
        self._metrics = metrics
        self._learner = learner

    async def take(self, events: Sequence[Event]) -> int:
        """Store the events -> how many of them were new. Safe to retry. Raises StoreUnavailable."""
        num_new = await self._store.take(events)
        self._metrics.observe_events(num_new, len(events) - num_new)
        return num_new

    async def run(self) -> None:
        """Count the events about pages of this replica, until cancelled. Each event is counted once."""
        try:
            await self._follow()
        except Exception:  # outermost loop of a task that nobody awaits
            log.exception("events about pages of this replica are no longer counted")

    async def _follow(self) -> None:
        last_id: bytes | None = None
        backoff = Backoff(FIRST_BACKOFF_S, MAX_BACKOFF_S)
        while not is_cancelled():
            try:
                if last_id is None:
                    last_id = await self._store.last_entry_id()
                new_events = await self._store.after(last_id, BLOCK_MS)
            except (StoreUnavailable, StoreFault):  # already logged where it was raised
                await backoff.wait()
                continue
            backoff.reset()
            taken = []
            for event in new_events:
                last_id = event.entry_id
                found = self._pages.find(event.request_id, event.item_id)
                if found is not None:
                    self._metrics.observe_attribution(found.recommender_id, found.rank)
                    taken.append(Taken(event.entry_id.decode(), found.history, event.item_id))
            if taken and self._learner is not None:
                await self._learner.learn(taken)
        raise asyncio.CancelledError
