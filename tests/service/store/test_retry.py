"""A call that may succeed later is retried, after growing waits that differ between replicas."""

import asyncio

import pytest

from service.errors import StoreFault, StoreUnavailable
from service.store.retry import Backoff, retry

SOON = {"first_s": 0.001, "max_s": 0.002}


class Failing:
    """Raises `errors`, one at each call, and then returns."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.num_calls = 0

    async def __call__(self) -> str:
        self.num_calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


async def test_it_is_tried_until_it_works_and_each_trouble_is_told():
    attempt, told = Failing(StoreUnavailable("away"), StoreUnavailable("loading")), []
    assert await retry(attempt, on=(StoreUnavailable,), say=told.append, **SOON) == "done"
    assert [trouble.split()[0] for trouble in told] == ["away", "loading"]


async def test_an_error_that_will_not_pass_is_raised_at_once():
    attempt = Failing(StoreFault())
    with pytest.raises(StoreFault):
        await retry(attempt, on=(StoreUnavailable,), **SOON)
    assert attempt.num_calls == 1


async def test_the_last_of_so_many_tries_raises_its_error():
    attempt = Failing(*(StoreUnavailable(str(number)) for number in range(9)))
    with pytest.raises(StoreUnavailable, match="2"):
        await retry(attempt, on=(StoreUnavailable,), max_tries=3, **SOON)
    assert attempt.num_calls == 3


async def test_a_cancelled_retry_ends_also_where_the_attempt_swallowed_the_cancellation():
    begun = asyncio.Event()

    async def attempt() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise StoreUnavailable("lost amid a command") from None

    task = asyncio.create_task(retry(attempt, on=(StoreUnavailable,), **SOON))
    await begun.wait()
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=10)
    assert done
    assert task.cancelled()


def test_waits_double_up_to_the_longest_and_begin_anew_after_a_success():
    backoff = Backoff(1.0, 5.0)
    for longest in (1, 2, 4, 5, 5):
        assert longest / 2 <= backoff.next_s() <= longest
    backoff.reset()
    assert backoff.next_s() <= 1


def test_two_replicas_do_not_wait_equally_long():
    assert len({Backoff(1.0, 5.0).next_s() for _ in range(20)}) > 1
