"""The counts in a real Redis, against plain dictionaries."""

import asyncio
import random
import struct
from collections import defaultdict

import pytest
from redis.asyncio import Redis

from service.core.co_counts import CoCountSpec, CoRow, strongest
from service.store.co_counts import CoCountStore, Taken, pack_neighbors
from tests.service.catalogs import CATALOG, ODD_IDS

FOREVER_S = 1e15  # a half-life in which nothing fades
SPEC = CoCountSpec(window=3, backward=0.5, max_neighbors=4)
ROWS = f"{{{CATALOG}}}:co_counts"
LOG = f"{{{CATALOG}}}:co_log"


def counts_on(redis: Redis, half_life_s: float = FOREVER_S, **options: int) -> CoCountStore:
    return CoCountStore(redis, catalog=CATALOG, half_life_s=half_life_s, keep_s=60, **options)


@pytest.fixture
def store(redis: Redis) -> CoCountStore:
    return counts_on(redis)


async def all_rows(store: CoCountStore) -> dict[str, CoRow]:
    return {each.row.item_id: each.row async for page in store.snapshot() for each in page}


def slow_counts(events: list[Taken], spec: CoCountSpec) -> dict[str, CoRow]:
    """All events counted one after another, by the definition."""
    popularity: dict[str, float] = {}
    counts: dict[str, dict[str, float]] = defaultdict(dict)
    for _, history, taken in events:
        popularity[taken] = popularity.get(taken, 0) + 1
        touched = {taken}
        for distance, earlier in enumerate(reversed(history[-spec.window :]), start=1):
            if earlier != taken:
                popularity.setdefault(earlier, 1)
                counts[earlier][taken] = counts[earlier].get(taken, 0) + 1 / distance
                counts[taken][earlier] = counts[taken].get(earlier, 0) + spec.backward / distance
                touched.add(earlier)
        for item_id in touched:
            popularity[item_id] = max([popularity[item_id], *counts[item_id].values()])
            counts[item_id] = strongest(counts[item_id], spec.max_neighbors)
    return {item_id: CoRow(item_id, popularity[item_id], counts[item_id]) for item_id in popularity}


def assert_same(found: dict[str, CoRow], expected: dict[str, CoRow]) -> None:
    assert set(found) == set(expected)
    for item_id, row in expected.items():
        assert found[item_id].popularity == pytest.approx(row.popularity, rel=1e-5)
        assert found[item_id].neighbors == pytest.approx(row.neighbors, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
async def test_the_script_counts_what_the_rule_says(store: CoCountStore, seed: int) -> None:
    rng = random.Random(seed)
    ids = [f"item-{number}" for number in range(4)] + list(ODD_IDS)[:3]
    events = [Taken(str(n), rng.choices(ids, k=rng.randrange(5)), rng.choice(ids)) for n in range(60)]
    assert await store.count(events, CoCountSpec(window=3, backward=0.5)) == 60
    assert_same(await all_rows(store), slow_counts(events, CoCountSpec(window=3, backward=0.5)))


async def test_an_event_counts_once_however_often_it_comes(store: CoCountStore) -> None:
    event = Taken("1-0", ["a", "b"], "c")
    assert await store.count([event, event], SPEC) == 1
    before, position = await all_rows(store), await store.position()
    assert await store.count([event], SPEC) == 0
    assert await all_rows(store) == before
    assert await store.position() == position


async def test_a_full_row_keeps_its_strongest_neighbors_and_stays_open_for_new_ones(
    store: CoCountStore,
) -> None:
    rng = random.Random(0)
    strong = [Taken(f"{n}-{i}", ["a"], f"b{n}") for n in range(3) for i in range(40)]
    weak = [Taken(f"weak-{n}", ["a"], f"w{n}") for n in range(40)]
    rng.shuffle(strong)
    await store.count(
        [Taken("first", ["a"], "b0"), Taken("second", ["a"], "b1"), Taken("third", ["a"], "b2")], SPEC
    )
    await store.count(strong + weak, SPEC)
    row = (await all_rows(store))["a"]
    assert {item_id: row.neighbors[item_id] for item_id in ("b0", "b1", "b2")} == dict.fromkeys(
        ("b0", "b1", "b2"), 41
    )
    (other,) = set(row.neighbors) - {"b0", "b1", "b2"}
    assert row.neighbors[other] == 40, "the last place holds what all others counted"
    rows_of_one = CoCountSpec(max_neighbors=1)
    await store.count(
        [Taken(f"one-{n}-{y}", [f"x{n}"], f"y{y}") for n in range(40) for y in range(2)], rows_of_one
    )
    kept = [list((await store.rows([f"x{n}"]))[f"x{n}"].row.neighbors.items()) for n in range(40)]
    assert {count for ((_, count),) in kept} == {2}
    assert {owner for ((owner, _),) in kept} == {"y0", "y1"}, "with equal chances"


async def test_concurrent_writers_lose_no_event(redis: Redis) -> None:
    stores = [counts_on(redis) for _ in range(4)]
    events = [[Taken(f"{writer}-{n}", ["a"], "b") for n in range(25)] for writer in range(4)]
    await asyncio.gather(
        *(store.count(part, SPEC) for store, part in zip(stores, events, strict=True)),
        *(store.count(events[0], SPEC) for store in stores),  # again, and at the same time
    )
    rows = await all_rows(stores[0])
    assert rows["a"].neighbors == {"b": 100}
    assert rows["b"].popularity == 100


async def test_counts_fade_by_half_in_each_half_life(redis: Redis) -> None:
    store = counts_on(redis, half_life_s=1_000)
    seconds, micros = await redis.time()
    row = struct.pack(">dd", 8.0, seconds + micros / 1e6 - 2_000) + pack_neighbors({"b": 4.0, "faint": 3e-30})
    await redis.hset(ROWS, "a", row)  # type: ignore[misc]
    await store.count([Taken("1", ["b"], "a")], SPEC)
    found = (await store.rows(["a"]))["a"]
    assert found.row.popularity == pytest.approx(8 / 4 + 1, rel=1e-3)
    assert found.row.neighbors == pytest.approx({"b": 4 / 4 + 0.5}, rel=1e-3)
    assert found.at_s == pytest.approx(seconds, abs=10)
    assert store.log2_unit(3_000) - store.log2_unit(1_000) == pytest.approx(2)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"not ours",
        struct.pack(">dd", 0, 1),
        struct.pack(">dd", float("nan"), 1),
        struct.pack(">dd", 2, 1e300),
        struct.pack(">dd", 2, 1) + b"\0",
        struct.pack(">dd", 2, 1) + struct.pack(">fH", 1, 9) + b"short",
    ],
)
async def test_a_row_that_is_not_ours_is_skipped_and_begins_anew(
    store: CoCountStore, redis: Redis, value: bytes
) -> None:
    await redis.hset(ROWS, "a", value)  # type: ignore[misc]
    assert await all_rows(store) == {}
    assert store.num_unreadable == 1
    await store.count([Taken("1", ["b"], "a")], SPEC)
    assert (await all_rows(store))["a"] == CoRow("a", 1, {"b": 0.5})


async def test_the_log_names_the_changed_rows_without_gaps(store: CoCountStore) -> None:
    await store.count([Taken("1", ["a", "ä"], "b"), Taken("2", [], "c")], SPEC)
    first, second = await store.changes(0)
    assert (first.version, second.version) == (1, 2)
    assert set(first.item_ids or ()) == {"a", "ä", "b"}
    assert second.item_ids == ["c"]
    assert (first.after, second.after) == ("", first.mark)
    assert tuple(await store.position()) == (2, second.mark)
    assert await store.changes(2) == []


async def test_a_seed_writes_rows_where_there_are_none_and_can_go_on_after_a_crash(
    store: CoCountStore, redis: Redis
) -> None:
    rows = [CoRow(f"i{n}", n + 1.0, {f"i{n + 1}": 0.5}) for n in range(250)]
    await store.count([Taken("1", [], "i7")], SPEC)
    await store.seed(rows[:120])
    await redis.delete(f"{{{CATALOG}}}:co_seeded")
    assert not await store.is_seeded()
    assert await store.seed(rows) == 250 - 120
    assert await store.is_seeded()
    expected = {row.item_id: row for row in rows} | {"i7": CoRow("i7", 1.0, {})}
    assert await all_rows(store) == expected
    changed = {item_id for change in await store.changes(0) for item_id in change.item_ids or ()}
    assert changed == set(expected)
    assert await store.seed(rows) == 0


async def test_a_seed_without_rows_is_done_at_once(store: CoCountStore) -> None:
    assert await store.seed([]) == 0
    assert await store.is_seeded()


async def test_a_full_redis_takes_no_part_of_an_event(redis: Redis, store: CoCountStore) -> None:
    await store.count([Taken("1", [], "a")], SPEC)
    before = await all_rows(store)
    await redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(Exception, match="out of memory"):
            await store.count([Taken("2", ["b"], "a")], SPEC)
    finally:
        await redis.config_set("maxmemory", 0)
    assert await all_rows(store) == before
    assert await store.count([Taken("2", ["b"], "a")], SPEC) == 1
