"""The pages that this replica served lately, so that an event can tell where on its page an item stood,
and after which items it was taken.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

# When it was served, by which model, its items, best first, and the newest items of the history, oldest
# first. It is a plain tuple because the garbage collector stops visiting tuples of text and numbers, but
# visits every NamedTuple in each full collection.
Page = tuple[float, str, tuple[str, ...], tuple[str, ...]]

NUM_STRIDES = 64  # see ServedPages._forget


class Attribution(NamedTuple):
    """Where an event's item stood on its page."""

    recommender_id: str  # the model that served the page
    rank: int | None  # of the item on the page, from 1; None if it was not there
    history: tuple[str, ...]  # the newest items before the page, oldest first


class ServedPages:
    """The newest pages: at most `max_pages`, and none older than `attribution_s` seconds.

    Clients may choose request ids (X-Request-ID). If one comes twice, its newest page counts.
    """

    def __init__(
        self, max_pages: int, attribution_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`max_pages` may be 0: then no page is remembered."""
        self._max_pages = max_pages
        self._attribution_s = attribution_s
        self._clock = clock
        self._pages: dict[str, Page] = {}  # by request id, the oldest page first
        self._oldest_at = 0.0  # when the first of them was served, or earlier

    @property
    def num_pages(self) -> int:
        """The number of remembered pages. Reading it forgets those that are too old."""
        self._forget(self._clock())
        return len(self._pages)

    def remember(
        self, request_id: str, recommender_id: str, item_ids: Sequence[str], history: Sequence[str] = ()
    ) -> None:
        """Takes some microseconds. `history`: the newest items that the page was made from, oldest first."""
        if not self._max_pages:
            return
        now = self._clock()
        is_full = len(self._pages) >= self._max_pages
        if is_full or now - self._oldest_at > self._attribution_s * (1 + 1 / NUM_STRIDES):
            self._forget(now, self._max_pages // NUM_STRIDES + 1 if is_full else 0)
        if not self._pages:
            self._oldest_at = now
        self._pages.pop(request_id, None)  # or the new page would keep the place of the old one
        self._pages[request_id] = (now, recommender_id, tuple(item_ids), tuple(history))

    def find(self, request_id: str, item_id: str) -> Attribution | None:
        """None if this replica did not serve the page, or no longer remembers it."""
        page = self._pages.get(request_id)
        if page is None or self._is_expired(page, self._clock()):
            return None
        _, recommender_id, item_ids, history = page
        rank = item_ids.index(item_id) + 1 if item_id in item_ids else None
        return Attribution(recommender_id, rank, history)

    def _forget(self, now: float, num_surplus: int = 0) -> None:
        """Forget the oldest `num_surplus` pages, and all that are too old.

        Many at once: a dict finds its first entry by passing over those that were deleted before it, so to
        forget one page at a time would take longer with each page.
        """
        forgotten: list[str] = []
        for request_id, page in self._pages.items():
            if len(forgotten) >= num_surplus and not self._is_expired(page, now):
                self._oldest_at = page[0]
                break
            forgotten.append(request_id)
        for request_id in forgotten:
            del self._pages[request_id]

    def _is_expired(self, page: Page, now: float) -> bool:
        return now - page[0] > self._attribution_s
