"""Live quality: what was recommended against what was then taken, for each model version.

Every replica remembers the pages that it served. An event may be posted to any of them; all hear of it
through Redis, and the one that served the page counts where on it the item stood. So no recommendation needs
Redis for it.
"""

import asyncio
import logging
import random
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from service.errors import StoreFault, StoreUnavailable
from service.store.client import is_cancelled
from service.store.events import Event, EventStore
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

BLOCK_MS = 1_000
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 2.0
GENERATIONS = 8
MODEL_BITS = 16


class Attribution(NamedTuple):
    recommender_id: str  # that served the page
    rank: int | None  # of the item, from 1; None: it was not on the page


class _Generation(NamedTuple):
    since: float
    pages: dict[int, bytes]  # hash of the request id -> its page


class ServedPages:
    """The newest pages, up to `max_pages` of them and `attribution_s` old; 0 pages: none.

    A page of ten items takes about 200 bytes: a hash for the request, and as 8 bytes each when and by which
    model it was served, and a hash for each item. A wrong match is as good as impossible. Pages are
    forgotten a generation at a time, so up to an eighth of them before `max_pages` makes it necessary.

    Clients may give request ids of their own (X-Request-ID), and one twice: then the newest page counts.
    """

    def __init__(
        self, max_pages: int, attribution_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_pages = max_pages
        self._attribution_s = attribution_s
        self._clock = clock
        self._pages_each = max(1, max_pages // GENERATIONS)
        self._generations: deque[_Generation] = deque([_Generation(clock(), {})])
        self._num_pages = 0
        self._number_of: dict[str, int] = {}  # of a recommender id, in the order in which they came to serve

    @property
    def num_pages(self) -> int:
        self._turn(self._clock())
        return self._num_pages

    def remember(self, request_id: str, recommender_id: str, item_ids: Sequence[str]) -> None:
        """Costs no more than some microseconds."""
        if not self._max_pages:
            return
        now = self._clock()
        number = self._number_of.setdefault(recommender_id, len(self._number_of))
        head = int(1_000 * now) << MODEL_BITS | number
        pages = self._turn(now)
        if len(pages) >= self._pages_each:
            pages = self._begin(now)
        if self._num_pages >= self._max_pages:
            self._forget_oldest()
        key = hash(request_id)
        self._num_pages += key not in pages
        pages[key] = array("q", [head, *map(hash, item_ids)]).tobytes()

    def find(self, request_id: str, item_id: str) -> Attribution | None:
        """None where this replica has not served the page, or too long ago."""
        key = hash(request_id)
        packed = next((each.pages[key] for each in reversed(self._generations) if key in each.pages), None)
        if packed is None:
            return None
        head, *shown = array("q", packed)
        if self._clock() - (head >> MODEL_BITS) / 1_000 > self._attribution_s:
            return None
        item = hash(item_id)
        rank = shown.index(item) + 1 if item in shown else None
        return Attribution(list(self._number_of)[head & ((1 << MODEL_BITS) - 1)], rank)

    def _turn(self, now: float) -> dict[int, bytes]:
        """Forget what is too old, and begin a generation where the newest is old -> the newest."""
        while len(self._generations) > 1 and now - self._generations[1].since > self._attribution_s:
            self._forget_oldest()
        newest = self._generations[-1]
        if newest.pages and now - newest.since > self._attribution_s / GENERATIONS:
            return self._begin(now)
        return newest.pages

    def _begin(self, now: float) -> dict[int, bytes]:
        self._generations.append(_Generation(now, {}))
        return self._generations[-1].pages

    def _forget_oldest(self) -> None:
        self._num_pages -= len(self._generations.popleft().pages)


class Feedback:
    def __init__(self, store: EventStore, pages: ServedPages, metrics: Metrics) -> None:
        self._store = store
        self._pages = pages
        self._metrics = metrics

    async def take(self, events: Sequence[Event]) -> int:
        """How many of them were new. May be repeated. Raises StoreUnavailable."""
        num_new = await self._store.take(events)
        self._metrics.observe_events(num_new, len(events) - num_new)
        return num_new

    async def run(self) -> None:
        """Count what is taken from pages of this replica, until cancelled. What is told is heard once."""
        try:
            await self._follow()
        except Exception:  # outermost loop of a task that nobody awaits
            log.exception("what is taken from pages of this replica is no longer counted")

    async def _follow(self) -> None:
        last_id: bytes | None = None
        backoff_s = FIRST_BACKOFF_S
        while not is_cancelled():
            try:
                if last_id is None:
                    last_id = await self._store.end()
                told = await self._store.after(last_id, BLOCK_MS)
            except (StoreUnavailable, StoreFault):  # which goes to the log where it is translated
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1))
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
                continue
            backoff_s = FIRST_BACKOFF_S
            for event in told:
                last_id = event.entry_id
                found = self._pages.find(event.request_id, event.item_id)
                if found is not None:
                    self._metrics.observe_attribution(found.recommender_id, found.rank)
        raise asyncio.CancelledError
