"""Photos of items over HTTP: sending, keeping, replacing and removing them, and what the tokenizer reads."""

import asyncio
import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from service.core.pictures import keep_picture, picture_pixels
from service.core.render import item_text, render_text
from tests.known_bundle import KNOWN_ITEMS, PICTURES, known_codes, render_spec, write_known_bundle
from tests.service.core.photos import photo
from tests.service.running import is_problem, running

LAMP = {"item_id": "lamp", "title": "Lamp"}
RED, BLUE = photo(1), photo(2, "PNG", (90, 140))


@pytest.fixture(scope="session")
def picture_bundle(tmp_path_factory):
    return write_known_bundle(tmp_path_factory.mktemp("pictures"), KNOWN_ITEMS, pictures=PICTURES)


@pytest.fixture
async def reader(picture_bundle, redis_url):
    """A client of a service whose tokenizer reads photos."""
    async with running(picture_bundle, redis_url) as client:
        yield client


def sent(data: bytes) -> dict:
    return {"data": base64.b64encode(data).decode()}


def reference(data: bytes) -> dict:
    kept = keep_picture(data)
    return {"sha256": kept.sha256, "width": kept.width, "height": kept.height}


def codes_with(item: dict, data: bytes | None) -> list[int]:
    return list(known_codes(item, kept=None if data is None else keep_picture(data).data))


async def post(client, item: dict) -> dict:
    response = await client.post("/items", json={"items": [item]})
    assert response.status_code == 200, response.text
    return response.json()["items"][0]


async def put(client, item_id: str, data: bytes, kind: str = "image/jpeg", **headers: str):
    headers = {"Content-Type": kind} | {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.put(f"/items/{item_id}/image", content=data, headers=headers)


async def kept(client, item_id: str) -> bytes | None:
    response = await client.get(f"/items/{item_id}/image", params={"part": "kept"})
    return response.content if response.status_code == 200 else None


async def test_a_posted_photo_is_kept_and_read_with_the_text(reader):
    result = await post(reader, LAMP | {"image": sent(RED)})
    assert (result["status"], result["codes"]) == ("created", codes_with(LAMP, RED))
    assert result["unused_values"] == []
    shown = (await reader.get("/items/lamp")).json()
    assert shown["item"] == LAMP | {"image": reference(RED)}
    assert shown["codes"] == result["codes"] != codes_with(LAMP, None)
    assert await kept(reader, "lamp") == keep_picture(RED).data
    assert (await post(reader, LAMP | {"image": sent(RED)}))["status"] == "unchanged"


async def test_a_text_feed_without_photos_leaves_them_and_null_removes_one(reader):
    await post(reader, LAMP | {"image": sent(RED)})
    assert (await post(reader, LAMP))["status"] == "unchanged"
    assert (await post(reader, LAMP | {"price": 3}))["codes"] == codes_with(LAMP | {"price": 3}, RED)
    tall = {"item_id": "lamp", "title": "Tall lamp"}
    result = await post(reader, tall)
    assert result["codes"] == codes_with(tall, RED)
    assert (await reader.get("/items/lamp")).json()["item"] == tall | {"image": reference(RED)}
    result = await post(reader, tall | {"image": None})
    assert result["codes"] == codes_with(tall, None)
    assert (await reader.get("/items/lamp")).json()["item"] == tall
    assert await kept(reader, "lamp") is None


async def test_an_item_as_it_is_shown_can_be_posted_again_and_a_foreign_reference_is_an_error(reader):
    await post(reader, LAMP | {"image": sent(RED)})
    shown = (await reader.get("/items/lamp")).json()["item"]
    assert (await post(reader, shown))["status"] == "unchanged"
    for image, reason in (
        (reference(BLUE), "but the picture .* is kept for the item"),
        ({"sha256": "x"}, "neither `data` nor a `sha256`"),
        ({}, "neither `data` nor a `sha256`"),
        ({"url": "https://example.org/a.jpg"}, "'url', which is not known"),
        ({"data": 3}, "`data` that is no text"),
        ({"data": "data:image/png;base64,AAAA"}, "only the base64 after its comma"),
        ({"data": "not base64!"}, "is not base64"),
        ({"data": ""}, "has no bytes"),
    ):
        result = await post(reader, LAMP | {"image": image})
        assert result["status"] == "failed"
        assert result["error"]["detail"].startswith("image: ")
        assert re.search(reason, result["error"]["detail"]), result["error"]["detail"]
    other = await post(reader, {"item_id": "vase", "title": "Vase", "image": reference(RED)})
    assert "but no picture is kept for the item" in other["error"]["detail"]
    assert (await reader.get("/items/lamp")).json()["item"] == shown


async def test_a_url_is_stored_but_not_fetched_and_does_not_touch_a_kept_photo(reader):
    url = "https://example.org/lamp.jpg"
    result = await post(reader, LAMP | {"image": url})
    (note,) = result["unused_values"]
    assert note["field"] == "image"
    assert "is not fetched; it is stored as it is" in note["reason"]
    assert result["codes"] == codes_with(LAMP, None)
    assert (await reader.get("/items/lamp")).json()["item"]["image"] == url
    await put(reader, "lamp", RED)
    result = await post(reader, LAMP | {"image": url})
    assert result["status"] == "unchanged"
    assert "the picture that is kept stays" in result["unused_values"][0]["reason"]
    assert (await reader.get("/items/lamp")).json()["item"]["image"] == reference(RED)


async def test_put_and_delete_of_the_image_alone(reader):
    await post(reader, LAMP)
    for data, kind in ((RED, "image/jpeg"), (BLUE, "image/png"), (photo(3, "WEBP"), "image/webp; q=1")):
        response = await put(reader, "lamp", data, kind)
        body = response.json()
        assert body["item"] == LAMP | {"image": reference(data)}
        assert body["codes"] == codes_with(LAMP, data)
        assert response.headers["etag"] == (await reader.get("/items/lamp")).headers["etag"]
    # The content decides, not the name that the client gives it.
    assert (await put(reader, "lamp", BLUE, "image/jpeg")).json()["item"]["image"] == reference(BLUE)
    assert (await put(reader, "lamp", BLUE, "image/jpeg")).json()["status"] == "unchanged"
    gone = (await reader.delete("/items/lamp/image")).json()
    assert (gone["item"], gone["codes"]) == (LAMP, codes_with(LAMP, None))
    assert (await reader.delete("/items/lamp/image")).json()["status"] == "unchanged"
    assert is_problem(await put(reader, "nobody", RED), 404, "item-not-found")
    assert is_problem(await reader.delete("/items/nobody/image"), 404, "item-not-found")
    assert is_problem(await put(reader, "lamp", b"hello"), 422, "invalid-item")
    assert is_problem(await put(reader, "lamp", b""), 422, "invalid-item")
    for kind in ("application/json", "image/gif", ""):
        assert is_problem(await put(reader, "lamp", RED, kind), 415, "not-a-picture")


async def test_a_patch_leaves_replaces_or_removes_the_photo(reader):
    await post(reader, LAMP | {"image": sent(RED)})
    patched = (await reader.patch("/items/lamp", json={"title": "Tall lamp"})).json()
    tall = {"item_id": "lamp", "title": "Tall lamp"}
    assert patched["item"] == tall | {"image": reference(RED)}
    assert patched["codes"] == codes_with(tall, RED)
    merge = {"Content-Type": "application/merge-patch+json"}
    for headers, data in (({}, BLUE), (merge, RED)):
        body = json.dumps({"image": sent(data)})
        patched = (
            await reader.patch(
                "/items/lamp", content=body, headers={"Content-Type": "application/json"} | headers
            )
        ).json()
        assert patched["item"]["image"] == reference(data)
    same = (await reader.patch("/items/lamp", json={"image": reference(RED), "price": 2})).json()
    assert same["item"] == tall | {"image": reference(RED), "price": 2}
    refused = await reader.patch("/items/lamp", json={"image": reference(BLUE)})
    assert is_problem(refused, 422, "invalid-item")
    patched = (await reader.patch("/items/lamp", json={"image": None})).json()
    assert (patched["item"], patched["codes"]) == (tall | {"price": 2}, codes_with(tall | {"price": 2}, None))
    assert await kept(reader, "lamp") is None


async def test_a_photo_follows_the_rules_of_if_match(reader):
    first = await reader.post("/items", json=LAMP)
    old = first.headers["etag"]
    done = await put(reader, "lamp", RED, If_Match=old)
    assert done.status_code == 200
    assert is_problem(await put(reader, "lamp", BLUE, If_Match=old), 412, "precondition-failed")
    # The answer to a request may be lost, so the same request is sent again: it is already done.
    assert (await put(reader, "lamp", RED, If_Match=old)).json()["status"] == "unchanged"
    headers = {"If-Match": done.headers["etag"]}
    assert (await reader.delete("/items/lamp/image", headers=headers)).status_code == 200
    assert is_problem(await reader.post("/items", json=LAMP | {"image": sent(BLUE)}, headers=headers), 412,
                      "precondition-failed")  # fmt: skip
    assert await kept(reader, "lamp") is None


async def test_an_item_may_have_a_photo_and_no_text_if_the_bundle_reads_photos(reader):
    bare = {"item_id": "bare"}
    assert "Give it a title or a picture" in (await post(reader, bare))["error"]["detail"]
    result = await post(reader, bare | {"image": sent(RED)})
    assert result["codes"] == codes_with(bare, RED)
    assert (await post(reader, bare))["status"] == "unchanged"
    assert is_problem(await reader.delete("/items/bare/image"), 422, "invalid-item")
    assert await kept(reader, "bare") is not None


async def test_a_broken_photo_is_the_error_of_its_item_alone(reader):
    items = [
        LAMP | {"image": sent(RED[: len(RED) // 2])},
        {"item_id": "vase", "title": "Vase", "image": sent(BLUE)},
        {"item_id": "rug", "title": "Rug"},
        {"item_id": "gif", "title": "Gif", "image": sent(b"GIF89a" + bytes(20))},
    ]
    response = await reader.post("/items", json={"items": items})
    results = response.json()["items"]
    assert [each["status"] for each in results] == ["failed", "created", "created", "failed"]
    assert "is a broken JPEG" in results[0]["error"]["detail"]
    assert "is no JPEG, PNG or WebP" in results[3]["error"]["detail"]
    assert is_problem(await reader.get("/items/lamp"), 404, "item-not-found")
    assert is_problem(await reader.post("/items", json=items[0]), 422, "invalid-item")


async def test_deleting_an_item_removes_its_photo(reader, redis):
    await post(reader, LAMP | {"image": sent(RED)})
    assert await redis.hlen("{glyphrec}:pictures") == 1
    await reader.delete("/items/lamp")
    assert await redis.hlen("{glyphrec}:pictures") == 0
    assert (await post(reader, LAMP))["codes"] == codes_with(LAMP, None)


async def test_a_bundle_of_text_alone_keeps_a_photo_says_so_and_keeps_serving(client):
    result = await post(client, LAMP | {"image": sent(RED)})
    assert result["codes"] == list(known_codes(LAMP))
    assert "is kept, but the served bundle reads no pictures" in result["unused_values"][0]["reason"]
    assert (await client.get("/items/lamp")).json()["item"] == LAMP | {"image": reference(RED)}
    assert (await post(client, LAMP))["unused_values"] == []
    assert (await post(client, {"item_id": "bare", "image": sent(RED)}))["status"] == "failed"
    assert is_problem(
        await client.get("/items/lamp/image", params={"part": "photo"}), 404, "picture-not-found"
    )
    found = await client.post("/recommend", json={"history": ["lamp"]})
    assert found.status_code == 200


async def test_the_image_of_an_item_shows_what_the_encoder_saw(reader):
    await post(reader, LAMP | {"image": sent(RED)})
    strips = np.concatenate(list(render_text(item_text(LAMP, render_spec()), render_spec()).strips))
    pixels = picture_pixels(keep_picture(RED).data, PICTURES)

    async def shown(part: str, item_id: str = "lamp") -> np.ndarray:
        response = await reader.get(f"/items/{item_id}/image", params={"part": part})
        assert response.headers["content-type"] == "image/png"
        return np.asarray(Image.open(io.BytesIO(response.content)))

    np.testing.assert_array_equal(await shown("text"), strips)
    np.testing.assert_array_equal(await shown("photo"), pixels)
    everything = await shown("all")
    np.testing.assert_array_equal(everything[: len(strips), :, 0], strips)
    np.testing.assert_array_equal(everything[len(strips) :, : PICTURES.size_px], pixels)
    await post(reader, {"item_id": "rug", "title": "Rug"})
    assert (await shown("all", "rug")).ndim == 2
    for part in ("photo", "kept"):
        refused = await reader.get("/items/rug/image", params={"part": part})
        assert is_problem(refused, 404, "picture-not-found")
    assert is_problem(await reader.get("/items/rug/image?part=x"), 422, "invalid-request")


async def test_the_limits_are_settings_and_info_tells_them(picture_bundle, redis_url):
    limits = {"max_picture_bytes": 30_000, "max_picture_pixels": 50_000}
    async with running(picture_bundle, redis_url, **limits) as client:
        info = (await client.get("/info")).json()
        assert info["pictures"] == {"size_px": PICTURES.size_px, "kept": 0, "kept_bytes": 0}
        assert (info["limits"]["picture_bytes"], info["limits"]["picture_pixels"]) == (30_000, 50_000)
        large = await post(client, LAMP | {"image": sent(photo(1, "PNG", (400, 400)))})
        assert "is the limit" in large["error"]["detail"]
        wide = await post(client, LAMP | {"image": sent(photo(1, "JPEG", (400, 300)))})
        assert "50000 pixels are the limit" in wide["error"]["detail"]
        await post(client, LAMP | {"image": sent(photo(1, "JPEG", (100, 100)))})
        pictures = (await client.get("/info")).json()["pictures"]
        assert pictures["kept"] == 1
        assert pictures["kept_bytes"] > 100
        metrics = (await client.get("/metrics")).text
        assert 'glyphrec_pictures_total{outcome="refused"} 2.0' in metrics
        assert 'glyphrec_pictures_total{outcome="kept"} 1.0' in metrics
        assert "glyphrec_kept_pictures 1.0" in metrics
        assert 'glyphrec_picture_seconds_count{stage="decode"} 1.0' in metrics


async def test_a_photo_that_takes_too_long_is_refused_and_others_are_answered(picture_bundle, redis_url):
    async with running(picture_bundle, redis_url, picture_timeout_s=1e-6, picture_threads=1) as client:
        result = await post(client, LAMP | {"image": sent(photo(1, "PNG", (1500, 1500)))})
        assert "took longer than 1e-06 s to decode" in result["error"]["detail"]
        assert (await post(client, {"item_id": "rug", "title": "Rug"}))["status"] == "created"
        metrics = (await client.get("/metrics")).text
        assert 'glyphrec_pictures_total{outcome="too_slow"} 1.0' in metrics


async def test_a_health_check_is_answered_while_large_photos_are_decoded(reader):
    large = sent(photo(1, "PNG", (3000, 3000)))
    items = [{"item_id": f"i{n}", "title": f"Item {n}", "image": large} for n in range(6)]
    slow = asyncio.create_task(reader.post("/items", json={"items": items}))
    answered = 0
    while not slow.done():
        assert (await reader.get("/health/live")).status_code == 200
        answered += 1
        await asyncio.sleep(0.002)
    assert (await slow).json()["items"][5]["status"] == "created"
    assert answered > 3


async def test_a_text_and_a_photo_posted_at_the_same_moment_are_both_kept(reader):
    await post(reader, LAMP)
    for n in range(10):
        data = photo(n % 4, "JPEG", (60, 40))
        text = LAMP | {"title": f"Lamp {n}"}
        results = await asyncio.gather(post(reader, text), put(reader, "lamp", data))
        assert results[0]["status"] in ("moved", "updated"), results[0]
        assert results[1].status_code == 200, results[1].text
        shown = (await reader.get("/items/lamp")).json()
        assert shown["item"]["image"] == reference(data)
        assert shown["codes"] == codes_with(shown["item"], data)
        assert await kept(reader, "lamp") == keep_picture(data).data
