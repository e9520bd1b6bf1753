"""Tokenizers change between one that reads pixels and one that reads fields, with items new to both."""

from functools import partial

import pytest

from service.core.item_fields import Vocabulary
from tests.known_bundle import (
    KNOWN_ITEMS,
    KnownItem,
    known_codes,
    known_field_codes,
    tokenizer_id_of,
    write_known_bundle,
)
from tests.service.catalogs import assert_in_step, read_raw, until_true
from tests.service.running import running

KEY = "an-admin-key-of-this-test"
VOCABULARY = Vocabulary({"item_id": {"item-0": 1, "item-1": 2}, "brand": {"acme": 1, "zenith": 2}})
# Two items of one text: the tokenizer of fields knows both by their ids.
TWINS = [
    KnownItem(f"twin-{n}", (3, 1, n), 1, {"item_id": f"twin-{n}", "title": "Twin", "brand": "Acme"})
    for n in range(2)
]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    items = [*KNOWN_ITEMS[:5], *TWINS]
    write_known_bundle(folder / "pixels", items)
    write_known_bundle(folder / "fields", items, reader=1, vocabulary=VOCABULARY)
    return folder


@pytest.fixture
def replica(bundles, redis_url):
    return partial(running, redis_url=redis_url, bundles_dir=bundles, admin_keys=(KEY,), reread_share=1)


def new_item(number: int, brand: str = "Zenith") -> dict:
    return {"item_id": f"new-{number}", "title": f"New {number}", "brand": brand}


def by_pixels(item: dict) -> list[int]:
    return list(known_codes(item, 0))


def by_fields(item: dict) -> list[int]:
    return list(known_field_codes(item, VOCABULARY, 1))


async def codes_of(client, item_id: str) -> list[int]:
    return (await client.get(f"/items/{item_id}")).json()["codes"]


async def change(client, name: str) -> None:
    response = await client.post("/admin/bundles", json={"bundle": name})
    assert response.status_code == 202, response.text

    async def is_served() -> bool:
        return (await client.get("/info")).json()["bundle"] == name

    await until_true(is_served, timeout_s=30)


async def test_each_tokenizer_reads_in_its_own_way_what_was_posted_under_the_other(bundles, replica, redis):
    async with replica(bundles / "pixels") as client:
        client.headers["X-API-Key"] = KEY
        item, other = new_item(0), new_item(1, "never seen")
        for each in (item, other):
            assert (await client.post("/items", json=each)).status_code == 200
        assert await codes_of(client, "new-0") == by_pixels(item)

        await change(client, "fields")
        assert await codes_of(client, "new-0") == by_fields(item)
        assert await codes_of(client, "new-1") == by_fields(other)
        patched = (await client.patch("/items/new-1", json={"brand": "Acme"})).json()
        assert patched["codes"] == by_fields(other | {"brand": "Acme"})
        # The brand is the same to this tokenizer. The text is not, and the next one must know.
        assert (await client.patch("/items/new-0", json={"title": "Other"})).json()["status"] == "updated"

        await change(client, "pixels")
        assert await codes_of(client, "new-1") == by_pixels(other | {"brand": "Acme"})
        assert await codes_of(client, "new-0") == by_pixels(item | {"title": "Other"})
        assert_in_step(await read_raw(redis, "glyphrec", tokenizer_id_of(0)))


async def test_items_of_one_text_keep_the_codes_that_they_have_by_their_ids(bundles, replica):
    async with replica(bundles / "pixels") as client:
        client.headers["X-API-Key"] = KEY
        await change(client, "fields")
        assert [await codes_of(client, twin.item_id) for twin in TWINS] == [[3, 1, 0], [3, 1, 1]]


async def test_what_is_posted_during_a_change_is_read_by_both(bundles, replica, redis):
    async with replica(bundles / "pixels") as one, replica(bundles / "pixels") as two:
        for client in (one, two):
            client.headers["X-API-Key"] = KEY
        assert (await one.post("/admin/bundles", json={"bundle": "fields"})).status_code == 202
        number = 0
        while (await one.get("/info")).json()["bundle"] != "fields":
            client = one if number % 2 else two
            assert (await client.post("/items", json=new_item(number))).status_code == 200
            number += 1
        for n in range(number):
            assert await codes_of(one, f"new-{n}") == by_fields(new_item(n))
        assert_in_step(await read_raw(redis, "glyphrec", tokenizer_id_of(1)))
