"""Many awaits become one batch: whatever waits when the device falls idle is the next batch.

No wait is added: a job that finds the device idle runs at once and alone. All of it happens in the event
loop, except `run` in the batcher's one thread, so nothing here needs a lock. `turns` is for what `run` reads:
it is held while a batch runs, so whoever writes under it waits, and a batch sees no half of a change.

A job whose caller has given up, or whose deadline has passed, is not run. Whoever would wait too long is
turned away before anything is queued: by the work in the queue, by the time that it takes, by the deadline.
A caller that must still be heard out reserves its `Place` first: else all of those that come at once would
find the same room free, and all but the first would be turned away only after they were heard.
"""

import asyncio
import math
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Generic, NamedTuple, TypeVar

from service.errors import Overloaded, StoppedServing

Job = TypeVar("Job")
Result = TypeVar("Result")

MAX_RETRY_AFTER_S = 60
NICENESS = 10


class Answer(NamedTuple, Generic[Result]):
    result: Result
    queue_s: float  # from submit to the start of its batch
    run_s: float  # of its batch


class BatchStats(NamedTuple):
    num_jobs: int
    num_units: int
    run_s: float


@dataclass(slots=True)
class _Waiting(Generic[Job, Result]):
    job: Job
    units: int
    future: "asyncio.Future[Answer[Result]]"
    deadline: float  # of the event loop's clock
    submitted_at: float = field(default_factory=perf_counter)


class Place:
    """Room in a queue for a job to come. Give it back when the job is submitted, or does not come."""

    __slots__ = ("_batcher", "_units")

    def __init__(self, batcher: "MicroBatcher[Any, Any]", units: int) -> None:
        self._batcher, self._units = batcher, units
        batcher.reserved_units += units

    @property
    def is_held(self) -> bool:
        return self._units > 0

    def give_back(self) -> None:
        self._batcher.reserved_units -= self._units
        self._units = 0


class MicroBatcher(Generic[Job, Result]):
    """Gives `run` lists of jobs, in order of arrival; `run` answers with one result for each.

    The queue is bounded in units of work, as `units` counts them. A job larger than a whole batch runs alone.
    """

    def __init__(
        self,
        run: Callable[[list[Job]], list[Result]],
        *,
        name: str,
        max_batch_units: int,
        max_queued_units: int,
        max_wait_s: float = math.inf,
        units: Callable[[Job], int] = lambda _job: 1,
        observe: Callable[[BatchStats], None] = lambda _stats: None,
        turns: asyncio.Lock | None = None,
        gives_way: bool = False,
    ) -> None:
        """`gives_way`: on Linux its thread leaves the processor to all others that want it."""
        self._run = run
        self._name = name
        self._max_batch_units = max_batch_units
        self.max_queued_units = max_queued_units
        self._max_wait_s = max_wait_s
        self._units = units
        self._observe = observe
        self._turns: AbstractAsyncContextManager[object] = turns or nullcontext()
        self._gives_way = gives_way
        self._queue: deque[_Waiting[Job, Result]] = deque()
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._batch_s = 0.0  # moving average of what a batch takes
        self.reserved_units = 0
        self.queued_units = 0
        self.running_units = 0
        self.num_admitted = 0  # jobs ever taken in

    def start(self) -> None:
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix=self._name, initializer=give_way if self._gives_way else None
        )
        self._worker = asyncio.create_task(self._work(self._thread), name=f"{self._name} batcher")

    async def stop(self) -> None:
        """Let the batch in hand end, and fail whatever still waits."""
        worker, thread, self._worker, self._thread = self._worker, self._thread, None, None
        if worker is None or thread is None:
            return
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
        while self._queue:
            _fail([self._queue.popleft()], StoppedServing())
        self.queued_units = 0
        await asyncio.to_thread(thread.shutdown)

    def check_room(self, units: int = 1, deadline: float = math.inf) -> None:
        """Raise Overloaded where `units` more do not fit, or would wait too long.

        An empty queue takes a job of any size.
        """
        waiting_units = self.reserved_units + self.queued_units
        if not waiting_units:
            return
        num_units = waiting_units + units
        num_batches = math.ceil(num_units / self._max_batch_units) - 1 + (self.running_units > 0)
        wait_s = num_batches * self._batch_s  # until its own batch begins
        is_late = num_batches > 1 and wait_s > self._max_wait_s  # the next batch takes what it can hold
        is_late |= wait_s > deadline - asyncio.get_running_loop().time()
        if is_late or num_units > self.max_queued_units:
            raise Overloaded(self._name, min(max(1, math.ceil(wait_s)), MAX_RETRY_AFTER_S))

    def reserve(self, units: int) -> Place:
        """Room for a job to come, of about that size. Raises Overloaded as check_room does."""
        self.check_room(units)
        return Place(self, units)

    async def submit(
        self, job: Job, *, is_admitted: bool = False, deadline: float = math.inf
    ) -> Answer[Result]:
        """Run the job in some batch. Raises Overloaded at once where the queue is full.

        Not where it `is_admitted`: it had a place, or goes on with what the queue has taken and run before.
        To turn that away halfway would waste the first half, and as it waits in the queue new work stays out.
        Raises TimeoutError where its batch would begin after the deadline, of the event loop's clock.
        """
        if self._worker is None:
            raise StoppedServing
        units = self._units(job)
        if not is_admitted:
            self.check_room(units, deadline)
        future: asyncio.Future[Answer[Result]] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(job, units, future, deadline)
        self._queue.append(waiting)
        self.queued_units += units
        self.num_admitted += 1
        self._arrived.set()
        return await waiting.future

    async def _work(self, thread: ThreadPoolExecutor) -> None:
        while True:
            await self._arrived.wait()
            async with self._turns:
                batch = self._take()  # not before: what comes during the wait for the turn is in it
                if batch:
                    await self._run_batch(batch, thread)

    async def _run_batch(self, batch: "list[_Waiting[Job, Result]]", thread: ThreadPoolExecutor) -> None:
        self.running_units = sum(waiting.units for waiting in batch)
        jobs, started_at = [waiting.job for waiting in batch], perf_counter()
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def work() -> None:
            results, error = list[Result](), None
            try:
                results = self._run(jobs)
                if len(results) != len(batch):
                    raise RuntimeError(f"{self._name}: {len(results)} results for {len(batch)} jobs")
            except BaseException as raised:  # outermost loop: nobody may wait for ever
                error = raised
            loop.call_soon_threadsafe(end, results, error)

        def end(results: list[Result], error: BaseException | None) -> None:
            """In the event loop, and straight to the callers: under load each turn of it takes its time.

            The next batch is the first to go on, so that the device works while answers are written.
            """
            run_s = perf_counter() - started_at
            self._note(BatchStats(len(batch), self.running_units, run_s))
            self.running_units = 0
            if not ended.done():
                ended.set_result(None)
            if error is not None:
                _fail(batch, error)
            for waiting, result in zip(batch, results, strict=False):
                if not waiting.future.done():  # its caller may have gone away
                    waiting.future.set_result(Answer(result, started_at - waiting.submitted_at, run_s))

        thread.submit(work)
        try:
            await ended
        except asyncio.CancelledError:  # stop(): nobody may wait for ever
            _fail(batch, StoppedServing())
            raise

    def _take(self) -> list[_Waiting[Job, Result]]:
        """As many of the oldest jobs as one batch holds, without those that nobody waits for any more."""
        now = asyncio.get_running_loop().time()
        batch: list[_Waiting[Job, Result]] = []
        units = 0
        while self._queue:
            waiting = self._queue[0]
            if now > waiting.deadline:  # a busy event loop may be late to tell its caller
                _fail([waiting], TimeoutError())
            gone = waiting.future.done()
            if not gone and batch and units + waiting.units > self._max_batch_units:
                break
            self._queue.popleft()
            self.queued_units -= waiting.units
            if not gone:
                batch.append(waiting)
                units += waiting.units
        if not self._queue:
            self._arrived.clear()
        return batch

    def _note(self, stats: BatchStats) -> None:
        # One batch that was held up by something else is not to turn work away: it counts twice at most.
        run_s = min(stats.run_s, 2 * self._batch_s) if self._batch_s else stats.run_s
        self._batch_s = 0.8 * self._batch_s + 0.2 * run_s if self._batch_s else run_s
        self._observe(stats)


def give_way() -> None:
    """Make the calling thread as nice as a batch job is; Linux alone has that for a thread."""
    with suppress(AttributeError, OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def _fail(batch: "list[_Waiting[Job, Result]]", error: BaseException) -> None:
    for waiting in batch:
        if not waiting.future.done():
            waiting.future.set_exception(error)
