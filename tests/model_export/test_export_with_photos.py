"""Configuration `pictures` end to end: a folder with photos, a bundle, and a service that takes photos.

The texts say nothing here. The photos say which items are bought together, so they are what is learned.
"""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image, ImageDraw

from model_export.configs import tiny
from model_export.data.tables import read_dataset
from model_export.export import export
from model_export.local_service import local_service
from model_export.picture_configs import PicturesConfig

NUM_ITEMS, NUM_USERS, KINDS = 90, 240, 6
COLORS = ("crimson", "navy", "gold", "forestgreen", "black", "hotpink")


def photo(kind: int, number: int) -> bytes:
    """A pattern on white. Its color and form are those of its kind, its place and size its own."""
    rng = np.random.default_rng(number)
    picture = Image.new("RGB", (160, 160), "white")
    draw, color, step = ImageDraw.Draw(picture), COLORS[kind], int(rng.integers(24, 36))
    shift = int(rng.integers(0, step))
    for x in range(-160 - shift, 160, step):
        match kind:
            case 0:
                draw.rectangle((x, 0, x + step // 2, 160), fill=color)
            case 1:
                for y in range(-shift, 160, step):
                    draw.ellipse((x, y, x + step // 2, y + step // 2), fill=color)
            case 2:
                draw.ellipse((20 + shift, 20, 100 + shift, 100), fill=color)
            case 3:
                radius = abs(x) // 2
                draw.ellipse((80 - radius, 80 - radius, 80 + radius, 80 + radius), outline=color, width=5)
            case 4:
                draw.line((x, 0, x + 160, 160), fill=color, width=step // 3)
            case _:
                draw.polygon((20 + shift, 140, 80, 20, 140, 140 - shift), fill=color)
    file = io.BytesIO()
    picture.save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """The neutral form. The photo of one item is broken, and three items have none."""
    folder, rng = tmp_path_factory.mktemp("shop"), np.random.default_rng(0)
    (folder / "images").mkdir()
    lines = []
    for item in range(NUM_ITEMS):
        line = {"item_id": f"i{item}", "title": f"Article {rng.integers(10_000)}"}
        if item % 30 != 7:
            line["image"] = f"images/{item}.jpg"
            content = photo(item % KINDS, item)
            (folder / line["image"]).write_bytes(content[:200] if item == 8 else content)
        lines.append(json.dumps(line))
    (folder / "items.jsonl").write_text("\n".join(lines))
    users = [
        {
            "user_id": f"u{user}",
            "items": [
                f"i{n}" for n in rng.choice(np.arange(user % KINDS, NUM_ITEMS, KINDS), 6, replace=False)
            ],
        }
        for user in range(NUM_USERS)
    ]
    (folder / "interactions.jsonl").write_text("\n".join(map(json.dumps, users)))
    return folder


@pytest.fixture(scope="module")
def exported(shop: Path, tmp_path_factory):
    said: list[str] = []
    config = replace(
        tiny(), name="pictures-tiny", pictures=PicturesConfig(size_px=96, weight=2.0), opinions=None
    )
    folder = tmp_path_factory.mktemp("bundle")
    bundle = export(
        read_dataset(str(shop)), folder / "bundle", config, cache_folder=folder / "cache", say=said.append
    )
    return bundle, "\n".join(said)


@pytest.mark.slow
def test_the_bundle_says_how_it_reads_photos_and_the_run_what_it_left_out(exported, shop):
    bundle, said = exported
    assert bundle.manifest.pictures.size_px == 96
    assert "86 of 90 items have a photo that can be read" in said
    assert f"left out: {shop / 'images/8.jpg'}" in said


@pytest.mark.slow
def test_a_service_reads_a_new_item_by_its_photo_and_recommends_its_kind(exported, tmp_path):
    bundle, _ = exported
    new = {
        f"new-{kind}": {
            "item_id": f"new-{kind}",
            "title": "Article",
            "image": {"data": _base64(photo(kind, 1000 + kind))},
        }
        for kind in range(KINDS)
    }
    with local_service(bundle.path, data_dir=tmp_path / "redis", log=tmp_path / "log") as service:
        posted = service.client.post("/items", json={"items": list(new.values())}).raise_for_status().json()
        assert [each["error"] for each in posted["items"]] == [None] * KINDS
        of_kind = [_num_of_kind(service.client, [item_id], kind) for kind, item_id in enumerate(new)]
        assert sum(of_kind) > 0.7 * 10 * KINDS  # a sixth by chance
        # The same text without a photo is another item to the tokenizer.
        plain = {"item_id": "plain", "title": "Article"}
        (result,) = service.client.post("/items", json={"items": [plain]}).json()["items"]
        assert result["codes"] not in [each["codes"] for each in posted["items"]]


def test_an_export_without_photos_says_that_there_are_some(shop, tmp_path):
    class EnoughSaid(Exception):
        pass

    def say(line: str) -> None:
        if "87 items have a photo, which the configuration tiny does not read" in line:
            raise EnoughSaid

    with pytest.raises(EnoughSaid):
        export(read_dataset(str(shop)), tmp_path / "bundle", tiny(), cache_folder=tmp_path / "cache", say=say)


def _num_of_kind(client: httpx.Client, history: list[str], kind: int) -> int:
    page = (
        client.post("/recommend", json={"history": history, "limit": 10}).raise_for_status().json()["items"]
    )
    numbers = [int(each["item_id"].rpartition("-")[2].lstrip("i")) for each in page]
    return sum(number % KINDS == kind for number in numbers)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
