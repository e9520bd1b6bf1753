"""What a start tells while it reads the items of a catalog, which takes minutes where there are many."""

import logging
from time import monotonic

from service.lifecycle.model import Readiness
from service.store.rollout import RolloutStore
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

SHOW_S = 1.0  # between two looks at Redis, which count the items in O(1)
LOG_S = 10.0


class ReadingProgress:
    """Shows how many items a tokenizer has read: in the phase, in the metrics, and at times in the log."""

    def __init__(
        self, changes: RolloutStore, tokenizer_id: str, readiness: Readiness, metrics: Metrics
    ) -> None:
        self._changes = changes
        self._tokenizer_id = tokenizer_id
        self._readiness = readiness
        self._metrics = metrics
        self._began_at = self._shown_at = self._logged_at = monotonic()
        self._first = 0

    async def begin(self) -> None:
        """Show where the reading begins. Raises StoreUnavailable or StoreFault, as the other methods do."""
        self._first, told = await self._show()
        log.info("%s", told)

    async def after_chunk(self, _spent_s: float) -> None:
        """Show the progress if it is due. The argument makes it a `Pace` of seeding.py."""
        now = monotonic()
        if now - self._shown_at < SHOW_S:
            return
        self._shown_at = now
        num_read, told = await self._show()
        if now - self._logged_at >= LOG_S:
            self._logged_at = now
            log.info("%s, %.0f a second", told, (num_read - self._first) / (now - self._began_at))

    async def end(self) -> None:
        """Show that all are read, or how many are left for others."""
        _, told = await self._show()
        log.info("%s", told)

    async def _show(self) -> tuple[int, str]:
        num_read, num_items = await self._changes.progress(self._tokenizer_id)
        told = f"reading the items of the catalog: {num_read:,} of {num_items:,}"
        self._readiness.say(told)
        self._metrics.rollout_items.set(num_items)
        self._metrics.rollout_read_items.set(num_read)
        return num_read, told
