"""A start and the catalog that it finds: its own, an older one of the same shop, or that of another shop."""

import asyncio
import logging
import re
from contextlib import asynccontextmanager

import pytest

from service.app import create_app
from service.core.bundle_items import bundle_items
from service.errors import CatalogInUse
from service.lifecycle.bundles import GraphOptions, load
from service.lifecycle.ownership import owner_of
from service.lifecycle.seeding import seed
from service.settings import Settings
from service.store.items import ItemStore
from service.store.standing import Sizes, StandingStore
from tests.known_bundle import KNOWN_ITEMS, SPEC, KnownItem, known_codes, tokenizer_id_of, write_known_bundle
from tests.service.catalogs import assert_in_step, read_raw, until, until_true
from tests.service.running import running, starting, until_ready

OLD, NEW, THEIRS = (tokenizer_id_of(reader) for reader in range(3))
# The ids of another shop may be the same numbers.
OTHER_ITEMS = [
    KnownItem(f"item-{n}", SPEC.codes_of(n), 1, {"item_id": f"item-{n}", "title": f"Another shop's {n}"})
    for n in range(25)
]


@pytest.fixture(scope="session")
def exports(tmp_path_factory):
    """`shop`, a newer and an older export of it with other tokenizers, and the bundle of another shop."""
    folder = tmp_path_factory.mktemp("exports")
    write_known_bundle(folder / "shop", KNOWN_ITEMS, data_name="groceries")
    newer = [*KNOWN_ITEMS[:20], *(each._replace(item_id=f"new-{each.item_id}") for each in OTHER_ITEMS[:5])]
    newer = [each._replace(item=each.item | {"item_id": each.item_id}) for each in newer]
    write_known_bundle(folder / "newer", newer, reader=1, created_at="2026-02-01T00:00:00Z")
    write_known_bundle(folder / "older", KNOWN_ITEMS, reader=1, created_at="2025-12-01T00:00:00Z")
    write_known_bundle(folder / "other", OTHER_ITEMS, reader=2, data_name="tools")
    return folder


async def contents(redis):
    """Every key with its value, but for what a living replica tells of itself."""
    keys = sorted(await redis.keys("*"))
    return {key: await redis.dump(key) for key in keys if not key.endswith(b":replicas")}


async def readyz(client):
    answer = await client.get("/readyz")
    return answer.status_code, answer.json()["phase"]


async def num_items(client):
    return (await client.get("/info")).json()["catalog"]["items"]


@asynccontextmanager
async def refused(bundle, redis_url, **settings):
    """A service that has said for a while why it does not get ready."""
    async with starting(bundle, redis_url, **settings) as (app, client):
        async with asyncio.timeout(10):
            while "GLYPHREC_TAKE_OVER" not in (await readyz(client))[1]:
                await asyncio.sleep(0.02)
        await asyncio.sleep(1)  # some more tries
        assert app.state.service.readiness.model is None
        yield client


# --- another shop's catalog ---


@pytest.mark.parametrize("is_up", [True, False], ids=["while it is served", "while nobody serves it"])
async def test_an_unrelated_bundle_gets_not_ready_and_changes_nothing(
    exports, redis_url, redis, caplog, is_up
):
    async with running(exports / "shop", redis_url) as shop:
        await shop.post("/items", json={"item_id": "posted", "title": "Posted"})
        before = await contents(redis)
        if is_up:
            async with refused(exports / "other", redis_url) as other:
                status, phase = await readyz(other)
                assert (await other.post("/items", json={"item_id": "x", "title": "X"})).status_code == 503
                event = {"event_id": "e", "request_id": "r", "item_id": "x"}
                assert (await other.post("/events", json={"events": [event]})).status_code == 503
                assert await num_items(shop) == len(KNOWN_ITEMS) + 1
    if not is_up:
        async with refused(exports / "other", redis_url) as other:
            status, phase = await readyz(other)
    assert await contents(redis) == before
    assert status == 503
    told = (
        r"The catalog 'glyphrec' in this Redis is in use by the bundle 'shop' \(tokenizer 0123456789ab, data "
        r"groceries, exported 2026-01-01T00:00:00Z\) since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\. The bundle "
        r"'other' \(.*data tools.*\).* 0 of 25 .* 0 of 31 .*GLYPHREC_CATALOG.*GLYPHREC_TAKE_OVER=true"
    )
    assert re.match(told, phase), phase
    lines = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert any(re.match(told, line) for line in lines), "the log says the same"


async def test_another_catalog_or_taking_over_are_the_ways_out(exports, redis_url, redis):
    async with running(exports / "shop", redis_url) as shop:
        await shop.post("/items", json={"item_id": "posted", "title": "Posted"})
        async with running(exports / "other", redis_url, catalog="tools") as other:
            assert await num_items(other) == len(OTHER_ITEMS)
            assert (await other.get("/items/item-3")).json()["item"]["title"] == "Another shop's 3"
            assert (await shop.get("/items/item-3")).json()["item"]["title"] == "Thing number 3"
        async with running(exports / "other", redis_url, take_over=True) as taken:
            # Ready means that everything is read and switched.
            assert await num_items(taken) == len(KNOWN_ITEMS) + 1
            assert await redis.get("{glyphrec}:active") == THEIRS.encode()
            found = (await taken.get("/items/posted")).json()
            assert tuple(found["codes"]) == known_codes({"title": "Posted"}, reader=2)
    async with refused(exports / "shop", redis_url, catalog="tools"):
        pass


async def test_of_two_shops_that_start_at_once_on_an_empty_redis_one_gets_the_catalog(
    exports, redis_url, redis
):
    async with starting(exports / "shop", redis_url) as one, starting(exports / "other", redis_url) as two:
        services = [app.state.service for app, _ in (one, two)]
        await until(lambda: any(each.readiness.model for each in services))
        winner = next(n for n, each in enumerate(services) if each.readiness.model)
        _, loser = (one, two)[1 - winner]
        await until_true(lambda: says(loser, "GLYPHREC_TAKE_OVER"))
        assert services[1 - winner].readiness.model is None
        tokenizer, items = [(OLD, KNOWN_ITEMS), (THEIRS, OTHER_ITEMS)][winner]
        raw = await read_raw(redis, "glyphrec", tokenizer)
        assert_in_step(raw)
        assert raw.items == {each.item_id.encode() for each in items}
        assert not await redis.exists(*(f"{{glyphrec}}:trie:{each}" for each in {OLD, THEIRS} - {tokenizer}))


async def says(client, text):
    return text in (await readyz(client))[1]


async def test_a_catalog_from_before_owners_were_noted_is_recognized_too(exports, redis_url, redis):
    async with running(exports / "shop", redis_url):
        pass
    await redis.delete("{glyphrec}:owner")
    async with refused(exports / "other", redis_url) as other:
        assert f"tokenizer {OLD}, which an earlier release" in (await readyz(other))[1]
    async with running(exports / "newer", redis_url):
        assert await redis.get("{glyphrec}:active") == NEW.encode()
    owner = await redis.hgetall("{glyphrec}:owner")
    assert (owner[b"bundle"], owner[b"tokenizer"]) == (b"newer", NEW.encode())


# --- another export of the same shop ---


async def test_a_newer_export_of_the_same_shop_is_ready_when_all_is_read_and_switched(
    exports, redis_url, redis
):
    async with running(exports / "shop", redis_url) as shop:
        await shop.post("/items", json={"item_id": "posted", "title": "Posted"})
        await shop.delete("/items/item-2")
    async with running(exports / "newer", redis_url) as newer:
        assert await num_items(newer) == len(KNOWN_ITEMS)
        assert await redis.get("{glyphrec}:active") == NEW.encode()
        assert tuple((await newer.get("/items/item-3")).json()["codes"]) == KNOWN_ITEMS[3].codes
        found = (await newer.get("/items/item-25")).json()
        assert tuple(found["codes"]) == known_codes(found["item"], reader=1)
        for gone in ("item-2", "new-item-1"):
            assert (await newer.get(f"/items/{gone}")).status_code == 404
    assert_in_step(await read_raw(redis, "glyphrec", NEW))


async def test_a_start_that_reads_a_catalog_tells_how_far_it_is_and_is_not_ready_before_the_end(
    exports, redis_url, caplog
):
    caplog.set_level(logging.INFO)
    async with running(exports / "shop", redis_url):
        pass
    app = create_app(Settings(bundle=exports / "newer", redis_url=redis_url, threads=1))
    readiness, phases = app.state.service.readiness, []
    readiness.say = lambda phase: phases.append((phase, readiness.model))
    async with app.router.lifespan_context(app):
        await until_ready(app)
        gauges = app.state.service.metrics
        assert gauges.rollout_items._value.get() == gauges.rollout_read_items._value.get() == len(KNOWN_ITEMS)
    told = [phase for phase, _ in phases if phase.startswith("reading the items of the catalog: ")]
    assert told[0].endswith(f" 0 of {len(KNOWN_ITEMS)}")
    assert told[-1].endswith(f" {len(KNOWN_ITEMS)} of {len(KNOWN_ITEMS)}")
    assert {model for _, model in phases} == {None}, "not ready meanwhile"
    lines = [each.getMessage() for each in caplog.records]
    assert {told[0], told[-1]} <= set(lines)


async def test_what_late_replicas_write_after_such_a_start_reaches_the_new_ones(exports, redis_url):
    async with running(exports / "shop", redis_url) as late, running(exports / "newer", redis_url) as newer:
        await late.post("/items", json={"item_id": "posted", "title": "Posted"})
        await until_true(lambda: has(newer, "posted"))
        await late.delete("/items/item-5")
        await until_true(lambda: lacks(newer, "item-5"))
        await until_true(lambda: says(late, "ready, but"))


async def has(client, item_id):
    return (await client.get(f"/items/{item_id}")).status_code == 200


async def lacks(client, item_id):
    return not await has(client, item_id)


async def test_an_older_export_reads_all_and_stays_behind(exports, redis_url, redis):
    async with running(exports / "shop", redis_url) as shop:
        await shop.post("/items", json={"item_id": "posted", "title": "Posted"})
    async with running(exports / "older", redis_url) as older:
        assert await num_items(older) == len(KNOWN_ITEMS) + 1
        await until_true(lambda: says(older, "ready, but"))
        assert await redis.get("{glyphrec}:active") == OLD.encode()


async def test_the_replaced_export_does_not_switch_back_when_it_starts_again(exports, redis_url, redis):
    for name in ("shop", "newer"):
        async with running(exports / name, redis_url):
            pass
    async with running(exports / "newer", redis_url) as newer:
        await newer.post("/items", json={"item_id": "posted", "title": "Posted"})
        async with running(exports / "shop", redis_url) as shop:
            assert await has(shop, "posted"), "also what was written while it was away"
            await until_true(lambda: says(shop, "ready, but"))
        assert await redis.get("{glyphrec}:active") == NEW.encode()


# --- its own catalog ---


async def test_a_replica_that_still_seeds_does_not_undo_what_is_done_meanwhile(exports, redis_url, redis):
    loaded = load(exports / "shop", GraphOptions(1, 4, None))
    store = ItemStore(redis, catalog="glyphrec", tokenizer_id=OLD, spec=SPEC)
    standings = StandingStore(redis, catalog="glyphrec", mine=owner_of(loaded))
    assert await standings.claim()
    assert await standings.claim(), "twice is once"
    await store.seed([])
    async with running(exports / "shop", redis_url) as shop:  # goes on with it, and is ready
        await shop.delete("/items/item-2")
        await shop.post("/items", json={"item_id": "item-3", "title": "Changed"})
        with pytest.raises(CatalogInUse):
            await seed(store, bundle_items(loaded.bundle), loaded.manifest.render)
        assert await lacks(shop, "item-2")
        assert (await shop.get("/items/item-3")).json()["item"]["title"] == "Changed"


async def test_a_seeding_that_was_killed_is_finished(exports, redis_url, redis):
    loaded = load(exports / "shop", GraphOptions(1, 4, None))
    store = ItemStore(redis, catalog="glyphrec", tokenizer_id=OLD, spec=SPEC)
    await StandingStore(redis, catalog="glyphrec", mine=owner_of(loaded)).claim()
    await seed(store, bundle_items(loaded.bundle)[:7], loaded.manifest.render)
    async with running(exports / "shop", redis_url) as shop:
        assert await num_items(shop) == len(KNOWN_ITEMS)


async def test_a_catalog_that_nobody_has_read_is_read_before_the_replica_is_ready(exports, redis_url, redis):
    async with running(exports / "shop", redis_url) as shop:
        await shop.post("/items", json={"item_id": "posted", "title": "Posted"})
        await shop.delete("/items/item-2")
    await redis.delete(*(f"{{glyphrec}}:{kind}:{OLD}" for kind in ("codes", "trie", "log")))
    async with starting(exports / "shop", redis_url) as (app, client):
        await until_ready(app)
        assert await num_items(client) == len(KNOWN_ITEMS)
        assert await lacks(client, "item-2")
        assert await has(client, "posted")


@pytest.mark.parametrize(
    ("sizes", "is_damaged"),
    [
        ((0, 0, 0), False),
        ((30, 30, 30), False),
        ((31, 30, 30), False),  # one is unread
        ((30, 0, 0), False),  # all are
        ((29, 30, 30), False),  # one was dropped under another tokenizer
        ((0, 30, 30), True),
        ((3, 30, 30), True),  # posted after the items were gone
        ((30, 30, 0), True),
        ((30, 0, 30), True),
        ((0, 30, 0), True),
        ((0, 0, 30), True),
    ],
)
def test_a_key_that_is_gone_is_damage(sizes, is_damaged):
    assert bool(Sizes(*sizes).damage) == is_damaged
