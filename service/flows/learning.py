"""Learning while serving: an item that was taken after a history adds to the counts of both.

Every replica counts the events about the pages that it served, as it alone knows their histories. All
replicas then read the changed counts from Redis. The counts give a search its neighbors (core/co_counts.py).
"""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from service.catalog.catalog import Catalog
from service.core.co_counts import CoCountSpec
from service.errors import StoreFault, StoreUnavailable
from service.store.client import chunks
from service.store.co_counts import CoCountStore, Taken
from service.store.retry import retry
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

EVENTS_PER_TRY = 100
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 2.0


class Learned(NamedTuple):
    """What new events are counted by: the catalog and the counts of the model that answers requests."""

    catalog: Catalog
    spec: CoCountSpec


class Learner:
    """Counts the items that were taken. `now_by` gives None while no model with counts is served."""

    def __init__(self, store: CoCountStore, now_by: Callable[[], Learned | None], metrics: Metrics) -> None:
        self._store = store
        self._now_by = now_by
        self._metrics = metrics

    async def learn(self, taken: Sequence[Taken]) -> None:
        """Count these events, each once. Tries until Redis takes them.

        Items that the catalog does not know are left out, so that the counts cannot outgrow it. An event that
        Redis rejects is lost.
        """
        by = self._now_by()
        if by is None:
            return
        known = [
            Taken(each.event, list(filter(by.catalog.has, each.history)), each.item_id)
            for each in taken
            if by.catalog.has(each.item_id)
        ]
        for part in chunks(known, EVENTS_PER_TRY):
            try:
                num_new = await retry(
                    lambda part=part: self._store.count(part, by.spec),  # type: ignore[misc]
                    on=(StoreUnavailable,),
                    first_s=FIRST_BACKOFF_S,
                    max_s=MAX_BACKOFF_S,
                )
            except StoreFault:
                log.exception("%d events are not counted", len(part))
            else:
                self._metrics.learned_events.inc(num_new)
