"""How many different items were recommended lately. Pure but for its clock."""

import threading
import time
from collections.abc import Callable, Iterable

HALF_WINDOW_S = 300.0


class Coverage:
    """Counts over two halves of a window, the one before and the one that runs: between 5 and 10 minutes.

    Any thread may note, so all of it is under a lock; noting costs as much as the ids of a batch.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._before: set[str] = set()
        self._now: set[str] = set()
        self._num_only_now = 0  # kept, as to compare the sets at each look takes long for a million items
        self._ends_at = clock() + HALF_WINDOW_S

    def note(self, item_ids: Iterable[str]) -> None:
        with self._lock:
            self._turn()
            fresh = set(item_ids) - self._now
            self._now |= fresh
            self._num_only_now += len(fresh - self._before)

    def num_items(self) -> int:
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
