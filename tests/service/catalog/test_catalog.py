import asyncio
import gc
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from service.catalog.catalog import Catalog, Loading
from service.catalog.follower import CatalogFollower
from service.core.filters import NO_ATTRIBUTES, Attributes, Filter, Range
from service.core.sid import Codes, Sid
from service.core.trie import SidTrie
from service.errors import StoreUnavailable
from service.store import items as store_module
from service.store.client import connect
from service.store.items import ItemStore, Position, TrieEntry
from service.store.server import start_server
from tests.service.catalogs import (
    CATALOG,
    LOG,
    SPEC,
    TOKENIZER,
    put,
    random_codes,
    read_raw,
    record,
    store_on,
    until,
)

BLOCK_MS = 50

CODES = st.tuples(*(st.integers(0, num_codes - 1) for num_codes in SPEC.levels))
EDITS = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.one_of(st.none(), CODES)), max_size=40)


def follower_of(store: ItemStore) -> CatalogFollower:
    return CatalogFollower(Catalog(SPEC), store, block_ms=BLOCK_MS)


@asynccontextmanager
async def following(follower: CatalogFollower) -> AsyncIterator[Catalog]:
    task = asyncio.create_task(follower.run())
    try:
        yield follower.catalog
    finally:
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(outcome, asyncio.CancelledError)


async def write_at_random(store: ItemStore, rng: random.Random, num_writes: int) -> int:
    """Puts, moves and drops of a few items; gives the last version."""
    version = 0
    for i in range(num_writes):
        item_id = f"i{rng.randrange(30)}"
        if rng.random() < 0.3:
            version = (await store.drop([item_id]))[0].version
        else:
            version = (await put(store, record(item_id, f"text {i}"), random_codes(rng))).version
    return version


async def assert_level(catalog: Catalog, redis: Redis) -> None:
    """The catalog is what Redis holds, read without the store."""
    sids = (await read_raw(redis)).sids
    assert {item_id: catalog.sid_of(item_id) for item_id in sids} == sids
    assert catalog.num_items == len(sids)
    expected = SidTrie(SPEC)
    for sid in sids.values():
        expected.insert(sid.codes)
    assert catalog.trie.digest() == expected.digest()
    for codes in {sid.codes for sid in sids.values()}:
        by_slot = sorted((sid.slot, item_id) for item_id, sid in sids.items() if sid.codes == codes)
        assert catalog.items_at(codes) == [item_id for _, item_id in by_slot]


DEAREST = Filter(attributes=(("price", Range(gt=1)),))


def attributes_at(codes: Codes) -> Attributes:
    return Attributes((f"category {codes[1]}",), True, {"price": float(codes[0])})


@given(edits=EDITS)
@settings(deadline=None)
def test_a_catalog_is_what_a_dictionary_would_be(edits: list[tuple[str, Codes | None]]) -> None:
    catalog, model = Catalog(SPEC), dict[str, Sid]()
    for item_id, codes in edits:
        if codes is None:
            catalog.drop(item_id)
            model.pop(item_id, None)
        else:
            taken = {sid.slot for other, sid in model.items() if sid.codes == codes and other != item_id}
            slot = min(set(range(9)) - taken)
            catalog.put(item_id, Sid(codes, slot), attributes_at(codes))
            model[item_id] = Sid(codes, slot)
    entries = [TrieEntry(item_id, sid, attributes_at(sid.codes)) for item_id, sid in model.items()]
    built, adopted = Catalog.from_entries(SPEC, entries), Catalog(SPEC)
    adopted.views.view_of(DEAREST)
    adopted.adopt(Catalog.from_entries(SPEC, entries))
    for each in (catalog, built, adopted):
        assert {item_id: each.sid_of(item_id) for item_id in "abcdefgh"} == {
            item_id: model.get(item_id) for item_id in "abcdefgh"
        }
        assert each.num_items == len(model) == len(each.trie)
        num_at = Counter(sid.codes for sid in model.values())
        assert each.num_colliding == sum(num_at[sid.codes] > 1 for sid in model.values())
        assert each.num_slots_in_use == max((sid.slot + 1 for sid in model.values()), default=0)
        for codes in {codes for _, codes in edits if codes}:
            at = sorted((sid.slot, item_id) for item_id, sid in model.items() if sid.codes == codes)
            assert each.items_at(codes) == [item_id for _, item_id in at]
        assert list(each.by_popularity()) == sorted(model, key=lambda item_id: model[item_id])
        dearest = each.views.view_of(DEAREST)
        passing = {item_id for item_id, sid in model.items() if sid.codes[0] > 1}
        assert {item_id for item_id in "abcdefgh" if dearest.passes(item_id)} == passing
        assert set(each.by_popularity(dearest)) == passing
        assert len(dearest.trie) == dearest.num_items == len(passing)
        for item_id, sid in model.items():
            assert each.views.attributes_of(item_id) == attributes_at(sid.codes)
    assert catalog.trie.digest() == built.trie.digest()
    assert catalog.digest == built.digest == adopted.digest


def test_the_digest_tells_items_slots_and_attributes_apart_and_forgets_the_past() -> None:
    def digest(*edits: tuple[str, int, Attributes | None]) -> str:
        """Of puts at one code, and of drops where there are no attributes."""
        catalog = Catalog(SPEC)
        for item_id, slot, attributes in edits:
            if attributes is None:
                catalog.drop(item_id)
            else:
                catalog.put(item_id, Sid((1, 2, 3), slot), attributes)
        return catalog.digest

    plain, dear = Attributes(("pens",), True, {}), Attributes(("pens",), True, {"price": 5.0})
    catalogs = [
        [],
        [("a", 0, plain)],
        [("b", 0, plain)],
        [("a", 1, plain)],
        [("a", 0, dear)],
        [("a", 0, plain._replace(available=False))],
        [("a", 0, plain._replace(categories=("ink",)))],
        [("a", 0, plain._replace(values={"price": "5.0"}))],
        [("a", 0, plain), ("b", 1, plain)],
        [("a", 1, plain), ("b", 0, plain)],
    ]
    assert len({digest(*each) for each in catalogs}) == len(catalogs)
    assert digest(("b", 1, dear), ("a", 0, dear), ("a", 0, plain), ("b", 1, plain)) == digest(*catalogs[8])
    assert digest(("a", 0, dear), ("a", 0, None), ("a", 0, None)) == digest()
    zero, minus_zero = plain._replace(values={"price": 0.0}), plain._replace(values={"price": -0.0})
    assert digest(("a", 0, zero)) == digest(("a", 0, minus_zero), ("a", 0, zero))


def test_of_an_item_that_was_read_twice_the_last_place_counts() -> None:
    catalog = Catalog.from_entries(
        SPEC,
        [
            TrieEntry("a", Sid((0, 0, 0), 0)),
            TrieEntry("b", Sid((3, 2, 4), 0)),
            TrieEntry("a", Sid((3, 2, 4), 1)),
        ],
    )
    assert catalog.num_items == len(catalog.trie) == 2
    assert catalog.items_at((3, 2, 4)) == ["b", "a"]
    assert catalog.items_at((0, 0, 0)) == []


@given(
    places=st.lists(st.tuples(st.sampled_from("abcdefgh"), CODES), max_size=20), page_length=st.integers(1, 8)
)
@settings(deadline=None)
def test_pages_are_loaded_as_if_put_one_by_one_also_out_of_order(
    places: list[tuple[str, Codes]], page_length: int
) -> None:
    entries = [
        TrieEntry(item_id, Sid(codes, n), attributes_at(codes)) for n, (item_id, codes) in enumerate(places)
    ]
    loading, truth = Loading(SPEC), Catalog(SPEC)
    for start in range(0, len(entries), page_length):
        loading.add(entries[start : start + page_length])
    for entry in entries:
        truth.put(*entry)
    loaded = loading.end()
    for each in (loaded, Catalog.from_entries(SPEC, entries)):
        assert each.digest == truth.digest
        assert each.trie.digest() == truth.trie.digest()
        assert list(each.by_popularity()) == list(truth.by_popularity())
    assert [*map(loaded.views.view_of(DEAREST).passes, "abcdefgh")] == [
        *map(truth.views.view_of(DEAREST).passes, "abcdefgh")
    ]


def test_popular_items_come_by_popularity_then_in_trie_order_and_are_alive() -> None:
    catalog = Catalog(SPEC, popularity={"hit": 9, "dead": 8, "also": 7, "and": 7, "never": 1})
    for item_id, codes in [("z", (0, 0, 0)), ("hit", (3, 0, 0)), ("dead", (1, 0, 0)), ("also", (1, 0, 0))]:
        catalog.put(item_id, Sid(codes, 0 if item_id != "also" else 1))
    catalog.put("and", Sid((2, 0, 0), 0))
    catalog.put("y", Sid((0, 0, 0), 1))
    catalog.drop("dead")
    assert list(catalog.by_popularity()) == ["hit", "also", "and", "z", "y"]


def test_popularity_outlives_a_reload() -> None:
    catalog = Catalog(SPEC, popularity={"b": 2})
    entries = [TrieEntry("a", Sid((0, 0, 0), 0)), TrieEntry("b", Sid((1, 0, 0), 0))]
    catalog.adopt(Catalog.from_entries(SPEC, entries))
    assert list(catalog.by_popularity()) == ["b", "a"]


async def test_what_was_there_before_is_loaded(store: ItemStore, redis: Redis) -> None:
    version = await write_at_random(store, random.Random(0), 200)
    follower = follower_of(store)
    assert follower.is_stale
    assert follower.stale_for_s == float("inf")
    await follower.load()
    assert (follower.is_loaded, follower.is_stale, follower.stale_for_s) == (True, False, 0.0)
    assert follower.catalog.version == version
    await assert_level(follower.catalog, redis)


async def test_an_empty_catalog_loads_and_then_fills(store: ItemStore, redis: Redis) -> None:
    follower = follower_of(store)
    await follower.load()
    assert (follower.catalog.num_items, follower.catalog.version) == (0, 0)
    async with following(follower) as catalog:
        result = await put(store, record("a"), (1, 2, 3))
        assert await follower.wait_for(result.version, timeout_s=5)
        assert catalog.items_at((1, 2, 3)) == ["a"]
    await assert_level(catalog, redis)


@pytest.mark.parametrize("seed", range(4))
async def test_replicas_started_at_any_moment_of_the_writing_end_the_same(
    redis: Redis, redis_url: str, seed: int
) -> None:
    rng = random.Random(seed)
    writers = [
        asyncio.create_task(write_at_random(store_on(redis), random.Random(10 * seed + i), 150))
        for i in range(2)
    ]
    reader = connect(redis_url)
    store, followers = store_on(reader), []
    async with AsyncExitStack() as stack:
        for start in sorted(rng.sample(range(1, 150), 3)):
            while await store.last_version() < start:
                await asyncio.sleep(0)
            followers.append(follower_of(store))
            await stack.enter_async_context(following(followers[-1]))
        await asyncio.gather(*writers)
        version = await store.last_version()
        for follower in followers:
            assert await follower.wait_for(version, timeout_s=10)
            await assert_level(follower.catalog, redis)
    assert len({follower.catalog.trie.digest() for follower in followers}) == 1
    assert [follower.num_loads for follower in followers] == [1, 1, 1]
    await reader.aclose()


class DisturbedStore(ItemStore):
    """Another writer writes between any two pages of a snapshot."""

    async def snapshot(self) -> AsyncIterator[list[TrieEntry]]:
        rng = random.Random(7)
        async for page in super().snapshot():
            yield page
            await write_at_random(self, rng, 5)


async def test_writes_during_a_load_are_not_lost(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "TRIE_PAGE", 2)
    store = DisturbedStore(redis, catalog=CATALOG, tokenizer_id=TOKENIZER, spec=SPEC)
    await write_at_random(store, random.Random(0), 100)
    follower = follower_of(store)
    await follower.load()
    await assert_level(follower.catalog, redis)
    assert follower.catalog.version == await store.last_version()


async def test_a_log_that_is_trimmed_during_a_load_is_read_again(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "TRIE_PAGE", 20)
    store = DisturbedStore(redis, catalog=CATALOG, tokenizer_id=TOKENIZER, spec=SPEC)
    await write_at_random(store, random.Random(0), 100)
    empty_the_log = [True]
    position = store.position

    async def position_then_trim() -> Position:
        found = await position()
        if empty_the_log:
            empty_the_log.pop()
            await put(store, record("a", "lost from the log"), (1, 2, 3))
            await redis.xtrim(LOG, maxlen=0)
        return found

    monkeypatch.setattr(store, "position", position_then_trim)
    follower = follower_of(store)
    await follower.load()
    await assert_level(follower.catalog, redis)
    assert follower.catalog.version == await store.last_version()


async def test_an_acknowledged_put_can_be_awaited_and_an_absent_one_not_for_ever(store: ItemStore) -> None:
    follower = follower_of(store)
    assert not await follower.wait_for(1, timeout_s=0.01)
    async with following(follower) as catalog:
        results = [await put(store, record(f"i{i}"), (1, 2, 3)) for i in range(20)]
        waits = (follower.wait_for(result.version, timeout_s=5) for result in reversed(results))
        assert all(await asyncio.gather(*waits))
        assert catalog.version == 20
        assert not await follower.wait_for(21, timeout_s=0.01)


async def test_a_log_trimmed_before_it_was_read_means_a_reload_into_fresh_tables(redis: Redis) -> None:
    store = store_on(redis, log_length=1)
    await write_at_random(store, random.Random(0), 10)
    follower = follower_of(store)
    await follower.load()
    old = follower.catalog.trie
    digest = old.digest()
    version = await write_at_random(store, random.Random(1), 400)
    assert (await store.changes(0))[0].version > 10
    async with following(follower) as catalog:
        assert await follower.wait_for(version, timeout_s=5)
        assert follower.num_loads == 2
        await assert_level(catalog, redis)
    assert old.digest() == digest  # a reader of the old tables sees no change


async def test_a_flushed_redis_is_noticed_without_any_write(store: ItemStore, redis: Redis) -> None:
    await write_at_random(store, random.Random(0), 50)
    follower = follower_of(store)
    async with following(follower) as catalog:
        await until(lambda: catalog.num_items > 0)
        await redis.flushall()
        await until(lambda: follower.num_loads == 2)
        assert (catalog.num_items, catalog.version, len(catalog.trie)) == (0, 0, 0)
        result = await put(store, record("a"), (1, 2, 3))
        assert await follower.wait_for(result.version, timeout_s=5)
        await assert_level(catalog, redis)


@pytest.mark.parametrize("num_writes", [20, 60, 200])
async def test_another_history_is_noticed_also_where_its_version_is_the_same_or_higher(
    store: ItemStore, redis: Redis, num_writes: int
) -> None:
    follower = follower_of(store)
    for i in range(60):
        await put(store, record(f"old {i}"), (0, 0, 0))
    await follower.load()
    await redis.flushall()  # while this replica is cut off
    for i in range(num_writes):
        await put(store, record(f"new {i}"), (1, 1, 1))
    async with following(follower) as catalog:
        await until(lambda: follower.num_loads == 2)
        await assert_level(catalog, redis)
        assert catalog.version == num_writes


async def test_a_log_entry_that_is_not_ours_costs_a_reload_and_no_more(
    store: ItemStore, redis: Redis
) -> None:
    await write_at_random(store, random.Random(0), 20)
    follower = follower_of(store)
    async with following(follower) as catalog:
        await until(lambda: follower.is_loaded)
        version = catalog.version + 1
        await redis.xadd(LOG, {"somebody": "else"}, id=f"{version}-0")
        assert await follower.wait_for(version, timeout_s=5)
        result = await put(store, record("after", "it"), (1, 2, 3))
        assert await follower.wait_for(result.version, timeout_s=5)
        assert follower.num_loads == 2
        await assert_level(catalog, redis)


async def test_without_redis_the_catalog_stays_and_catches_up_when_redis_returns(tmp_path: Path) -> None:
    server = start_server(tmp_path / "redis")
    redis = connect(server.url)
    now = [100.0]
    store = store_on(redis)
    follower = CatalogFollower(Catalog(SPEC), store, block_ms=BLOCK_MS, clock=lambda: now[0])
    async with following(follower) as catalog:
        result = await put(store, record("a"), (1, 2, 3))
        assert await follower.wait_for(result.version, timeout_s=5)
        server.stop()
        await until(lambda: follower.is_stale)
        now[0] += 7
        assert follower.stale_for_s == 7
        assert catalog.items_at((1, 2, 3)) == ["a"]
        with pytest.raises(StoreUnavailable):
            await follower.load()
        assert catalog.items_at((1, 2, 3)) == ["a"]
        server = start_server(tmp_path / "redis")
        result = await put(store, record("b"), (1, 2, 3))
        assert await follower.wait_for(result.version, timeout_s=10)
        assert catalog.items_at((1, 2, 3)) == ["a", "b"]
        assert (follower.is_stale, follower.stale_for_s, follower.num_loads) == (False, 0.0, 1)
        await assert_level(catalog, redis)
    await redis.aclose()
    server.stop()


async def test_a_redis_restored_from_before_the_last_changes_is_noticed(tmp_path: Path) -> None:
    """It comes back with less than this replica has seen, and is ahead again before the replica looks."""
    folder, backup = tmp_path / "redis", tmp_path / "backup"
    redis = connect(f"unix://{folder}/redis.sock")
    store = store_on(redis)
    follower = follower_of(store)
    with start_server(folder):
        await put(store, record("kept"), (1, 2, 3))
    shutil.copytree(folder, backup)
    with start_server(folder):
        await put(store, record("lost"), (1, 2, 3))
        await follower.load()
        assert follower.catalog.items_at((1, 2, 3)) == ["kept", "lost"]
    shutil.rmtree(folder)
    shutil.copytree(backup, folder)
    with start_server(folder):
        for item_id in ("other", "another"):
            await put(store, record(item_id), (1, 2, 3))
        async with following(follower) as catalog:
            await until(lambda: follower.num_loads == 2)
            await assert_level(catalog, redis)
    await redis.aclose()


async def test_a_redis_that_hangs_makes_the_replica_stale_until_it_moves_on(tmp_path: Path) -> None:
    with start_server(tmp_path / "redis") as server:
        redis = connect(server.url, response_timeout_s=0.2)
        store = store_on(redis)
        follower = follower_of(store)
        async with following(follower):
            await until(lambda: not follower.is_stale)
            os.kill(server.pid, signal.SIGSTOP)
            try:
                await until(lambda: follower.is_stale)
            finally:
                os.kill(server.pid, signal.SIGCONT)
            await until(lambda: not follower.is_stale)
            result = await put(store, record("a"), (1, 2, 3))
            assert await follower.wait_for(result.version, timeout_s=5)
            assert follower.num_loads == 1
        await redis.aclose()


async def test_a_replica_that_starts_without_redis_loads_when_it_comes(tmp_path: Path) -> None:
    redis = connect(f"unix://{tmp_path}/redis/redis.sock")
    follower = follower_of(store_on(redis))
    async with following(follower) as catalog:
        with pytest.raises(StoreUnavailable):
            await store_on(redis).ping()
        assert not follower.is_loaded
        with start_server(tmp_path / "redis"):
            await put(store_on(redis), record("a"), (1, 2, 3))
            assert await follower.wait_for(1, timeout_s=10)
            assert catalog.items_at((1, 2, 3)) == ["a"]
    await redis.aclose()


async def test_a_follower_that_is_cancelled_at_any_moment_ends(store: ItemStore) -> None:
    """Also between the steps of a call to Redis, where Python 3.11 may swallow a cancellation."""
    for num_steps in range(60):
        follower = follower_of(store)
        task = asyncio.create_task(follower.run())
        for _ in range(num_steps):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=5)
        assert done == {task}, f"still running {num_steps} steps after it was started"
        assert task.cancelled()


def test_the_garbage_collector_does_not_look_at_what_was_loaded():
    entries = [TrieEntry(f"item-{n}", Sid((n % 4, n % 3, n % 5), n), NO_ATTRIBUTES) for n in range(4_000)]
    gc.collect()
    before = len(gc.get_objects())
    catalog = Catalog.from_entries(SPEC, entries)
    del entries
    assert catalog.num_items == 4_000
    assert len(gc.get_objects()) - before < 400
