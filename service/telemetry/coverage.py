"""Counts how many different items were recommended lately. Pure, except for its clock."""

import threading
import time
from collections.abc import Callable, Iterable

HALF_WINDOW_S = 300.0


class Coverage:
    """Counts the items of the current half window and of the one before: of the last 5 to 10 minutes.

    Any thread may call it, so a lock guards it. A note takes time in proportion to the ids of its batch.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._before: set[str] = set()
        self._now: set[str] = set()
        self._num_only_now = 0  # kept, as comparing sets of a million items takes long
        self._ends_at = clock() + HALF_WINDOW_S

    def note(self, item_ids: Iterable[str]) -> None:
        """Count these items as recommended now."""
        with self._lock:
            self._turn()
            fresh = set(item_ids) - self._now
            self._now |= fresh
            self._num_only_now += len(fresh - self._before)

    def num_items(self) -> int:
        """Different items of the window."""
        with self._lock:
            self._turn()
            return len(self._before) + self._num_only_now

    def _turn(self) -> None:
        late_s = self._clock() - self._ends_at
        if late_s < 0:
            return
        self._before = self._now if late_s < HALF_WINDOW_S else set()
        self._now, self._num_only_now = set(), 0
        self._ends_at = self._clock() + HALF_WINDOW_S
