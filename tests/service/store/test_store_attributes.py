"""The attributes of an item for filters, in the log and in the snapshot."""

import random

import pytest
from redis.asyncio import Redis

from service.core.filters import NO_ATTRIBUTES, Attributes, DeclaredFields
from service.core.sid import Sid
from service.store.items import ItemStore, PutResult, TrieEntry
from tests.service.catalogs import ITEMS, LOG, ODD_IDS, put, random_codes, record, store_on

FIELDS = DeclaredFields.parse("brand:text,price:number,used:boolean")


async def test_each_change_tells_the_attributes_of_its_version(redis: Redis) -> None:
    store = store_on(redis, fields=FIELDS)
    await put(store, record("a", categories=["Pens", "Gifts"], price="1.5", color="red"), (1, 2, 3))
    await put(store, record("a", available=False, brand="Acme é", used=True), None)
    await store.drop(["a"])
    assert [change.attributes for change in await store.changes(0)] == [
        Attributes(("Pens", "Gifts"), True, {"price": 1.5}),
        Attributes((), False, {"brand": "Acme é", "used": True}),
        NO_ATTRIBUTES,
    ]


async def test_a_snapshot_tells_the_attributes_of_each_item(redis: Redis) -> None:
    store, rng = store_on(redis, fields=FIELDS), random.Random(0)
    ids = [f"i{i}" for i in range(300)] + ODD_IDS
    posted = [record(item_id, item_id, price=i, categories=item_id) for i, item_id in enumerate(ids)]
    await store.put([(each, random_codes(rng)) for each in posted])
    entries = [entry async for entries in store.snapshot() for entry in entries]
    told = {entry.item_id: entry.attributes for entry in entries}
    assert told == {each.item_id: FIELDS.attributes_of(each.item) for each in posted}


async def test_an_item_that_redis_no_longer_has_is_not_in_the_snapshot_and_its_put_is_a_drop(
    store: ItemStore, redis: Redis
) -> None:
    """It goes while the snapshot is read, or it was evicted. Without attributes it would pass filters."""
    await put(store, record("a", categories="Pens", available=False), (1, 2, 3))
    await put(store, record("b", "b"), (1, 2, 3))
    other = store_on(redis, fields=FIELDS)
    await redis.hdel(ITEMS, "a")
    assert [entry async for entries in store.snapshot() for entry in entries] == [
        TrieEntry("b", Sid((1, 2, 3), 1), NO_ATTRIBUTES)
    ]
    assert [(change.op, change.item_id) for change in await other.changes(0)] == [("drop", "a"), ("put", "b")]


@pytest.mark.parametrize("others", ["", "brand:text,price:number", "brand:number,price:number,used:boolean"])
async def test_changes_by_a_writer_of_other_fields_have_the_attributes_of_now(
    redis: Redis, others: str
) -> None:
    store, other = store_on(redis, fields=FIELDS), store_on(redis, fields=DeclaredFields.parse(others))
    await put(other, record("a", brand="Acme", used=True), (1, 2, 3))
    await put(other, record("b", "b", brand="Best"), (1, 2, 3))
    await other.drop(["b"])
    changes = await store.changes(0)
    assert changes[0].attributes == Attributes((), True, {"brand": "Acme", "used": True})
    assert [change.attributes for change in changes[1:]] == [NO_ATTRIBUTES, NO_ATTRIBUTES]


async def test_changes_by_an_older_release_have_the_attributes_of_now(store: ItemStore, redis: Redis) -> None:
    await put(store, record("a", categories="Pens"), (1, 2, 3))
    ((_, fields),) = await redis.xrange(LOG)
    del fields[b"attrs"]
    await redis.xadd(LOG, fields, id="2-0")
    for change in await store.changes(0):
        assert (change.op, change.attributes) == ("put", Attributes(("Pens",), True, {}))


@pytest.mark.parametrize("told", ["", ',["x"],true', ',["x"],true,[1,2],3]', ',["x"],true,[1,2]]', ",1"])
async def test_attributes_that_are_not_ours_make_a_change_unreadable(
    store: ItemStore, redis: Redis, told: str
) -> None:
    await put(store, record("a"), (1, 2, 3))
    ((_, fields),) = await redis.xrange(LOG)
    await redis.xadd(LOG, {**fields, b"attrs": '["",' + told}, id="2-0")
    await redis.xadd(LOG, {"op": "put", "id": b"\xff"}, id="3-0")
    assert [change.op for change in await store.changes(0)] == ["put", "unreadable", "unreadable"]


async def test_assigning_codes_leaves_the_item_as_it_was_posted(redis: Redis) -> None:
    old, new = store_on(redis), store_on(redis, tokenizer_id="f" * 12, fields=FIELDS)
    await put(old, record("a", price=3), (1, 1, 1))
    (result,) = await new.assign([(record("a", price=2), (2, 2, 2))])
    assert isinstance(result, PutResult)
    assert result.status == "created"
    found = await new.get("a")
    assert found is not None
    assert found.item["price"] == 3
    assert [change.attributes.values for change in await new.changes(0)] == [{"price": 3}]
