"""The POST /recommend flow: searches in the queue, ever wider, until one fills the page. It needs no Redis.

search.py has the search itself, from the history's codes to the items of the page.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from service.core.filters import DeclaredFields
from service.errors import ServiceError
from service.flows.deadlines import within
from service.flows.ranker import NoRanker
from service.flows.search import Page, Query, Search
from service.inference.batching import Answer, MicroBatcher, Reservation
from service.telemetry.metrics import Metrics
from service.telemetry.stages import Stages


class Recommended(NamedTuple):
    """A page, and how wide the search for it became."""

    page: Page
    num_beams: int  # of the search that found it
    widened: int  # how often the search was repeated with more beams
    beam_limit_reached: bool  # and the page is still not full, or not proven if asked for


class Recommending:
    """A query whose searches are under way, for a caller that does not wait. The queue tells it the pages.

    `on_end` is called once, in the event loop, when `recommended` or `error` is set. Until then the seconds
    of each stage add up over its searches.
    """

    __slots__ = (
        "_batcher",
        "_on_end",
        "_query",
        "_width",
        "_widths",
        "deadline",
        "decode_s",
        "error",
        "history_s",
        "queue_s",
        "recommended",
        "resolve_s",
    )

    def __init__(
        self,
        query: Query,
        widths: tuple[int, ...],
        batcher: MicroBatcher[Search, Page],
        deadline: float,
        on_end: "Callable[[Recommending], None]",
    ) -> None:
        self._query, self._widths, self._batcher, self._on_end = query, widths, batcher, on_end
        self.deadline = deadline
        self._width = 0  # of the search that runs, its index in `widths`
        self.queue_s = self.history_s = self.decode_s = self.resolve_s = 0.0
        self.recommended: Recommended | None = None
        self.error: BaseException | None = None

    def search(self, *, is_admitted: bool) -> None:
        """Put the search with the present width into the queue. Raises Overloaded, StoppedServing."""
        num_beams = self._widths[self._width]
        search = Search(self._query, num_beams, self._width == len(self._widths) - 1)
        self._batcher.put(search, self, is_admitted=is_admitted, deadline=self.deadline)

    def give_up(self, error: BaseException) -> None:
        """End with this error. A search that waits is not run."""
        self.error = error
        self._on_end(self)

    def done(self) -> bool:
        """Whether it has ended."""
        return self.recommended is not None or self.error is not None

    def set_exception(self, error: BaseException) -> None:
        """End with an error of the queue."""
        self.give_up(error)

    def set_result(self, answer: Answer[Page]) -> None:
        """End with this page, or search again with more beams."""
        page, queue_s, run_s = answer
        self.queue_s += queue_s
        self.history_s += page.history_s
        self.decode_s += page.decode_s
        self.resolve_s += run_s - page.history_s - page.decode_s
        is_last = self._width == len(self._widths) - 1
        if page.is_settled or is_last:
            self.recommended = Recommended(
                page, self._widths[self._width], self._width, beam_limit_reached=not page.is_settled
            )
            self._on_end(self)
            return
        self._width += 1
        try:
            self.search(is_admitted=True)
        except ServiceError as error:  # the queue was stopped
            self.give_up(error)


class Recommender:
    """Answers queries for one model. `timeout_s` limits each of them, including its time in the queue.

    The first search of a query has `num_beams` beams, or more if the page needs them. The widest has
    `beam_limit`.
    """

    def __init__(
        self,
        batcher: MicroBatcher[Search, Page],
        *,
        fields: DeclaredFields,
        num_beams: int,
        beam_limit: int,
        timeout_s: float,
        metrics: Metrics,
        has_ranker: bool = False,
    ) -> None:
        """`has_ranker`: whether the function of the batcher can rerank."""
        self._batcher = batcher
        self._fields = fields
        self._widths = widths(num_beams, beam_limit)
        self._timeout_s = timeout_s
        self._metrics = metrics
        self._has_ranker = has_ranker

    async def recommend(
        self,
        query: Query,
        stages: Stages,
        deadline: float = math.inf,
        reservation: Reservation | None = None,
    ) -> Recommended:
        """A page of items, by the deadline (of the event loop's clock) or the timeout, whichever is first.

        The first search uses the `reservation`, where there is one. Raises NoRanker, UnknownFilterField,
        InvalidFilter, Overloaded, TookTooLong.
        """
        if query.rerank and not self._has_ranker:
            raise NoRanker
        if query.filter is not None:
            self._fields.check(query.filter)
        async with within(deadline, self._timeout_s, "The recommendation") as deadline:
            answer = await self._recommend(query, stages, deadline, reservation)
        self._metrics.observe_recommendation(
            answer.page.source, exact=answer.page.exact, filtered=query.filter is not None
        )
        self._metrics.widenings.inc(answer.widened)
        self._metrics.reranked_pages.inc(query.rerank)
        self._metrics.unknown_items.inc(len(answer.page.unknown_item_ids))
        stages.flow = "recommend"
        return answer

    def begin(
        self,
        query: Query,
        deadline: float,
        reservation: Reservation | None,
        on_end: Callable[[Recommending], None],
    ) -> Recommending:
        """`recommend` for a caller that does not wait, keeps the deadline itself, and counts the answers.

        `query` has neither a filter nor `rerank`. Raises Overloaded, StoppedServing.
        """
        recommending = Recommending(query, self._widths_for(query), self._batcher, deadline, on_end)
        is_admitted = reservation is not None and reservation.is_held
        if reservation is not None:
            reservation.release()
        recommending.search(is_admitted=is_admitted)
        return recommending

    @property
    def timeout_s(self) -> float:
        """The limit of each query, including its time in the queue."""
        return self._timeout_s

    async def _recommend(
        self, query: Query, stages: Stages, deadline: float, reservation: Reservation | None
    ) -> Recommended:
        """The narrowest search that fills the page, and proves it if asked for."""
        wider = self._widths_for(query)
        for widened, num_beams in enumerate(wider):
            is_last = num_beams == wider[-1]
            search = Search(query, num_beams, is_last)
            is_admitted = widened > 0 or (reservation is not None and reservation.is_held)
            if reservation is not None:
                reservation.release()
            answer = await self._batcher.submit(search, is_admitted=is_admitted, deadline=deadline)
            page = answer.result
            reranked = {} if page.rerank_s is None else {"rerank": page.rerank_s}
            stages.add_row(
                queue=answer.queue_s,
                history=page.history_s,
                decode=page.decode_s,
                resolve=answer.run_s - page.history_s - page.decode_s - sum(reranked.values()),
                **reranked,
            )
            if page.is_settled or is_last:
                return Recommended(page, num_beams, widened, beam_limit_reached=not page.is_settled)
        raise AssertionError("there is a last width")

    def _widths_for(self, query: Query) -> tuple[int, ...]:
        """The widths to try, narrowest first.

        Excluded items use up beams, but only a search shows how many. The first width is at most doubled for
        them: most excluded items are not among the best, and a search that is too wide costs more than one
        that is too narrow and repeated.
        """
        if self._widths[0] >= 2 * query.limit:  # whatever is excluded
            return self._widths
        needed = query.limit + min(query.limit, len(query.excluded))
        return tuple(width for width in self._widths if width >= needed) or self._widths[-1:]


def widths(num_beams: int, beam_limit: int) -> tuple[int, ...]:
    """The widths that a search may have, doubling up to the limit. Few, so that requests share runs."""
    found = [min(num_beams, beam_limit)]
    while found[-1] < beam_limit:
        found.append(min(2 * found[-1], beam_limit))
    return tuple(found)
