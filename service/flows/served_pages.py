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
PAGES_PER_ID = 8  # a trace id that all parts of a site share; a constant id must not make `find` slow


class Attribution(NamedTuple):
    """Where an event's item stood on its page."""

    recommender_id: str  # the model that served the page
    rank: int | None  # of the item on the page, from 1; None if it was not there
    history: tuple[str, ...]  # the newest items before the page, oldest first


class ServedPages:
    """The newest pages: at most `max_pages`, and none older than `attribution_s` seconds.

    Clients may choose request ids (X-Request-ID), so several pages may have one: those of one screen, or of
    a request that was sent again. The newest PAGES_PER_ID of them are remembered.
    """

    def __init__(
        self, max_pages: int, attribution_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`max_pages` may be 0: then no page is remembered."""
        self._max_pages = max_pages
        self._attribution_s = attribution_s
        self._clock = clock
        # By request id: its pages, the newest first. The id whose newest page is the oldest comes first.
        self._pages: dict[str, tuple[Page, ...]] = {}
        self._num_pages = 0  # of all ids
        self._oldest_at = 0.0  # when the newest page of the first id was served, or earlier

    @property
    def num_pages(self) -> int:
        """The number of remembered pages. Reading it forgets those that are too old."""
        self._forget(self._clock())
        return self._num_pages

    def remember(
        self, request_id: str, recommender_id: str, item_ids: Sequence[str], history: Sequence[str] = ()
    ) -> None:
        """Takes some microseconds. `history`: the newest items that the page was made from, oldest first."""
        if not self._max_pages:
            return
        now = self._clock()
        is_full = self._num_pages >= self._max_pages
        if is_full or now - self._oldest_at > self._attribution_s * (1 + 1 / NUM_STRIDES):
            self._forget(now, self._max_pages // NUM_STRIDES + 1 if is_full else 0)
        if not self._pages:
            self._oldest_at = now
        page = (now, recommender_id, tuple(item_ids), tuple(history))
        older = self._pages.pop(request_id, ())  # taken out, or the id would keep its place in the order
        self._pages[request_id] = (page, *older[: PAGES_PER_ID - 1])
        self._num_pages += len(self._pages[request_id]) - len(older)

    def find(self, request_id: str, item_id: str) -> Attribution | None:
        """The newest page of this id that has the item, else its newest page.

        None if this replica served no page of this id, or no longer remembers one.
        """
        now = self._clock()
        pages = [each for each in self._pages.get(request_id, ()) if not self._is_expired(each, now)]
        if not pages:
            return None
        found = next((each for each in pages if item_id in each[2]), pages[0])
        _, recommender_id, item_ids, history = found
        rank = item_ids.index(item_id) + 1 if item_id in item_ids else None
        return Attribution(recommender_id, rank, history)

    def _forget(self, now: float, num_surplus: int = 0) -> None:
        """Forget the oldest ids, with at least `num_surplus` pages, and all whose pages are too old.

        Many at once: a dict finds its first entry by passing over those that were deleted before it, so to
        forget one page at a time would take longer with each page.
        """
        forgotten: list[str] = []
        num_forgotten = 0
        for request_id, (newest, *older) in self._pages.items():
            if num_forgotten >= num_surplus and not self._is_expired(newest, now):
                self._oldest_at = newest[0]
                break
            forgotten.append(request_id)
            num_forgotten += 1 + len(older)
        self._num_pages -= num_forgotten
        for request_id in forgotten:
            del self._pages[request_id]

    def _is_expired(self, page: Page, now: float) -> bool:
        return now - page[0] > self._attribution_s
