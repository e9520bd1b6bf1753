"""Edits come between two holders of the lock, in their order, and never beside one."""

import asyncio
import random

import pytest

from service.core.turns import TurnLock


async def test_an_edit_of_a_free_lock_is_applied_at_once():
    lock, seen = TurnLock(), []
    editing = lock.edit(lambda: seen.append("edit"))
    await editing
    assert seen == ["edit"]
    assert not lock.locked()


async def test_edits_are_applied_when_the_holder_ends_and_before_the_next_one_begins():
    lock, seen = TurnLock(), []

    async def hold(name):
        async with lock:
            seen.append(f"{name} begins")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            seen.append(f"{name} ends")

    async def edit(name):
        await lock.edit(lambda: seen.append(name))

    await asyncio.gather(hold("first"), hold("second"), edit("a"), edit("b"))
    assert seen == ["first begins", "first ends", "a", "b", "second begins", "second ends"]


@pytest.mark.parametrize("seed", range(5))
async def test_no_edit_is_lost_or_applied_while_the_lock_is_held_inside(seed):
    rng, lock, applied = random.Random(seed), TurnLock(), []
    is_inside = False

    def apply(number):
        assert not is_inside
        applied.append(number)

    async def hold():
        nonlocal is_inside
        for _ in range(30):
            async with lock:
                is_inside = True
                for _ in range(rng.randint(0, 3)):
                    await asyncio.sleep(0)
                is_inside = False
            await asyncio.sleep(0)

    async def edit(first):
        for number in range(first, first + 50):
            await lock.edit(lambda number=number: apply(number))
            for _ in range(rng.randint(0, 2)):
                await asyncio.sleep(0)

    await asyncio.gather(hold(), hold(), edit(0), edit(100))
    assert sorted(applied) == [*range(50), *range(100, 150)]
    assert [each for each in applied if each < 100] == list(range(50)), "in the order of each editor"


async def test_the_error_of_an_edit_goes_to_its_caller_and_the_lock_goes_on():
    lock, seen = TurnLock(), []

    def fail():
        raise ValueError("no such change")

    async with lock:
        failing = asyncio.create_task(lock.edit(fail))
        later = asyncio.create_task(lock.edit(lambda: seen.append("later")))
        await asyncio.sleep(0)
    with pytest.raises(ValueError, match="no such change"):
        await failing
    await later
    assert seen == ["later"]
    with pytest.raises(ValueError, match="no such change"):
        await lock.edit(fail)
    assert not lock.locked()


async def test_the_edit_of_a_caller_that_is_cancelled_is_not_applied():
    lock, seen = TurnLock(), []
    async with lock:
        leaving = asyncio.create_task(lock.edit(lambda: seen.append("never")))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
    assert seen == []


async def test_a_lock_that_nobody_holds_cannot_be_released():
    with pytest.raises(RuntimeError):
        TurnLock().release()
