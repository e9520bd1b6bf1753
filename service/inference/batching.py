"""Many awaits become one batch: all jobs that wait when the device becomes idle are the next batch.

The batcher adds no wait: a job that finds the device idle runs at once, alone. Everything happens in the
event loop, except `run`, which has the batcher's one thread. So the batcher's own state needs no lock. `lock`
protects the data that `run` reads: it is held while a batch runs, so a writer waits until the batch is done.

A job is not run if its caller has given up or its deadline has passed. A job that would wait too long is
refused before it is queued. Three things decide: the queue's length, the measured time per batch, and the
job's deadline. A caller whose request must still be read takes a `Reservation` first. Otherwise many requests
that come at once would all find the same room free, and all but one would be refused after they were read.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from service.core.cpus import give_way
from service.errors import Overloaded, StoppedServing

Job = TypeVar("Job")
Result = TypeVar("Result")

MAX_RETRY_AFTER_S = 60


class Answer(NamedTuple, Generic[Result]):
    """The result of one job, and how long it took in seconds."""

    result: Result
    queue_s: float  # from submit to the start of its batch
    run_s: float  # of its batch


class Reply(Protocol[Result]):
    """Who waits for a job, as an asyncio.Future does. It is told the answer or an error in the event loop."""

    def done(self) -> bool:
        """Whether nobody waits any more."""

    def set_result(self, answer: Answer[Result], /) -> None:
        """Take the answer."""

    def set_exception(self, error: BaseException, /) -> None:
        """Take the error in place of an answer: StoppedServing, TimeoutError, or what `run` raised."""


class BatchStats(NamedTuple):
    """The jobs and the units of work of a batch that has run, and its duration in seconds."""

    num_jobs: int
    num_units: int
    run_s: float


@dataclass(slots=True)
class _Waiting(Generic[Job, Result]):
    job: Job
    units: int
    reply: "Reply[Result]"
    deadline: float  # of the event loop's clock
    submitted_at: float = field(default_factory=perf_counter)


class Reservation:
    """Room in a queue for a job that will come. Release it when the job is submitted, or does not come."""

    __slots__ = ("_batcher", "_units")

    def __init__(self, batcher: "MicroBatcher[Any, Any]", units: int) -> None:
        self._batcher, self._units = batcher, units
        batcher.reserved_units += units

    @property
    def is_held(self) -> bool:
        """Whether the room is still reserved. False after `release`."""
        return self._units > 0

    def release(self) -> None:
        """Give the room back. Safe to repeat."""
        self._batcher.reserved_units -= self._units
        self._units = 0


class MicroBatcher(Generic[Job, Result]):
    """Calls `run` with lists of jobs in order of arrival; `run` returns one result for each job.

    The queue is bounded in units of work, as `units` counts them. A job larger than a batch runs alone.
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
        lock: asyncio.Lock | None = None,
        gives_way: bool = False,
    ) -> None:
        """`gives_way`: on Linux, the batcher's thread gets a lower priority than all other threads."""
        self._run = run
        self._name = name
        self._max_batch_units = max_batch_units
        self.max_queued_units = max_queued_units
        self._max_wait_s = max_wait_s
        self._units = units
        self._observe = observe
        self._lock: AbstractAsyncContextManager[object] = lock or nullcontext()
        self._gives_way = gives_way
        self._queue: deque[_Waiting[Job, Result]] = deque()
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._batch_s = 0.0  # moving average of a batch's duration
        self.reserved_units = 0
        self.queued_units = 0
        self.running_units = 0
        self.num_admitted = 0  # jobs since the start

    def start(self) -> None:
        """Start the batcher's thread and task. Call it in the event loop that submits the jobs."""
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix=self._name, initializer=give_way if self._gives_way else None
        )
        self._worker = asyncio.create_task(self._work(self._thread), name=f"{self._name} batcher")

    async def stop(self) -> None:
        """Let the running batch end, and fail all jobs that still wait."""
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
        """Raise Overloaded if `units` more do not fit, or would wait too long.

        An empty queue accepts a job of any size.
        """
        waiting_units = self.reserved_units + self.queued_units
        if not waiting_units:
            return
        num_units = waiting_units + units
        num_batches = math.ceil(num_units / self._max_batch_units) - 1 + (self.running_units > 0)
        wait_s = num_batches * self._batch_s  # until the job's own batch begins
        is_late = num_batches > 1 and wait_s > self._max_wait_s  # the next batch is always soon enough
        is_late |= wait_s > deadline - asyncio.get_running_loop().time()
        if is_late or num_units > self.max_queued_units:
            raise Overloaded(self._name, min(max(1, math.ceil(wait_s)), MAX_RETRY_AFTER_S))

    def reserve(self, units: int) -> Reservation:
        """Reserve room for a job of about that size. Raises Overloaded as check_room does."""
        self.check_room(units)
        return Reservation(self, units)

    async def submit(
        self, job: Job, *, is_admitted: bool = False, deadline: float = math.inf
    ) -> Answer[Result]:
        """Run the job in a batch. Raises Overloaded at once if the queue is full.

        A job that `is_admitted` is never refused: it had a reservation, or it continues a job that was run
        before. Refusing it halfway would waste the first half, and while it waits it keeps new work out.
        Raises TimeoutError if its batch would begin after the deadline (by the event loop's clock).
        """
        future: asyncio.Future[Answer[Result]] = asyncio.get_running_loop().create_future()
        self.put(job, future, is_admitted=is_admitted, deadline=deadline)
        return await future

    def put(
        self,
        job: Job,
        reply: Reply[Result],
        *,
        is_admitted: bool = False,
        deadline: float = math.inf,
    ) -> None:
        """`submit` for a caller that does not wait: `reply` is told the answer. Raises the same at once."""
        if self._worker is None:
            raise StoppedServing
        units = self._units(job)
        if not is_admitted:
            self.check_room(units, deadline)
        self._queue.append(_Waiting(job, units, reply, deadline))
        self.queued_units += units
        self.num_admitted += 1
        self._arrived.set()

    async def _work(self, thread: ThreadPoolExecutor) -> None:
        while True:
            await self._arrived.wait()
            async with self._lock:
                batch = self._take()  # only now: it has the jobs that came while we waited for the lock
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
            """Runs in the event loop and answers the callers directly: a further pass of a busy loop is slow.

            The next batch starts first, so that the device works while answers are written.
            """
            run_s = perf_counter() - started_at
            self._note(BatchStats(len(batch), self.running_units, run_s))
            self.running_units = 0
            if not ended.done():
                ended.set_result(None)
            if error is not None:
                _fail(batch, error)
            for waiting, result in zip(batch, results, strict=False):
                if not waiting.reply.done():  # its caller may have gone away
                    waiting.reply.set_result(Answer(result, started_at - waiting.submitted_at, run_s))

        thread.submit(work)
        try:
            await ended
        except asyncio.CancelledError:  # stop(): nobody may wait for ever
            _fail(batch, StoppedServing())
            raise

    def _take(self) -> list[_Waiting[Job, Result]]:
        """As many of the oldest jobs as one batch holds, without those that nobody waits for."""
        now = asyncio.get_running_loop().time()
        batch: list[_Waiting[Job, Result]] = []
        units = 0
        while self._queue:
            waiting = self._queue[0]
            if now > waiting.deadline:  # a busy event loop may tell the caller late
                _fail([waiting], TimeoutError())
            gone = waiting.reply.done()
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
        # One batch that something else delayed must not refuse work: it counts as twice the average at most.
        run_s = min(stats.run_s, 2 * self._batch_s) if self._batch_s else stats.run_s
        self._batch_s = 0.8 * self._batch_s + 0.2 * run_s if self._batch_s else run_s
        self._observe(stats)


def _fail(batch: "list[_Waiting[Job, Result]]", error: BaseException) -> None:
    for waiting in batch:
        if not waiting.reply.done():
            waiting.reply.set_exception(error)
