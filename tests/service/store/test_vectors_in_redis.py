"""Vectors in Redis change together with their items, belong to one content, and are checked."""

from dataclasses import replace

import pytest

from service.errors import ItemChanged
from service.store.fsck import check
from service.store.rollout import RolloutStore
from service.store.vectors import MARK_LENGTH
from tests.service.catalogs import CATALOG, SPEC, TOKENIZER, put, record, store_on

VECTORS = f"{{{CATALOG}}}:vectors:{TOKENIZER}"
CODES = f"{{{CATALOG}}}:codes:{TOKENIZER}"
DIM = 4
ONE, TWO = b"\x01\x02\x03\x7f", b"\x7f\xff\x00\x01"


@pytest.fixture
def store(redis):
    return store_on(redis, vector_dim=DIM)


def item(text="text", vector=ONE, **fields):
    return replace(record("a", text, **fields), vector=vector)


async def vectors_of(store, *item_ids):
    return await store.vectors.of([each.encode() for each in item_ids])


async def told(store, after=0):
    """(op, vector) of each change in the log."""
    return [(change.op, change.vector) for change in await store.changes(after)]


async def report(redis, **options):
    return await check(redis, catalog=CATALOG, tokenizer_id=TOKENIZER, spec=SPEC, vector_dim=DIM, **options)


async def test_an_item_is_put_and_dropped_with_its_vector(store, redis):
    await put(store, item(), (1, 2, 3))
    assert await vectors_of(store, "a", "b") == {b"a": ONE}
    assert await told(store) == [("put", ONE)]
    (page,) = [page async for page in store.snapshot()]
    assert [entry.vector for entry in page] == [ONE]
    await store.drop(["a"])
    assert await redis.exists(VECTORS) == 0
    assert await told(store) == [("put", b""), ("drop", b"")]


async def test_a_new_content_takes_the_old_vector_away_even_if_it_brings_none(store, redis):
    await put(store, item(), (1, 2, 3))
    await put(store, item("other", TWO), (1, 2, 3))
    assert await vectors_of(store, "a") == {b"a": TWO}
    await put(store, item("third", b""), (1, 2, 3))
    assert await vectors_of(store, "a") == {}
    assert await redis.exists(VECTORS) == 0


async def test_a_field_that_is_not_read_leaves_the_vector(store):
    await put(store, item(), (1, 2, 3))
    result = await put(store, item(price=3, vector=b""), None)
    assert result.status == "updated"
    assert await told(store, after=1) == [("put", ONE)]


async def test_a_vector_that_comes_later_is_logged_once_and_moves_nothing(store):
    first = await put(store, item(vector=b""), (1, 2, 3))
    assert [[each.item_id for each in page] async for page in store.items_without_vector()] == [["a"]]
    (result,) = await store.assign([(item(), None)])
    assert (result.status, result.sid) == ("updated", first.sid)
    assert [page async for page in store.items_without_vector()] == []
    (again,) = await store.assign([(item(vector=TWO), None)])
    assert (again.status, again.version) == ("unchanged", result.version)
    assert await vectors_of(store, "a") == {b"a": ONE}
    assert await told(store, after=1) == [("put", ONE)]


async def test_a_vector_of_a_content_that_has_changed_meanwhile_is_not_taken(store):
    await put(store, item("newer", TWO), (1, 2, 3))
    (result,) = await store.assign([(item(vector=ONE), None)])
    assert isinstance(result, ItemChanged)
    assert await vectors_of(store, "a") == {b"a": TWO}


async def test_a_vector_that_an_older_release_left_is_of_no_use(store, redis):
    await put(store, item(), (1, 2, 3))
    old = store_on(redis)  # an older release writes no vectors, and knows of none
    held = await redis.hget(VECTORS, "a")
    await put(old, item("other"), (1, 2, 3))
    await redis.hset(VECTORS, "a", held)
    assert await vectors_of(store, "a") == {}
    assert [[each.item_id for each in page] async for page in store.items_without_vector()] == [["a"]]


async def test_without_a_dimension_nothing_is_kept(redis):
    await put(store_on(redis), item(), (1, 2, 3))
    assert await redis.exists(VECTORS) == 0


async def test_values_of_another_length_are_skipped_and_counted(store, redis):
    await put(store, item(), (1, 2, 3))
    held = await redis.hget(VECTORS, "a")
    await redis.hset(VECTORS, "a", held[:-1])
    assert await vectors_of(store, "a") == {}
    assert store.num_unreadable == 1


async def test_the_vectors_of_a_retired_tokenizer_are_deleted(store, redis):
    await put(store, item(), (1, 2, 3))
    changes = RolloutStore(redis, catalog=CATALOG, replica_id="r")
    await redis.zadd(f"{{{CATALOG}}}:retired", {TOKENIZER: 1})
    assert await changes.purge(TOKENIZER)
    assert await redis.exists(VECTORS) == 0


async def test_fsck_counts_whole_vectors_and_removes_what_no_search_may_use(store, redis):
    for name in ("a", "b", "c", "d"):
        await put(store, replace(record(name, name), vector=ONE), (1, 2, 3))
    await store.activate()
    found = await report(redis)
    assert found.is_clean, found
    assert found.num_vectors == 4
    held = {name: await redis.hget(VECTORS, name) for name in ("a", "b", "c")}
    await redis.hset(VECTORS, "a", held["a"][:-1])
    await redis.hset(VECTORS, "b", b"0" * MARK_LENGTH + ONE)
    await redis.hset(VECTORS, "nobody", held["c"])
    kinds = {"unreadable_vector": 1, "outdated_vector": 1, "vector_without_codes": 1}
    assert (await report(redis)).found == kinds
    assert (await report(redis, repair=True)).mended == kinds
    clean = await report(redis)
    assert clean.is_clean
    assert clean.num_vectors == 2
    assert await redis.hkeys(VECTORS) == [b"c", b"d"]
