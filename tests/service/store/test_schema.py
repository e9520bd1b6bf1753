"""The layout of a catalog in Redis: an older release leaves the catalog of a newer one alone."""

import asyncio

import pytest

from service.core.bundle import load_bundle
from service.store.fsck import check
from service.store.schema import SCHEMA, NewerCatalog, check_schema, mark_schema
from tests.known_bundle import SPEC
from tests.service.catalogs import until_true
from tests.service.running import running, starting, until_ready

OWNER = "{glyphrec}:owner"


async def contents(redis):
    return {key: await redis.dump(key) for key in sorted(await redis.keys("*")) if b":replicas" not in key}


async def test_a_first_start_notes_the_layout_and_a_later_one_keeps_it(bundle, redis_url, redis):
    for _ in range(2):
        async with running(bundle, redis_url):
            assert await redis.hget(OWNER, "schema") == str(SCHEMA).encode()


async def test_a_catalog_from_before_layouts_were_noted_is_served_and_gets_one(bundle, redis_url, redis):
    async with running(bundle, redis_url):
        pass
    await redis.hdel(OWNER, "schema")
    async with running(bundle, redis_url):
        assert await redis.hget(OWNER, "schema") == str(SCHEMA).encode()


async def test_an_older_release_waits_changes_nothing_and_says_what_to_do(bundle, redis_url, redis):
    async with running(bundle, redis_url):
        pass
    await mark_schema(redis, "glyphrec", known=SCHEMA + 1)  # as the next release does
    before = await contents(redis)
    async with starting(bundle, redis_url) as (app, client):

        async def is_told():
            answer = await client.get("/readyz")
            return answer.status_code == 503 and "layout" in answer.json()["phase"]

        await until_true(is_told)
        told = (await client.get("/readyz")).json()["phase"]
        assert f"the layout {SCHEMA + 1} of a newer release; this one knows {SCHEMA}" in told
        assert "restore a backup from before the upgrade" in told
        await asyncio.sleep(1)  # some more tries
        assert app.state.service.readiness.model is None
        assert await contents(redis) == before
        await redis.hset(OWNER, "schema", SCHEMA)  # as a restored backup has it
        await until_ready(app)


async def test_fsck_of_an_older_release_judges_and_repairs_nothing(bundle, redis_url, redis):
    async with running(bundle, redis_url):
        pass
    await mark_schema(redis, "glyphrec", known=SCHEMA + 1)
    tokenizer_id = load_bundle(bundle).manifest.tokenizer_id
    with pytest.raises(NewerCatalog):
        await check(redis, catalog="glyphrec", tokenizer_id=tokenizer_id, spec=SPEC, repair=True)


async def test_the_layout_never_sinks(redis):
    await mark_schema(redis, "shop", known=3)
    with pytest.raises(NewerCatalog):
        await mark_schema(redis, "shop", known=2)
    await check_schema(redis, "shop", known=3)
    with pytest.raises(NewerCatalog):
        await check_schema(redis, "shop", known=2)


async def test_a_value_that_is_no_number_counts_as_none(redis):
    await redis.hset("{shop}:owner", "schema", "x")
    await check_schema(redis, "shop")
    await mark_schema(redis, "shop")
    assert await redis.hget("{shop}:owner", "schema") == str(SCHEMA).encode()
