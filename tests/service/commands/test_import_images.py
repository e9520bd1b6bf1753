"""`glyphrec import` sends the photos that a file of items names."""

import asyncio
import base64
import json

import httpx
import pytest

from service.cli import main
from service.commands.import_images import Limits, batches, names_a_file, with_picture
from service.core.json_lines import JsonLine
from service.store.fsck import check
from tests.known_bundle import KNOWN_ITEMS, PICTURES, SPEC, tokenizer_id_of, write_known_bundle
from tests.service.core.photos import photo
from tests.service.processes import command, free_port, wait_until_ready
from tests.service.running import running

LIMITS = Limits(body_bytes=100_000, picture_bytes=20_000)


@pytest.fixture
def folder(tmp_path):
    """A folder of items with photos, beside one that is not theirs."""
    inside = tmp_path / "shop"
    (inside / "photos").mkdir(parents=True)
    for n in range(6):
        (inside / "photos" / f"{n}.jpg").write_bytes(photo(n, "JPEG", (60, 40)))
    (tmp_path / "secret.jpg").write_bytes(photo(9))
    (inside / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    return inside


def line(image: object, number: int = 1) -> JsonLine:
    return JsonLine(number, {"item_id": f"i{number}", "title": "Lamp", "image": image})


@pytest.mark.parametrize("image", ["photos/1.jpg", "./photos/1.jpg", "photos/../photos/1.jpg"])
def test_a_path_in_the_folder_becomes_the_bytes_of_its_file(folder, image):
    prepared = with_picture(line(image), folder, LIMITS)
    assert prepared.note == ""
    sent = base64.b64decode(prepared.line.value["image"]["data"])
    assert sent == (folder / "photos" / "1.jpg").read_bytes()
    assert prepared.num_bytes >= len(json.dumps(prepared.line.value, separators=(",", ":")))


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("../secret.jpg", "it lies outside the folder"),
        ("/etc/hostname", "it lies outside the folder"),
        ("link.jpg", "it lies outside the folder"),
        ("photos", "there is no such file"),
        ("photos/none.jpg", "there is no such file"),
        ("a\x00b.jpg", "it cannot be read"),
    ],
)
def test_a_path_that_cannot_be_read_stays_and_the_reason_is_told(folder, image, reason):
    prepared = with_picture(line(image), folder, LIMITS)
    assert reason in prepared.note
    assert prepared.line.value["image"] == image


def test_a_picture_that_the_service_would_not_take_is_not_read(folder):
    (folder / "large.jpg").write_bytes(bytes(30_000))
    assert "over 20000 bytes" in with_picture(line("large.jpg"), folder, LIMITS).note
    small = LIMITS._replace(body_bytes=15_000)
    (folder / "middle.jpg").write_bytes(bytes(12_000))
    assert "which the service does not take" in with_picture(line("middle.jpg"), folder, small).note
    old = LIMITS._replace(picture_bytes=None)
    assert "keeps no pictures" in with_picture(line("photos/1.jpg"), folder, old).note


@pytest.mark.parametrize(
    "image", ["https://example.org/a.jpg", "data:image/png;base64,AA", "", None, 3, ["a.jpg"], {"data": "AA"}]
)
def test_what_is_no_path_stays_as_it_is(folder, image):
    assert not names_a_file(line(image))
    assert with_picture(line(image), folder, LIMITS).line == line(image)


def test_batches_hold_every_line_in_order_and_fit_into_a_body(folder):
    lines = [line(f"photos/{n % 6}.jpg", n) for n in range(40)]
    limits = LIMITS._replace(body_bytes=9_000)
    found = list(batches(lines, folder, limits, num_at_once=10))
    assert [each.line.number for batch in found for each in batch] == list(range(40))
    bodies = [json.dumps({"items": [each.line.value for each in batch]}) for batch in found]
    assert max(map(len, bodies)) <= 9_000
    assert 1 < max(map(len, found)) < 10
    plain = list(batches([JsonLine(n, {"item_id": str(n)}) for n in range(25)], folder, None, 10))
    assert list(map(len, plain)) == [10, 10, 5]


@pytest.mark.slow
def test_import_posts_the_photos_of_a_folder(folder, tmp_path, capsys):
    bundle = write_known_bundle(tmp_path / "bundle", KNOWN_ITEMS, pictures=PICTURES)
    items = [{"item_id": f"i{n}", "title": f"Lamp {n}", "image": f"photos/{n}.jpg"} for n in range(6)]
    items.append({"item_id": "outside", "title": "Outside", "image": "../secret.jpg"})
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    port = free_port()
    process = command("serve", "--bundle", bundle, "--port", port, "--data-dir", tmp_path / "redis")
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process)
        assert main(["import", str(folder), "--url", url]) == 0
        told = capsys.readouterr()
        assert "7 created" in told.out
        assert "does not read image of 1 items" in told.err
        assert "outside the folder" in told.err
        assert httpx.get(f"{url}/items/i3").json()["item"]["image"].keys() == {"sha256", "width", "height"}
        assert httpx.get(f"{url}/items/outside").json()["item"]["image"] == "../secret.jpg"
        assert main(["import", str(folder), "--url", url]) == 0
        assert "7 unchanged" in capsys.readouterr().out
    finally:
        process.terminate()
        process.communicate(timeout=30)


async def test_items_with_codes_leave_the_photos_that_are_kept(tmp_path, redis_url, redis):
    bundle = write_known_bundle(tmp_path / "bundle", KNOWN_ITEMS, pictures=PICTURES)
    shop = ["--tokenized", "--bundle", str(bundle), "--redis-url", redis_url]
    async with running(bundle, redis_url) as client:
        headers = {"Content-Type": "image/jpeg"}
        sent = await client.put("/items/item-3/image", content=photo(1), headers=headers)
        stored = sent.json()["item"]
        lines = [
            {"item_id": "item-3", "codes": [1, 2, 2], "popularity": 0, "item": {"title": "New text"}},
            # As a dump of another catalog has it: that photo is not kept here.
            {"item_id": "other", "codes": [3, 2, 2], "popularity": 0, "item": stored},
        ]
        (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, lines)))
        assert await asyncio.to_thread(main, ["import", str(tmp_path / "items.jsonl"), *shop]) == 0
        found = (await client.get("/items/item-3")).json()
        assert found["item"] == {"item_id": "item-3", "title": "New text", "image": stored["image"]}
        assert found["codes"] == [1, 2, 2]
        assert "image" not in (await client.get("/items/other")).json()["item"]
        report = await check(redis, catalog="glyphrec", tokenizer_id=tokenizer_id_of(0), spec=SPEC)
        assert report.is_clean, report.findings
        again = await client.post("/items", json={"item_id": "item-3", "title": "New text"})
        assert again.json()["items"][0]["status"] == "unchanged"


async def test_bytes_of_photos_are_refused_among_items_with_codes(tmp_path, redis_url, capsys):
    bundle = write_known_bundle(tmp_path / "bundle", KNOWN_ITEMS, pictures=PICTURES)
    line = {
        "item_id": "a",
        "codes": [1, 2, 2],
        "popularity": 0,
        "item": {"title": "A", "image": {"data": "AA"}},
    }
    (tmp_path / "items.jsonl").write_text(json.dumps(line))
    shop = ["--tokenized", "--bundle", str(bundle), "--redis-url", redis_url]
    assert await asyncio.to_thread(main, ["import", str(tmp_path / "items.jsonl"), *shop]) == 2
    assert "Import pictures without --tokenized: a service reads them" in capsys.readouterr().err
