"""Pictures of the explorer for the documents: python -m tests.e2e.explorer_pictures --bundle BUNDLE.

The catalog, and the beam of a search after the three most popular items.
"""

import argparse
import json
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect

from model_export.local_service import local_service
from tests.e2e.browser import TIMEOUT_MS, chromium, chromium_or_skip, opened, view

DOCS = Path(__file__).parents[2] / "docs"
SIZE = {"width": 1180, "height": 760}
MAX_BYTES = 150_000
QUALITIES = (85, 75, 60, 45)


def draw(bundle: Path, out: Path) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        local_service(bundle, data_dir=Path(folder) / "redis", ready_timeout_s=600) as service,
        chromium(chromium_or_skip()) as browser,
        opened(browser, service.url, viewport=SIZE, color_scheme="light") as page,
    ):
        cards = page.locator(".card")
        expect(cards.first).to_be_visible(timeout=TIMEOUT_MS)
        expect(page.locator(".card .frame.drawn").nth(11)).to_be_attached(timeout=TIMEOUT_MS)
        _save(page, out / "explorer.webp")
        popular = service.client.post("/recommend", json={"history": [], "limit": 3}).json()["items"]
        history = [each["item_id"] for each in popular]
        page.goto(service.url + view("play", ask=json.dumps({"history": history, "limit": 5})))
        beam = page.locator("#beam")
        expect(beam.locator(".level").first).to_be_visible(timeout=TIMEOUT_MS)
        beam.evaluate("node => node.scrollIntoView()")
        page.mouse.wheel(0, -20)
        _save(page, out / "explorer-beam.webp")


def _save(page: Page, path: Path) -> None:
    image = Image.open(BytesIO(page.screenshot())).convert("RGB")
    for quality in QUALITIES:
        image.save(path, quality=quality, method=6)
        if path.stat().st_size < MAX_BYTES:
            return
    raise SystemExit(f"{path} has {path.stat().st_size} bytes; {MAX_BYTES} is the limit.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=DOCS)
    given = parser.parse_args()
    draw(given.bundle, given.out)
