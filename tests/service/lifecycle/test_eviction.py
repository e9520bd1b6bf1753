"""Redis loses a part of the catalog, as it does when it evicts keys: it is told, and nobody is misled."""

import asyncio
from pathlib import Path
from urllib.parse import unquote

import pytest

from service.core.filters import DeclaredFields
from service.store.client import connect
from service.store.fsck import check
from service.store.persistence import Persistence
from service.store.server import start_server
from tests.known_bundle import KNOWN_ITEMS, SPEC, tokenizer_id_of
from tests.service.catalogs import assert_in_step, read_raw, until_true
from tests.service.running import is_problem, running, starting

TOKENIZER = tokenizer_id_of(0)
KEYS = {kind: f"{{glyphrec}}:{kind}:{TOKENIZER}" for kind in ("codes", "trie", "log")}
KEYS |= {kind: f"{{glyphrec}}:{kind}" for kind in ("items", "active", "owner")}
ALL = [each.item_id for each in KNOWN_ITEMS]


async def ready(client):
    answer = await client.get("/health/ready")
    return answer.status_code, answer.json()


async def is_damaged(client):
    status, told = await ready(client)
    return (status, told["status"], told["stale"]) == (503, "damaged", True)


async def is_whole(client):
    status, told = await ready(client)
    return (status, told["status"], told["stale"]) == (200, "ready", False)


async def metric(client, name):
    lines = (await client.get("/metrics")).text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"glyphrec_{name} "))


async def recommended(client, **asked):
    body = {"history": [], "limit": 100, "filter": {"item_ids": ALL} | asked}
    return {each["item_id"] for each in (await client.post("/recommend", json=body)).json()["items"]}


async def repair(redis):
    return await check(redis, catalog="glyphrec", tokenizer_id=TOKENIZER, spec=SPEC, repair=True)


# --- while replicas serve ---


@pytest.mark.parametrize("kind", ["items", "codes", "trie"])
async def test_a_replica_says_that_a_part_of_the_catalog_is_gone(bundle, redis_url, redis, kind):
    async with running(bundle, redis_url) as client:
        assert await is_whole(client)
        await redis.unlink(KEYS[kind])
        await until_true(lambda: is_damaged(client))
        assert "glyphrec fsck --repair" in (await ready(client))[1]["phase"]
        assert (await metric(client, "catalog_damaged"), await metric(client, "ready")) == (1, 0)
        listed = await client.get("/items")
        if kind != "codes":
            assert is_problem(listed, 503, "catalog-damaged")
        if kind != "items":  # there are no free slots to tell, and no place to take an item from
            for method, path, body in (
                ("POST", "/items", {"item_id": "new", "title": "New"}),
                ("DELETE", "/items/item-3", None),
            ):
                answer = await client.request(method, path, json=body)
                assert is_problem(answer, 503, "catalog-damaged")
                assert answer.headers["retry-after"]
        assert (await repair(redis)).findings
        await until_true(lambda: is_whole(client))
        assert (await metric(client, "catalog_damaged"), await metric(client, "ready")) == (0, 1)
        assert_in_step(await read_raw(redis, "glyphrec"))
        left = set() if kind == "items" else set(ALL)
        await until_true(lambda: recommends(client, left))
        assert {
            item_id for item_id in ALL if (await client.get(f"/items/{item_id}")).status_code == 200
        } == left


async def recommends(client, item_ids):
    return await recommended(client) == item_ids


async def test_pages_do_not_name_items_whose_records_are_gone(bundle, redis_url, redis):
    declared = DeclaredFields({"price": "number"})
    async with running(bundle, redis_url, filter_fields=declared) as client:
        await client.post("/items", json=KNOWN_ITEMS[5].item | {"available": False})
        await redis.unlink(KEYS["items"])
        await until_true(lambda: recommends(client, set()))
        await client.post("/items", json=KNOWN_ITEMS[7].item)
        assert await recommended(client, available=True) == {"item-7"}
        assert (await client.get("/items/item-7")).json()["item"] == KNOWN_ITEMS[7].item
        for method, body in (("GET", None), ("PATCH", {"price": 1})):  # nobody knows whether there was one
            answer = await client.request(method, "/items/item-5", json=body)
            assert is_problem(answer, 503, "catalog-damaged")
        async with starting(bundle, redis_url, filter_fields=declared) as (_, late):
            await until_true(lambda: says(late, "Redis has lost"))
            assert is_problem(await late.post("/recommend", json={"history": []}), 503, "not-ready")


async def says(client, text):
    return text in (await ready(client))[1]["phase"]


@pytest.mark.parametrize("kind", ["codes", "trie"])
async def test_a_replica_that_must_load_a_torn_catalog_keeps_what_it_has(bundle, redis_url, redis, kind):
    async with running(bundle, redis_url) as client:
        await redis.unlink(KEYS[kind], KEYS["log"])  # without a log it cannot go on
        await until_true(lambda: is_damaged(client))
        await asyncio.sleep(1.5)  # longer than the follower waits for a change
        assert await recommended(client) == set(ALL)
        await repair(redis)
        await until_true(lambda: is_whole(client))
        assert await recommended(client) == set(ALL)
        assert (await client.get("/items/item-3")).json()["item"] == KNOWN_ITEMS[3].item


@pytest.mark.parametrize("kind", ["codes", "trie"])
async def test_a_repair_beside_writers_gives_everybody_the_ids_back(bundle, redis_url, redis, kind):
    """No write comes between, as it could take a slot that is not restored yet."""
    async with running(bundle, redis_url) as client:
        same = [{"item_id": f"twin-{n}", "title": "Twins have the same codes"} for n in range(40)]
        assert (await client.post("/items", json={"items": same})).status_code == 200
        before = await read_raw(redis, "glyphrec")
        await redis.unlink(KEYS[kind])
        is_over = asyncio.Event()
        written = asyncio.create_task(write_until(is_over, client))
        report = await repair(redis)
        assert report.found == {"missing_codes" if kind == "codes" else "missing_member": len(before.sids)}
        assert report.mended == report.found
        await until_true(lambda: is_whole(client))
        is_over.set()
        created = await written
        after = await read_raw(redis, "glyphrec")
        assert_in_step(after)
        assert {each: after.sids[each] for each in before.sids} == before.sids
        assert after.sids.keys() == before.sids.keys() | created
        assert (await repair(redis)).is_clean


async def write_until(is_over, client):
    """Posts more twins, until one is taken after the repair; the ids that were."""
    created, number = set(), 0
    while not (is_over.is_set() and created):
        number += 1
        item = {"item_id": f"late-{number}", "title": "Twins have the same codes"}
        answer = await client.post("/items", json=item)
        if answer.status_code == 200:
            created.add(item["item_id"])
        else:
            assert is_problem(answer, 503, "catalog-damaged")
    return created


async def test_items_that_are_posted_again_heal_the_catalog_and_keep_their_ids(bundle, redis_url, redis):
    async with running(bundle, redis_url) as client:
        before = {each: (await client.get(f"/items/{each}")).json() for each in ALL}
        await redis.unlink(KEYS["items"])
        await until_true(lambda: is_damaged(client))
        await client.post("/items", json=KNOWN_ITEMS[0].item)
        await asyncio.sleep(1.5)  # longer than between two looks
        assert await is_damaged(client), "one item does not make a catalog"
        await client.post("/items", json={"items": [each.item for each in KNOWN_ITEMS]})
        await until_true(lambda: is_whole(client))
        assert await recommended(client) == set(ALL)
        assert {each: (await client.get(f"/items/{each}")).json() for each in ALL} == before
        assert (await repair(redis)).is_clean


async def test_a_page_of_the_listing_is_never_empty_before_the_last(bundle, redis_url, redis):
    async with running(bundle, redis_url) as client:
        raw = await read_raw(redis, "glyphrec")
        order = [member[8:].decode() for member in sorted(raw.trie)]
        await redis.hdel(KEYS["items"], *order[:12])
        found, cursor = [], ""
        while cursor is not None:
            page = (await client.get(f"/items?limit=5{cursor and f'&cursor={cursor}'}")).json()
            assert page["items"]
            found += [each["item"]["item_id"] for each in page["items"]]
            cursor = page["next_cursor"]
        assert found == order[12:]
        await until_true(lambda: recommends(client, set(order[12:])))


async def test_a_lost_log_is_begun_anew_and_followed(bundle, redis_url, redis):
    async with running(bundle, redis_url) as one, running(bundle, redis_url) as two:
        await redis.unlink(KEYS["log"])
        posted = await one.post("/items", json={"item_id": "new", "title": "New"})
        assert posted.status_code in (200, 503)
        for client in (one, two):
            await until_true(lambda client=client: named(client, "new"))
            assert await recommended(client) == set(ALL)
            assert await is_whole(client)


async def named(client, item_id):
    return (await client.get(f"/items/{item_id}/similar")).status_code == 200


# --- when a replica starts ---


@pytest.mark.parametrize(
    "lost", [["items"], ["codes"], ["trie"], ["items", "active", "owner"], ["codes", "items"]]
)
async def test_a_start_on_a_damaged_catalog_is_not_ready_and_puts_nothing_in(bundle, redis_url, redis, lost):
    async with running(bundle, redis_url) as client:
        await client.delete("/items/item-2")
    await redis.unlink(*(KEYS[kind] for kind in lost))
    before = {key: await redis.dump(key) for key in await redis.keys()}
    async with starting(bundle, redis_url) as (app, client):
        await until_true(lambda: says(client, "Redis has lost a part of the catalog"))
        await asyncio.sleep(0.7)  # some more tries
        assert (await ready(client))[0] == 503
        assert app.state.service.readiness.model is None
        assert {key: await redis.dump(key) for key in await redis.keys()} == before
        await repair(redis)
        await until_true(lambda: is_whole(client))
        assert (await client.get("/items/item-2")).status_code == 404


@pytest.mark.parametrize("lost", [["active"], ["owner"], ["active", "owner"], ["active", "owner", "log"]])
async def test_a_start_recognizes_its_catalog_and_does_not_put_the_bundle_in_again(
    bundle, redis_url, redis, lost
):
    async with running(bundle, redis_url) as client:
        await client.delete("/items/item-2")
    await redis.unlink(*(KEYS[kind] for kind in lost))
    async with running(bundle, redis_url) as client:
        assert await recommended(client) == set(ALL) - {"item-2"}
        await until_true(lambda: is_active(redis))
        await until_true(lambda: is_owner(redis))


async def is_active(redis):
    return await redis.get(KEYS["active"]) == TOKENIZER.encode()


async def is_owner(redis):
    return await redis.hget(KEYS["owner"], "tokenizer") == TOKENIZER.encode()


async def test_all_that_is_gone_at_once_is_not_put_in_from_the_bundle_while_a_replica_serves(
    bundle, redis_url, redis
):
    async with running(bundle, redis_url) as client:
        await client.delete("/items/item-2")
        await redis.flushall()
        await until_true(lambda: recommends(client, set()))
        await until_true(lambda: is_active(redis))
        async with running(bundle, redis_url) as late:
            assert await recommended(late) == set()
        assert await metric(client, "catalog_items") == 0


# --- what may be lost ---


def kept(eviction, max_memory_bytes):
    return Persistence(True, "always", True, True, True, 0, eviction, 1, max_memory_bytes)


@pytest.mark.parametrize(
    ("eviction", "max_memory", "evictable", "words"),
    [
        ("noeviction", 10**6, set(), ""),
        ("noeviction", 0, set(), ""),
        ("allkeys-lru", 10**6, {"catalog", "events"}, "may drop the whole catalog when its memory is full"),
        ("allkeys-random", 10**6, {"catalog", "events"}, "may drop the whole catalog"),
        ("allkeys-lfu", 0, set(), "as soon as it has a maxmemory"),
        ("volatile-lru", 10**6, {"events"}, "drops no items"),
        ("volatile-ttl", 0, set(), ""),
    ],
)
def test_the_policy_says_what_redis_may_drop(eviction, max_memory, evictable, words):
    persistence = kept(eviction, max_memory)
    assert {keys for keys, may_go in persistence.evictable.items() if may_go} == evictable
    assert words in " ".join(persistence.warnings())
    assert bool(list(persistence.warnings())) == bool(words)


async def test_a_policy_that_endangers_the_catalog_is_told_loudly(bundle, redis_url, redis):
    try:
        await redis.config_set("maxmemory", 10**9)
        for policy, catalog, events in (("allkeys-lru", 1, 1), ("volatile-lru", 0, 1), ("noeviction", 0, 0)):
            await redis.config_set("maxmemory-policy", policy)
            async with running(bundle, redis_url) as client:
                status, told = await ready(client)
                assert status == 200
                assert (policy in " ".join(told["warnings"])) == (policy != "noeviction")
                assert await metric(client, 'redis_may_evict{keys="catalog"}') == catalog
                assert await metric(client, 'redis_may_evict{keys="events"}') == events
    finally:
        await redis.config_set("maxmemory", 0)
        await redis.config_set("maxmemory-policy", "noeviction")


async def test_a_redis_that_evicts_for_other_keys_never_lets_a_page_name_what_is_gone(
    bundle: Path, tmp_path: Path
):
    """A real eviction: another program fills the memory until a part of the catalog goes."""
    with start_server(tmp_path / "redis") as server:
        redis = connect(f"unix://{unquote(server.url.removeprefix('unix://'))}")
        await redis.config_set("maxmemory-policy", "allkeys-random")
        async with running(bundle, server.url) as client:
            await redis.config_set("maxmemory", (await redis.info("memory"))["used_memory"] + 2_000_000)
            parts = [KEYS[kind] for kind in ("items", "codes", "trie")]
            for number in range(20_000):
                if await redis.exists(*parts) < len(parts):
                    break
                await redis.set(f"other {number}", "x" * 50_000)
            assert await redis.exists(*parts) < len(parts), "or nothing was shown"
            await redis.config_set("maxmemory", 0)
            await until_true(lambda: is_damaged_or_empty(client, redis, parts))
            await until_true(lambda: names_only_what_is_there(client))
        await redis.aclose()


async def is_damaged_or_empty(client, redis, parts):
    return await is_damaged(client) or not await redis.exists(*parts)


async def names_only_what_is_there(client):
    """Of each named item there is a record. Without the codes nobody can tell, and says so."""
    told = {(await client.get(f"/items/{each}")).status_code for each in await recommended(client)}
    return told <= {200, 503}
