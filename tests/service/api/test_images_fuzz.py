"""Broken and hostile pictures to a real process: each is one item's error, and memory stays flat.

PICTURE_FUZZ=20000 sends more of them; PHOTOS=FOLDER takes the files of a folder instead of drawn ones.
"""

import base64
import os
import random
from pathlib import Path

import httpx
import pytest

from benchmarks.workload.processes import resident_mb
from model_export.local_service import local_service
from tests.known_bundle import KNOWN_ITEMS, PICTURES, write_known_bundle
from tests.service.core import bombs
from tests.service.core.photos import damaged, photo

NUM_REQUESTS = int(os.environ.get("PICTURE_FUZZ", 600))
PHOTOS = os.environ.get("PHOTOS")
MAX_GROWTH_MB = 64
KINDS = ("image/jpeg", "image/png", "image/webp")


def whole_files() -> list[bytes]:
    if PHOTOS:
        paths = sorted(path for path in Path(PHOTOS).rglob("*") if path.is_file())
        return [path.read_bytes() for path in random.Random(0).sample(paths, min(60, len(paths)))]
    return [photo(n, kind, (200, 150)) for n, kind in enumerate(("JPEG", "PNG", "WEBP") * 3)]


def send(client: httpx.Client, data: bytes, rng: random.Random, number: int) -> httpx.Response:
    """As bytes of an item that is there, or with a new item."""
    if rng.random() < 0.5:
        headers = {"Content-Type": rng.choice(KINDS)}
        return client.put("/items/item-0/image", content=data, headers=headers)
    image = {"data": base64.b64encode(data).decode()}
    return client.post("/items", json={"item_id": f"f{number % 50}", "title": "Fuzz", "image": image})


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(900)
def test_no_picture_breaks_the_service_or_fills_its_memory(tmp_path: Path, redis_url: str) -> None:
    bundle = write_known_bundle(tmp_path / "bundle", KNOWN_ITEMS, pictures=PICTURES)
    files, rng = whole_files(), random.Random(1)
    hostile = [
        *bombs.too_large(),
        bombs.png_with_much_text(),
        bombs.jpeg_of_scans(90),
        bombs.jpeg_of_scans(1_000),
        bombs.png_of(4_999, 5_000, b""),  # as many pixels as are allowed, and none of them there
        bytes(9 * 2**20),
    ]
    statuses: dict[int, int] = {}
    with local_service(bundle, redis_url=redis_url, log=tmp_path / "log") as service:
        first_mb = 0.0
        for number in range(NUM_REQUESTS):
            if number == NUM_REQUESTS // 4:
                first_mb = resident_mb(service.process.pid)
            data = rng.choice(files)
            if number % 20 == 19:
                data = rng.choice(hostile)
            elif rng.random() < 0.8:
                data = damaged(data, rng.choice(files), rng)
            answer = send(service.client, data, rng, number)
            assert answer.status_code in (200, 422), answer.text
            if answer.status_code == 422:
                assert answer.json()["detail"].startswith("image: ")
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        grown_mb = resident_mb(service.process.pid) - first_mb
        assert service.client.get("/health/ready").is_success
    assert statuses.keys() == {200, 422}, "or nothing was shown"
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert grown_mb < MAX_GROWTH_MB
