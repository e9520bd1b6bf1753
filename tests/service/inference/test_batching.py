import asyncio
import os
import sys
import threading
import time

import pytest

from service.core.turns import TurnLock
from service.errors import Overloaded, StoppedServing
from service.inference.batching import BatchStats, MicroBatcher
from tests.service.catalogs import until


class Device:
    """Doubles numbers, batch by batch, and waits inside a batch while the gate is closed."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()

    def run(self, jobs: list[int]) -> list[int]:
        self.batches.append(jobs)
        self.threads.add(threading.get_ident())
        self.entered.release()
        assert self.gate.wait(10)
        if any(job < 0 for job in jobs):
            raise ValueError("a negative job")
        return [2 * job for job in jobs]

    async def enters(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=10)


@pytest.fixture
def device():
    device = Device()
    device.gate.set()
    yield device
    device.gate.set()  # or a failed test would leave its thread waiting


@pytest.fixture
async def make(device):
    made = []

    def make(**overrides):
        options = {"name": "test", "max_batch_units": 4, "max_queued_units": 8} | overrides
        batcher = MicroBatcher(device.run, **options)
        batcher.start()
        made.append(batcher)
        return batcher

    yield make
    device.gate.set()
    for batcher in made:
        await batcher.stop()


async def fill(batcher, device, jobs):
    """Occupy the device with job 0 and put `jobs` in the queue behind it."""
    device.gate.clear()
    tasks = [asyncio.create_task(batcher.submit(0))]
    await device.enters()
    tasks += [asyncio.create_task(batcher.submit(job)) for job in jobs]
    await asyncio.sleep(0)  # lets every task reach its submit
    return tasks


async def test_each_caller_gets_the_result_of_its_own_job(make):
    batcher = make(max_queued_units=1000)
    answers = await asyncio.gather(*(batcher.submit(job) for job in range(200)))
    assert [answer.result for answer in answers] == [2 * job for job in range(200)]


async def test_a_lone_job_runs_at_once_and_alone(make, device):
    answer = await make().submit(21)
    assert answer.result == 42
    assert device.batches == [[21]]
    assert answer.queue_s >= 0
    assert answer.run_s >= 0


async def test_whatever_waits_becomes_the_next_batch_in_order_of_arrival(make, device):
    batcher = make()
    tasks = await fill(batcher, device, [1, 2, 3, 4, 5, 6])
    device.gate.set()
    await asyncio.gather(*tasks)
    assert device.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert len(device.threads) == 1


async def test_a_batch_is_counted_in_units_and_a_job_larger_than_a_batch_runs_alone(make, device):
    batcher = make(units=lambda job: job, max_queued_units=100)
    tasks = await fill(batcher, device, [1, 2, 3, 9, 1])
    device.gate.set()
    await asyncio.gather(*tasks)
    assert device.batches == [[0], [1, 2], [3], [9], [1]]


async def test_a_full_queue_refuses_at_once_and_says_when_to_return(make, device):
    batcher = make(max_queued_units=3)
    tasks = await fill(batcher, device, [1, 2, 3])
    with pytest.raises(Overloaded) as refused:
        await batcher.submit(4)
    assert refused.value.status == 429
    assert 1 <= refused.value.retry_after_s <= 60
    device.gate.set()
    assert [answer.result for answer in await asyncio.gather(*tasks)] == [0, 2, 4, 6]
    assert (await batcher.submit(4)).result == 8


async def test_a_full_queue_takes_what_goes_on_with_work_it_has_taken(make, device):
    batcher = make(max_queued_units=2)
    tasks = await fill(batcher, device, [1, 2])
    tasks.append(asyncio.create_task(batcher.submit(3, is_admitted=True)))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await batcher.submit(4)
    device.gate.set()
    assert [answer.result for answer in await asyncio.gather(*tasks)] == [0, 2, 4, 6]


async def test_an_empty_queue_takes_a_job_larger_than_its_bound(make):
    assert (await make(units=lambda _job: 1000).submit(5)).result == 10


async def test_a_failed_batch_fails_everyone_in_it_and_nobody_else(make, device):
    batcher = make()
    tasks = await fill(batcher, device, [1, -1, 2, 3, 4])
    device.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) is ValueError for answer in answers] == [False, True, True, True, True, False]
    assert (await batcher.submit(7)).result == 14


async def test_a_job_whose_caller_went_away_is_not_run(make, device):
    batcher = make()
    tasks = await fill(batcher, device, [1, 2, 3])
    tasks[2].cancel()
    await asyncio.gather(tasks[2], return_exceptions=True)
    device.gate.set()
    await asyncio.gather(tasks[0], tasks[1], tasks[3])
    assert device.batches == [[0], [1, 3]]
    assert batcher.queued_units == 0


async def test_a_job_whose_deadline_passes_in_the_queue_is_not_run(make, device):
    batcher = make()
    tasks = await fill(batcher, device, [1])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await batcher.submit(2)
    tasks.append(asyncio.create_task(batcher.submit(3)))
    await asyncio.sleep(0)
    device.gate.set()
    await asyncio.gather(*tasks)
    assert device.batches == [[0], [1, 3]]


async def test_batches_and_whoever_else_holds_the_turns_alternate(make, device):
    """A batch runs under the lock, which others get after it, and has the jobs that came meanwhile."""
    lock = TurnLock()
    batcher = make(lock=lock)
    tasks = await fill(batcher, device, [1])
    assert lock.locked()
    seen = []

    async def edit():
        async with lock:
            assert batcher.running_units == 0
            seen.append(list(device.batches))
            tasks.append(asyncio.create_task(batcher.submit(2)))
            await asyncio.sleep(0)

    editing = asyncio.create_task(edit())
    await asyncio.sleep(0)
    device.gate.set()
    await editing
    await asyncio.gather(*tasks)
    assert seen == [[[0]]], "the edit came before the second batch, as it asked before it"
    assert device.batches == [[0], [1, 2]]
    assert not lock.locked()


async def test_the_thread_has_its_next_batch_before_the_present_one_ends(make, device):
    """The event loop may be busy then. Only a whole batch is given early, as no other job fits into it."""
    batcher = make()
    tasks = await fill(batcher, device, [1, 2, 3, 4, 5])
    assert (batcher.running_units, batcher.queued_units) == (5, 1)
    device.gate.set()
    time.sleep(0.1)  # the loop is busy
    assert device.batches == [[0], [1, 2, 3, 4]]
    await asyncio.gather(*tasks)
    assert device.batches == [[0], [1, 2, 3, 4], [5]]


async def test_no_batch_is_given_early_while_somebody_waits_for_the_lock(make, device):
    lock, order = TurnLock(), []
    batcher = make(lock=lock)
    tasks = await fill(batcher, device, [1])
    editing = asyncio.create_task(lock.edit(lambda: order.append(list(device.batches))))
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(batcher.submit(job)) for job in range(2, 9)]
    await asyncio.sleep(0)
    assert batcher.running_units == 1
    device.gate.set()
    await editing
    await asyncio.gather(*tasks)
    assert order == [[[0]]]
    assert device.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8]]


class InTheLoop:
    """A batch that notes which thread does what."""

    def __init__(self, jobs, seen, *, fails_in=""):
        self.jobs, self.seen, self.fails_in = jobs, seen, fails_in
        self.note("prepare")

    def note(self, what):
        if what == self.fails_in:
            raise ValueError(what)
        self.seen.append((what, threading.get_ident()))

    def run(self):
        self.note("run")

    def finish(self):
        self.note("finish")
        return [3 * job for job in self.jobs]


async def test_a_prepared_batch_runs_in_the_thread_and_the_rest_of_it_in_the_event_loop(make, device):
    seen = []
    batcher = make(prepare=lambda jobs: InTheLoop(jobs, seen) if min(jobs) > 1 else None)
    assert [(await batcher.submit(job)).result for job in (2, 1)] == [6, 2], (
        "the other one was run as a whole"
    )
    (loop_thread,) = {thread for what, thread in seen if what != "run"}
    assert loop_thread == threading.get_ident()
    assert [what for what, _ in seen] == ["prepare", "run", "finish"]
    assert {thread for what, thread in seen if what == "run"} == device.threads != {loop_thread}


@pytest.mark.parametrize("fails_in", ["prepare", "run", "finish"])
async def test_a_prepared_batch_that_fails_anywhere_fails_its_callers_and_nobody_else(make, fails_in):
    def prepare(jobs):
        return InTheLoop(jobs, [], fails_in=fails_in if jobs == [7] else "")

    lock = TurnLock()
    batcher = make(prepare=prepare, lock=lock)
    with pytest.raises(ValueError, match=fails_in):
        await batcher.submit(7)
    assert (await batcher.submit(8)).result == 24
    async with asyncio.timeout(10), lock:
        assert batcher.running_units == 0


async def test_the_seconds_of_an_answer_are_those_of_its_job(make, device):
    tasks = await fill(make(), device, [1])
    await asyncio.sleep(0.1)
    device.gate.set()
    first, second = await asyncio.gather(*tasks)
    assert first.run_s >= 0.1 > first.queue_s >= 0
    assert second.queue_s >= 0.1 > second.run_s > 0


async def test_a_failed_batch_gives_its_turn_up(make):
    lock = TurnLock()
    with pytest.raises(ValueError, match="negative"):
        await make(lock=lock).submit(-1)
    async with asyncio.timeout(10), lock:
        pass


async def test_stopping_fails_those_who_wait_and_those_who_come_later(make, device):
    batcher = make()
    tasks = await fill(batcher, device, [1, 2])
    stopping = asyncio.create_task(batcher.stop())
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoppedServing] * 3
    device.gate.set()
    await stopping
    with pytest.raises(StoppedServing):
        await batcher.submit(1)


async def test_a_run_that_loses_a_result_fails_the_batch_rather_than_mix_answers_up():
    batcher = MicroBatcher(lambda jobs: jobs[1:], name="short", max_batch_units=4, max_queued_units=4)
    batcher.start()
    with pytest.raises(RuntimeError, match="0 results for 1 jobs"):
        await batcher.submit(1)
    await batcher.stop()


async def test_every_batch_is_reported_with_its_size(make):
    seen: list[BatchStats] = []
    await make(units=lambda job: job, observe=seen.append).submit(3)
    assert [(stats.num_jobs, stats.num_units) for stats in seen] == [(1, 3)]


@pytest.mark.alone
async def test_who_would_wait_longer_than_the_bound_or_the_deadline_is_turned_away_at_once(make, device):
    """The measured time per batch decides; jobs that were accepted before are done."""
    batcher = make(max_queued_units=1_000, max_wait_s=0.5)
    device.gate.clear()
    slow = asyncio.create_task(batcher.submit(0))
    await device.enters()
    await asyncio.sleep(0.2)  # a batch takes 0.2 s at least
    device.gate.set()
    await slow
    tasks = await fill(batcher, device, [1])
    soon = asyncio.get_running_loop().time() + 0.1
    with pytest.raises(Overloaded):
        await batcher.submit(2, deadline=soon)
    while not tasks[-1].done():
        try:
            batcher.check_room()
        except Overloaded:
            break
        tasks.append(asyncio.create_task(batcher.submit(3)))
        await asyncio.sleep(0)
    assert 2 < len(tasks) <= 9, "one that runs and two batches behind it: a third would wait for 0.6 s"
    device.gate.set()
    await asyncio.gather(*tasks)


async def test_a_job_whose_deadline_passes_while_the_loop_is_busy_is_not_run(make, device):
    batcher = make()
    tasks = await fill(batcher, device, [1])
    clock = asyncio.get_running_loop().time
    deadline = clock() + 0.02
    late = asyncio.create_task(batcher.submit(2, deadline=deadline))
    await until(lambda: clock() > deadline)
    device.gate.set()
    with pytest.raises(TimeoutError):
        await late
    await asyncio.gather(*tasks)
    assert device.batches == [[0], [1]]


async def test_a_reservation_keeps_others_out_until_it_is_released(make):
    batcher = make(max_batch_units=2, max_queued_units=2)
    reservations = [batcher.reserve(1), batcher.reserve(1)]
    with pytest.raises(Overloaded):
        batcher.reserve(1)
    with pytest.raises(Overloaded):
        await batcher.submit(1)
    reservations[0].release()
    reservations[0].release()  # a request ends after it has submitted
    batcher.reserve(1).release()
    assert batcher.reserved_units == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no other system has it for a thread")
async def test_a_batcher_that_gives_way_runs_at_a_lower_priority_than_the_event_loop():
    def niceness(jobs: list[int]) -> list[int]:
        return [os.getpriority(os.PRIO_PROCESS, threading.get_native_id())] * len(jobs)

    here = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    for gives_way in (False, True):
        batcher = MicroBatcher(
            niceness, name="test", max_batch_units=1, max_queued_units=1, gives_way=gives_way
        )
        batcher.start()
        found = (await batcher.submit(1)).result
        await batcher.stop()
        assert (found > here) == gives_way


async def test_under_overload_batches_fill_the_time_and_the_queue_stays_nearly_empty():
    """So the share of the time in which batches run tells the load, and the length of the queue does not."""
    seen, lengths, num_refused = [], [], 0

    def run(jobs):
        time.sleep(0.02)
        return jobs

    batcher = MicroBatcher(
        run, name="test", max_batch_units=2, max_queued_units=1_000, max_wait_s=0.05, observe=seen.append
    )
    batcher.start()
    started_at, tasks = time.perf_counter(), []
    while time.perf_counter() < started_at + 0.6:
        try:
            batcher.check_room()
        except Overloaded:
            num_refused += 1
        else:
            tasks.append(asyncio.create_task(batcher.submit(1, is_admitted=True)))
        await asyncio.sleep(0.002)
        lengths.append(batcher.queued_units)
    wall_s = time.perf_counter() - started_at
    busy_s = sum(stats.run_s for stats in seen)
    await asyncio.gather(*tasks)
    await batcher.stop()
    assert num_refused > 20
    assert max(lengths) < 0.05 * batcher.max_queued_units
    assert busy_s / wall_s > 0.8
