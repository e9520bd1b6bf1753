"""Many awaits become one batch: all jobs that wait when the device becomes idle are the next batch.

The batcher adds no wait: a job that finds the device idle runs at once, alone. Everything happens in the
event loop, except the run of a batch, which has the batcher's one thread. So the batcher's own state needs no
lock. `lock` protects the data that a batch reads: it is held while batches run, so a writer waits until those
that have begun are done.

While a batch runs and a whole further one waits, that one is given to the thread already. So the thread does
not wait for the event loop between them, which may be busy with other requests for longer than a batch takes.
A batch may also do its part in Python in the event loop, see `Prepared`. Then its thread hardly ever needs
the interpreter lock, which a busy event loop gives up only after its switch interval.

A job is not run if its caller has given up or its deadline has passed. A job that would wait too long is
refused before it is queued. Three things decide: the queue's length, the measured time per batch, and the
job's deadline. A caller whose request must still be read takes a `Reservation` first. Otherwise many requests
that come at once would all find the same room free, and all but one would be refused after they were read.
"""

import asyncio
import math
import threading
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from queue import SimpleQueue
from time import perf_counter
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from service.core.cpus import give_way
from service.core.turns import TurnLock
from service.errors import Overloaded, StoppedServing

Job = TypeVar("Job")
Result = TypeVar("Result")

MAX_RETRY_AFTER_S = 60
MAX_UNDER_WAY = 2  # batches that the thread has: one that runs, and the next one


class Answer(NamedTuple, Generic[Result]):
    """The result of one job, and how long it took in seconds."""

    result: Result
    queue_s: float  # in which it waited
    run_s: float  # of its batch


class Reply(Protocol[Result]):
    """Who waits for a job, as an asyncio.Future does. It is told the answer or an error in the event loop."""

    def done(self) -> bool:
        """Whether nobody waits any more."""

    def set_result(self, answer: Answer[Result], /) -> None:
        """Take the answer."""

    def set_exception(self, error: BaseException, /) -> None:
        """Take the error in place of an answer: StoppedServing, TimeoutError, or what `run` raised."""


class Prepared(Protocol[Result]):
    """A batch whose part in Python is so short that the event loop does it."""

    def run(self) -> None:
        """The arithmetic, in the batcher's thread."""

    def finish(self) -> list[Result]:
        """The results after `run`, one for each job. It runs in the event loop."""


class BatchStats(NamedTuple):
    """The jobs and the units of work of a batch that has run, and its duration in seconds.

    If it waited for the batch before it, its duration begins with the end of that one.
    """

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


class _Whole(Generic[Job, Result]):
    """A batch that runs in the thread as a whole."""

    def __init__(self, call: Callable[[list[Job]], list[Result]], jobs: list[Job]) -> None:
        self._call, self._jobs = call, jobs
        self._results: list[Result] = []

    def run(self) -> None:
        self._results = self._call(self._jobs)

    def finish(self) -> list[Result]:
        return self._results


@dataclass(slots=True)
class _Batch(Generic[Job, Result]):
    waiting: "list[_Waiting[Job, Result]]"
    units: int
    prepared: Prepared[Result]
    begun_at: float
    run_s: float  # in the event loop so far, and then of the run, too
    error: BaseException | None = None  # of the run


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
        lock: TurnLock | None = None,
        gives_way: bool = False,
        prepare: Callable[[list[Job]], Prepared[Result] | None] = lambda _jobs: None,
    ) -> None:
        """`gives_way`: on Linux, the batcher's thread gets a lower priority than all other threads.

        `prepare` is called in the event loop, and gives None for a batch that `run` must do as a whole.
        """
        self._run = run
        self._name = name
        self._max_batch_units = max_batch_units
        self.max_queued_units = max_queued_units
        self._max_wait_s = max_wait_s
        self._units = units
        self._observe = observe
        self._lock = lock
        self._gives_way = gives_way
        self._prepare = prepare
        self._queue: deque[_Waiting[Job, Result]] = deque()
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None
        self._to_run: SimpleQueue[Callable[[], None] | None] = SimpleQueue()  # by the thread; None: no more
        self._under_way: deque[_Batch[Job, Result]] = deque()  # given to the thread, the oldest first
        self._turn: asyncio.Future[None] | None = None  # while batches may begin; done at its end
        self._ended_at = 0.0  # the newest end of a batch
        self._batch_s = 0.0  # moving average of a batch's duration
        self._refusals: dict[int, Overloaded] = {}  # by the seconds after which to try again
        self.reserved_units = 0
        self.queued_units = 0
        self.num_admitted = 0  # jobs since the start

    @property
    def running_units(self) -> int:
        """Units of the batches that the thread has."""
        return sum(batch.units for batch in self._under_way)

    def start(self) -> None:
        """Start the batcher's thread and task. Call it in the event loop that submits the jobs."""
        self._thread = threading.Thread(target=self._work_off, name=self._name, daemon=True)
        self._thread.start()
        self._worker = asyncio.create_task(self._work(), name=f"{self._name} batcher")

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
        self._to_run.put(None)
        await asyncio.to_thread(thread.join)

    def check_room(self, units: int = 1, deadline: float = math.inf) -> None:
        """Raise Overloaded if `units` more do not fit, or would wait too long.

        An empty queue accepts a job of any size.
        """
        retry_after_s = self._refused_for(units, deadline)
        if retry_after_s:
            raise Overloaded(self._name, retry_after_s)

    def refusal(self, units: int = 1) -> Overloaded | None:
        """What `check_room` would raise. Under overload most calls end here, where an exception is slower."""
        retry_after_s = self._refused_for(units, math.inf)
        if not retry_after_s:
            return None
        found = self._refusals.get(retry_after_s)
        if found is None:
            found = self._refusals[retry_after_s] = Overloaded(self._name, retry_after_s)
        return found

    def _refused_for(self, units: int, deadline: float) -> int:
        """Seconds after which to ask again; 0 if there is room."""
        waiting_units = self.reserved_units + self.queued_units
        if not waiting_units:
            return 0
        num_units = waiting_units + units
        num_batches = (num_units - 1) // self._max_batch_units + len(self._under_way)
        wait_s = num_batches * self._batch_s  # until the job's own batch begins
        if (
            num_units <= self.max_queued_units
            and (num_batches <= 1 or wait_s <= self._max_wait_s)  # the next batch is always soon enough
            and (deadline == math.inf or wait_s <= deadline - asyncio.get_running_loop().time())
        ):
            return 0
        return min(max(1, math.ceil(wait_s)), MAX_RETRY_AFTER_S)

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
        if self._turn is None:
            self._arrived.set()
        elif self.queued_units >= self._max_batch_units:
            self._go_on()

    def _work_off(self) -> None:
        """What the thread does."""
        if self._gives_way:
            give_way()
        while (work := self._to_run.get()) is not None:
            work()

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            async with self._lock or nullcontext():
                turn = self._turn = asyncio.get_running_loop().create_future()
                try:  # only now: the first batch has the jobs that came while we waited for the lock
                    self._begin()
                    if self._under_way:
                        await turn
                except asyncio.CancelledError:  # stop(): nobody may wait for ever
                    for batch in self._under_way:
                        _fail(batch.waiting, StoppedServing())
                    raise
                finally:
                    self._turn = None
            if self._queue:
                self._arrived.set()

    def _go_on(self) -> None:
        """Begin further batches in the turn, unless somebody else waits for the lock."""
        while (
            self._queue
            and len(self._under_way) < MAX_UNDER_WAY
            and not (self._under_way and self.queued_units < self._max_batch_units)  # it may become fuller
            and not (self._lock is not None and self._lock.is_wanted)
        ):
            self._begin()

    def _begin(self) -> None:
        """Give the next batch to the thread."""
        waiting = self._take()
        if not waiting:
            return
        begun_at, jobs = perf_counter(), [each.job for each in waiting]
        try:
            prepared = self._prepare(jobs) or _Whole(self._run, jobs)
        except Exception as error:  # outermost loop: nobody may wait for ever
            _fail(waiting, error)
            return
        units = sum(each.units for each in waiting)
        batch = _Batch(waiting, units, prepared, begun_at, perf_counter() - begun_at)
        loop = asyncio.get_running_loop()

        def work() -> None:
            run_at = perf_counter()
            try:
                prepared.run()
            except BaseException as raised:  # outermost loop: nobody may wait for ever
                batch.error = raised
            batch.run_s += perf_counter() - run_at
            loop.call_soon_threadsafe(self._end, batch)

        self._under_way.append(batch)
        self._to_run.put(work)

    def _end(self, batch: _Batch[Job, Result]) -> None:
        """Runs in the event loop and answers the callers directly: a further pass of a busy loop is slow.

        The next batch starts first, so that the device works while answers are written.
        """
        self._under_way.popleft()
        ended_at = perf_counter()
        self._note(
            BatchStats(len(batch.waiting), batch.units, ended_at - max(batch.begun_at, self._ended_at))
        )
        self._ended_at = ended_at
        if self._turn is not None:
            self._go_on()
        results, error = list[Result](), batch.error
        if error is None:
            try:
                results = batch.prepared.finish()
                if len(results) != len(batch.waiting):
                    raise RuntimeError(f"{self._name}: {len(results)} results for {len(batch.waiting)} jobs")
            except Exception as raised:  # outermost loop: nobody may wait for ever
                error = raised
        now = perf_counter()
        run_s = batch.run_s + now - ended_at
        if error is not None:
            _fail(batch.waiting, error)
        for waiting, result in zip(batch.waiting, results, strict=False):
            if not waiting.reply.done():  # its caller may have gone away
                waiting.reply.set_result(Answer(result, now - waiting.submitted_at - run_s, run_s))
        if self._turn is not None:
            self._go_on()  # an answer may have led to another job
            if not self._under_way:
                turn, self._turn = self._turn, None  # at once, as no batch may begin from now on
                if not turn.done():  # stop() has cancelled it
                    turn.set_result(None)

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
