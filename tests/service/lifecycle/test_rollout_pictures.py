"""Tokenizers change while photos are kept: a new one reads them again, one of text alone leaves them."""

import base64
from functools import partial

import pytest

from service.core.bundle import PictureSpec
from service.core.pictures import keep_picture
from tests.known_bundle import (
    KNOWN_ITEMS,
    PICTURES,
    KnownItem,
    known_codes,
    tokenizer_id_of,
    write_known_bundle,
)
from tests.service.catalogs import assert_in_step, read_raw, until_true
from tests.service.core.photos import photo
from tests.service.running import running

KEY = "an-admin-key-of-this-test"
UNITS = PictureSpec(size_px=512, shows="unit")
RED, BLUE = photo(1), photo(2)
# An item that was trained with a photo, which no bundle ships.
TRAINED = KnownItem("trained", (5, 1, 2), 3, {"item_id": "trained", "title": "T", "image": "photos/t.jpg"})

REFERENCE = {"sha256": "0" * 64, "width": 9, "height": 9}
DUMPED = KnownItem("dumped", (7, 1, 2), 3, {"item_id": "dumped", "title": "D", "image": REFERENCE})


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    write = partial(write_known_bundle, fields=("title",))
    write(folder / "text", [*KNOWN_ITEMS[:5], TRAINED])
    trained = TRAINED._replace(codes=(6, 1, 2))
    write(folder / "photos", [*KNOWN_ITEMS[:5], trained, DUMPED], reader=1, pictures=PICTURES)
    write(folder / "more", KNOWN_ITEMS[:3], reader=2, pictures=PICTURES)
    write(folder / "units", KNOWN_ITEMS[:3], reader=3, pictures=UNITS)
    return folder


def sent(data: bytes) -> dict:
    return {"data": base64.b64encode(data).decode()}


def codes(title: str, reader: int, data: bytes | None = None) -> list[int]:
    return list(known_codes({"title": title}, reader, keep_picture(data).data if data else None))


async def codes_of(client, item_id: str) -> list[int]:
    return (await client.get(f"/items/{item_id}")).json()["codes"]


async def change(client, name: str, reader: int) -> None:
    response = await client.post("/admin/bundles", json={"bundle": name})
    assert response.status_code == 202, response.text

    async def is_served() -> bool:
        return (await client.get("/info")).json()["tokenizer_id"] == tokenizer_id_of(reader)

    await until_true(is_served, timeout_s=30)


@pytest.fixture
def replica(bundles, redis_url):
    return partial(running, redis_url=redis_url, bundles_dir=bundles, admin_keys=(KEY,), reread_share=1)


async def test_a_new_tokenizer_reads_the_kept_photos_and_one_of_text_alone_leaves_them(
    bundles, replica, redis
):
    async with replica(bundles / "text") as client:
        client.headers["X-API-Key"] = KEY
        for item_id, title, image in (
            ("lamp", "Lamp", sent(RED)),
            ("vase", "Vase", None),
            # Its text is one that the next bundle has codes for, but the photo is another one.
            ("twin", KNOWN_ITEMS[0].item["title"], sent(BLUE)),
        ):
            item = {"item_id": item_id, "title": title} | ({"image": image} if image else {})
            assert (await client.post("/items", json=item)).status_code == 200
        assert await codes_of(client, "lamp") == codes("Lamp", 0)

        await change(client, "photos", 1)
        assert await codes_of(client, "lamp") == codes("Lamp", 1, RED)
        assert await codes_of(client, "vase") == codes("Vase", 1)
        assert await codes_of(client, "twin") == codes(KNOWN_ITEMS[0].item["title"], 1, BLUE)
        assert await codes_of(client, KNOWN_ITEMS[0].item_id) == list(KNOWN_ITEMS[0].codes)
        assert (await client.get("/items/trained")).json()["codes"] == [6, 1, 2]  # of the export

        await change(client, "text", 0)
        assert await codes_of(client, "lamp") == codes("Lamp", 0)
        assert (await client.get("/items/lamp/image?part=kept")).content == keep_picture(RED).data
        assert_in_step(await read_raw(redis, "glyphrec", tokenizer_id_of(0)))


async def test_items_that_only_name_a_photo_are_read_by_text_and_counted_until_it_is_posted(
    bundles, replica, caplog
):
    async with replica(bundles / "photos") as client:
        client.headers["X-API-Key"] = KEY
        assert await codes_of(client, "trained") == [6, 1, 2]
        await change(client, "more", 2)
        assert await codes_of(client, "trained") == codes("T", 2)
        assert "1 of them name a picture, but none is kept" in caplog.text
        assert 'glyphrec_pictures_total{outcome="missing"} 1.0' in (await client.get("/metrics")).text
        headers = {"Content-Type": "image/jpeg"}
        response = await client.put("/items/trained/image", content=RED, headers=headers)
        assert response.json()["codes"] == codes("T", 2, RED)


async def test_a_photo_that_redis_lost_is_read_again_when_it_is_posted_again(bundles, replica, redis):
    async with replica(bundles / "text") as client:
        client.headers["X-API-Key"] = KEY
        lamp = {"item_id": "lamp", "title": "Lamp", "image": sent(RED)}
        await client.post("/items", json=lamp)
        await redis.delete("{glyphrec}:pictures")
        await change(client, "photos", 1)
        assert await codes_of(client, "lamp") == codes("Lamp", 1)
        assert 'glyphrec_pictures_total{outcome="missing"} 1.0' in (await client.get("/metrics")).text
        # Nothing but the text is left of it, and a patch of the text says so.
        result = (await client.post("/items", json=lamp)).json()["items"][0]
        assert result["codes"] == codes("Lamp", 1, RED)
        assert (await client.get("/items/lamp/image?part=kept")).content == keep_picture(RED).data


async def test_a_unit_of_a_damaged_photo_is_composed_without_it(bundles, replica, redis):
    item = {"item_id": "lamp", "title": "Lamp"}
    of_text, of_both = (list(known_codes(item, 3, kept, UNITS)) for kept in (None, keep_picture(RED).data))
    assert of_text != of_both
    async with replica(bundles / "text") as client:
        client.headers["X-API-Key"] = KEY
        await client.post("/items", json=item | {"image": sent(RED)})
        kept = await redis.hget("{glyphrec}:pictures", "lamp")
        await redis.hset("{glyphrec}:pictures", "lamp", kept[:-40])
        await change(client, "units", 3)
        assert await codes_of(client, "lamp") == of_text
        # The other one is that of the item "trained", which was never posted.
        assert 'glyphrec_pictures_total{outcome="missing"} 2.0' in (await client.get("/metrics")).text


async def test_what_is_posted_during_a_change_is_read_by_both_tokenizers(bundles, replica):
    async with replica(bundles / "text") as one, replica(bundles / "text") as two:
        for client in (one, two):
            client.headers["X-API-Key"] = KEY
        response = await one.post("/admin/bundles", json={"bundle": "photos"})
        assert response.status_code == 202
        number = 0
        while (await one.get("/info")).json()["tokenizer_id"] != tokenizer_id_of(1):
            client, data = (one, RED) if number % 2 else (two, BLUE)
            item = {"item_id": f"i{number}", "title": f"Item {number}", "image": sent(data)}
            assert (await client.post("/items", json=item)).status_code == 200
            number += 1
        for n in range(number):
            data = RED if n % 2 else BLUE
            assert await codes_of(one, f"i{n}") == codes(f"Item {n}", 1, data)


async def test_a_seeded_catalog_has_the_codes_of_the_export_and_no_photos(bundles, replica, redis):
    async with replica(bundles / "photos") as client:
        client.headers["X-API-Key"] = KEY
        shown = (await client.get("/items/trained")).json()
        assert shown["codes"] == [6, 1, 2]
        assert shown["item"]["image"] == "photos/t.jpg"
        assert await redis.exists("{glyphrec}:pictures") == 0
        dumped = (await client.get("/items/dumped")).json()
        assert dumped["item"] == {"item_id": "dumped", "title": "D"}  # its picture is kept somewhere else
        again = (await client.post("/items", json=shown["item"])).json()["items"][0]
        assert again["status"] == "unchanged"
