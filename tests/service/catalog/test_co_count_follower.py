"""The follower of the counts, with a real Redis: whatever happens there, the table comes to hold its rows."""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from service.catalog.catalog import Catalog, Loading
from service.catalog.co_count_follower import CoCountFollower
from service.core.co_counts import CoCounts, CoCountSpec
from service.core.sid import Sid
from service.store.co_counts import CoCountStore, Taken
from tests.service.catalogs import CATALOG, SPEC, until, until_true

COUNTED = CoCountSpec(window=3, smoothing=1)
ITEMS = [f"i{number}" for number in range(12)]
ROWS = f"{{{CATALOG}}}:co_counts"
LOG = f"{{{CATALOG}}}:co_log"

Masses = dict[str, dict[int, float]]


def counts_on(redis: Redis, **options: int) -> CoCountStore:
    return CoCountStore(redis, catalog=CATALOG, half_life_s=1e15, keep_s=60, **options)


def catalog_of(item_ids: list[str]) -> Catalog:
    catalog = Catalog(SPEC)
    for place, item_id in enumerate(item_ids):
        catalog.put(item_id, Sid(SPEC.codes_of(place), 0))
    return catalog


def masses(table: CoCounts | None) -> Masses:
    """Everything that a search can know of a table."""
    assert table is not None
    found: Masses = {}
    for item_id in ITEMS:
        by_prefix: dict[int, float] = defaultdict(float)
        for prefix, mass in zip(*table.neighbors_of([item_id]), strict=True):
            by_prefix[int(prefix)] += float(mass)
        found[item_id] = {prefix: pytest.approx(mass, rel=1e-5) for prefix, mass in by_prefix.items()}
    return found


async def in_redis(store: CoCountStore, catalog: Catalog) -> Masses:
    table = CoCounts(COUNTED, catalog.prefix_of)
    async for page in store.snapshot():
        for each in page:
            table.set_row(*each.row)
    return masses(table)


def events(name: str, num: int, seed: int = 0) -> list[Taken]:
    rng = random.Random(f"{name}{seed}")
    return [Taken(f"{name}-{n}", rng.sample(ITEMS, 3), rng.choice(ITEMS)) for n in range(num)]


@asynccontextmanager
async def following(catalog: Catalog, store: CoCountStore) -> AsyncIterator[CoCountFollower]:
    follower = CoCountFollower(catalog, store, COUNTED, block_ms=50)
    await follower.load()
    task = asyncio.create_task(follower.run())
    try:
        yield follower
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until_in_step(catalog: Catalog, store: CoCountStore) -> None:
    async def is_so() -> bool:
        return masses(catalog.co_counts) == await in_redis(store, catalog)

    await until_true(is_so)


async def test_a_follower_has_what_others_count_before_and_while_it_follows(redis: Redis) -> None:
    store, catalog = counts_on(redis), catalog_of(ITEMS)
    await store.count(events("before", 20), COUNTED)
    async with following(catalog, store) as follower:
        assert masses(catalog.co_counts) == await in_redis(store, catalog)
        await counts_on(redis).count(events("later", 40), COUNTED)
        await until(lambda: follower.version == 60)
        assert masses(catalog.co_counts) == await in_redis(store, catalog)
        assert follower.num_loads == 1
        assert follower.lag == (0, 0.0)
        assert follower.num_rows == len(ITEMS)


async def flush(redis: Redis, _store: CoCountStore) -> None:
    await redis.flushall()


async def flush_and_count(redis: Redis, store: CoCountStore) -> None:
    await redis.flushall()
    await store.count(events("anew", 30), COUNTED)


async def restore_and_count(redis: Redis, store: CoCountStore) -> None:
    """As after a crash: the last changes are lost, and others follow."""
    saved = {key: await redis.dump(key) for key in (ROWS, LOG)}
    await store.count(events("lost", 3), COUNTED)
    await asyncio.sleep(0.2)  # the follower has seen them
    for key, value in saved.items():
        assert value is not None
        await redis.restore(key, 0, value, replace=True)
    await store.count(events("instead", 3), COUNTED)


async def write_nonsense(redis: Redis, store: CoCountStore) -> None:
    version = (await store.position()).version
    await redis.xadd(LOG, {"what": "is this"}, id=f"{version + 1}-0")


async def leave_a_gap(redis: Redis, store: CoCountStore) -> None:
    version = (await store.position()).version
    await redis.xadd(LOG, {"op": "rows", "id": "", "after": "", "mark": "m"}, id=f"{version + 7}-0")


@pytest.mark.parametrize("happens", [flush, flush_and_count, restore_and_count, write_nonsense, leave_a_gap])
async def test_a_log_that_does_not_go_on_is_noticed_and_all_rows_are_loaded_again(
    redis: Redis, happens: Callable[[Redis, CoCountStore], Awaitable[None]]
) -> None:
    store, catalog = counts_on(redis), catalog_of(ITEMS)
    await store.count(events("before", 20), COUNTED)
    async with following(catalog, store) as follower:
        await happens(redis, store)
        await until(lambda: follower.num_loads > 1)
        await until_in_step(catalog, store)
        await store.count(events("later", 5), COUNTED)
        await until_in_step(catalog, store)


async def test_a_trimmed_log_is_noticed(redis: Redis) -> None:
    store, catalog = counts_on(redis), catalog_of(ITEMS)
    async with following(catalog, store) as follower, catalog.lock:
        # The follower waits for the lock, while the log goes on and is trimmed.
        await store.count(events("first", 1), COUNTED)
        await asyncio.sleep(0.1)
        await store.count(events("more", 20), COUNTED)
        await redis.xtrim(LOG, maxlen=2, approximate=False)
        catalog.lock.release()
        await until(lambda: follower.num_loads > 1)
        await until_in_step(catalog, store)
        await catalog.lock.acquire()


async def test_a_row_that_is_gone_is_forgotten(redis: Redis) -> None:
    store, catalog = counts_on(redis), catalog_of(ITEMS)
    await store.count([Taken("1", ["i1"], "i2")], COUNTED)
    async with following(catalog, store) as follower:
        assert masses(catalog.co_counts)["i1"]
        await redis.hdel(ROWS, "i2")  # type: ignore[misc]
        await store.count([Taken("2", ["i1"], "i3")], COUNTED)
        await until(lambda: follower.version == 2)
        await redis.xadd(
            LOG,
            {"op": "rows", "id": b"\0\2i2", "after": (await store.position()).mark, "mark": "m"},
            id="3-0",
        )
        await until(lambda: follower.version == 3)
        assert set(masses(catalog.co_counts)["i1"]) == {3}
        assert follower.num_loads == 1


async def test_neighbors_move_and_vanish_with_their_items(redis: Redis) -> None:
    store, catalog = counts_on(redis), catalog_of(ITEMS[:6])
    await store.count(events("before", 60), COUNTED)
    rng = random.Random(0)
    async with following(catalog, store):
        for number in range(60):
            item_id = rng.choice(ITEMS)
            async with catalog.lock:
                if rng.random() < 0.3:
                    catalog.drop(item_id)
                else:
                    catalog.put(item_id, Sid(SPEC.codes_of(rng.randrange(SPEC.num_prefixes[-1])), number))
            assert masses(catalog.co_counts) == await in_redis(store, catalog)
    fresh = Loading(SPEC).end()  # a catalog that was loaded again, and is empty
    fresh.put("i1", Sid((1, 2, 3), 0))
    places = catalog.co_counts.places_by(fresh.prefix_of)  # as a follower asks for them, in a thread
    catalog.adopt(fresh, places)
    assert set().union(*masses(catalog.co_counts).values()) == {SPEC.prefixes((1, 2, 3))[-1]}
