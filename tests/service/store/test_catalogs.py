"""Several catalogs in one Redis: each is listed with what it has, and is deleted alone and when asked."""

import json

import pytest

from service.store.catalogs import CatalogInService, all_catalogs, delete_catalog, one_catalog
from tests.known_bundle import KNOWN_ITEMS, tokenizer_id_of
from tests.service.processes import finished
from tests.service.running import running

FOREIGN = {"{other}:thing": "1", "{a}:items:x:y": "1", "plain": "1", "{}:items": "1"}


@pytest.fixture
async def two_catalogs(bundle, redis_url, redis):
    """Catalogs `a` and `a.b`, of which one name begins with the other, beside keys of other programs."""
    await redis.mset(FOREIGN)
    for name in ("a", "a.b"):
        async with running(bundle, redis_url, catalog=name) as client:
            event = {"event_id": f"e-{name}", "request_id": "r", "item_id": "item-0"}
            await client.post("/events", json={"events": [event]})
            if name == "a":
                await client.post("/items", json={"item_id": "more", "title": "One more"})
    return redis_url


async def keys_of(redis, name):
    return {key for key in await redis.keys("*") if key.startswith(f"{{{name}}}:".encode())}


@pytest.mark.usefixtures("two_catalogs")
async def test_each_catalog_is_listed_with_its_items_bundle_and_size(redis):
    first, second = await all_catalogs(redis)
    assert (first.name, second.name) == ("a", "a.b")
    assert (first.num_items, second.num_items) == (len(KNOWN_ITEMS) + 1, len(KNOWN_ITEMS))
    for each in (first, second):
        assert each.tokenizer_id == tokenizer_id_of(0)
        assert each.bundle.startswith("known")
        assert each.replicas == ()
        assert each.num_bytes > 1_000
    ours = await keys_of(redis, "a")
    assert first.num_keys == len(ours) - 1, "all but that of another program"


@pytest.mark.usefixtures("two_catalogs")
async def test_every_key_of_a_catalog_goes_and_no_other_one(redis):
    before = set(await redis.keys("*"))
    ours = await keys_of(redis, "a") - {b"{a}:items:x:y"}
    assert await delete_catalog(redis, "a") == len(ours)
    assert set(await redis.keys("*")) == before - ours
    assert await one_catalog(redis, "a") is None
    assert await delete_catalog(redis, "a") == 0
    assert (await one_catalog(redis, "a.b")).num_items == len(KNOWN_ITEMS)


async def test_a_catalog_that_is_served_is_not_deleted(bundle, redis_url, redis):
    async with running(bundle, redis_url, catalog="a"):
        before = set(await redis.keys("*"))
        with pytest.raises(CatalogInService, match="Stop these first"):
            await delete_catalog(redis, "a")
        assert set(await redis.keys("*")) == before
        (found,) = await all_catalogs(redis)
        assert len(found.replicas) == 1
    await delete_catalog(redis, "a")
    assert await all_catalogs(redis) == []


async def test_the_command_lists_and_deletes_only_with_the_name_given_twice(two_catalogs, redis):
    url = two_catalogs
    status, out, err = finished("catalogs", REDIS_URL=url)
    assert (status, err) == (0, "")
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [["a", "31"], ["a.b", "30"]]
    status, out, _ = finished("catalogs", "--json", REDIS_URL=url)
    assert [json.loads(line)["num_items"] for line in out.splitlines()] == [31, 30]
    before = set(await redis.keys("*"))
    for wrong in (
        ["--delete", "a"],
        ["--delete", "a", "--confirm", "b"],
        ["--delete", "c", "--confirm", "c"],
    ):
        status, out, err = finished("catalogs", *wrong, REDIS_URL=url)
        assert status == 2
        assert "Nothing was deleted" in out + err or "no catalog 'c'. It has: a, a.b" in err
    assert set(await redis.keys("*")) == before
    status, out, _ = finished("catalogs", "--delete", "a", "--confirm", "a", REDIS_URL=url)
    assert (status, out.split(":")[0]) == (0, "Deleted the catalog a")
    _, out, _ = finished("catalogs", REDIS_URL=url)
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["a.b"]
