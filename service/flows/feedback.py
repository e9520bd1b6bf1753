"""Live quality: how often users take what was recommended to them, counted for each model version.

Every replica remembers the pages that it served. A client may post an event to any replica. All replicas read
it from Redis, and the one that served the page counts the rank of the item. So POST /recommend needs no
Redis.

Several replicas may have served a page with the same request id: a gateway sent the request again, or one
trace id covers several requests. The first of them that claims the event in Redis counts it. A replica whose
pages lack the item waits before it claims, so that one whose page has it comes first.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from service.core.co_counts import CoCounts
from service.errors import StoreFault, StoreUnavailable
from service.flows.learning import Learner
from service.flows.served_pages import Attribution, ServedPages
from service.store.co_counts import Taken
from service.store.events import Event, EventStore, Told
from service.store.retry import Backoff, is_cancelled
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

BLOCK_MS = 1_000
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 2.0
# How long an event waits for a replica whose page has its item. Replicas read an event within milliseconds.
ABSENT_WAIT_S = 0.5


class Candidate(NamedTuple):
    """An event about a page of this replica, which this replica has not claimed yet."""

    event: Told
    page: Attribution
    due: float  # by the event loop's clock: when to claim it


class Feedback:
    """Stores posted events in Redis, and counts those about the pages that this replica served."""

    def __init__(
        self,
        store: EventStore,
        pages: ServedPages,
        metrics: Metrics,
        learner: Learner | None = None,
        counts_now: Callable[[], CoCounts | None] = lambda: None,
    ) -> None:
        """Without a `learner` nothing is learned from events; they only measure quality.

        `counts_now` gives the table of counts of the model that answers requests.
        """
        self._store = store
        self._pages = pages
        self._metrics = metrics
        self._learner = learner
        self._counts_now = counts_now

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
        candidates: list[Candidate] = []
        backoff = Backoff(FIRST_BACKOFF_S, MAX_BACKOFF_S)
        now = asyncio.get_running_loop().time
        while not is_cancelled():
            try:
                if last_id is None:
                    last_id = await self._store.last_entry_id()
                new_events = await self._store.after(last_id, _block_ms(candidates, now()))
                if new_events:
                    last_id = new_events[-1].entry_id
                    candidates += self._candidates(new_events, now())
                at = now()
                await self._count([each for each in candidates if each.due <= at])
                candidates = [each for each in candidates if each.due > at]
            except (StoreUnavailable, StoreFault):  # already logged where it was raised
                await backoff.wait()
                continue
            backoff.reset()
        raise asyncio.CancelledError

    def _candidates(self, events: Sequence[Told], now: float) -> list[Candidate]:
        found = [(event, self._pages.find(event.request_id, event.item_id)) for event in events]
        return [
            Candidate(event, page, now + (ABSENT_WAIT_S if page.rank is None else 0))
            for event, page in found
            if page is not None
        ]

    async def _count(self, due: Sequence[Candidate]) -> None:
        """Count those of the events that no other replica counts. Raises StoreUnavailable: try again.

        Events whose claim Redis rejects count for nothing.
        """
        if not due:
            return
        try:
            are_ours = await self._store.claim([each.event.entry_id for each in due])
        except StoreFault:
            log.exception("%d events are not counted", len(due))
            return
        taken = []
        for (event, page, _), is_ours in zip(due, are_ours, strict=True):
            if is_ours:
                self._observe(event, page)
                taken.append(Taken(event.entry_id.decode(), page.history, event.item_id))
        if taken and self._learner is not None:
            await self._learner.learn(taken)

    def _observe(self, event: Told, page: Attribution) -> None:
        self._metrics.observe_attribution(page.recommender_id, page.rank)
        counts = self._counts_now()
        if counts is not None and page.history:
            is_seen = counts.has_pair(page.history[-1], event.item_id)
            self._metrics.observe_pair(page.rank, is_seen=is_seen)


def _block_ms(candidates: Sequence[Candidate], now: float) -> int:
    """How long to wait for new events before the next candidate is due. 0 would wait without end."""
    wait_s = min((each.due - now for each in candidates), default=math.inf)
    return int(min(max(1_000 * wait_s, 1), BLOCK_MS))
