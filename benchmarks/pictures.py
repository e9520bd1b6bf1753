"""What photos cost: one item with a photo, many of them on one core, and what is kept of each.

    python -m benchmarks.pictures [--bundle FOLDER] [--photos FOLDER]

Without --bundle, a tiny tokenizer with fixed arithmetic reads the photos, so the times are those of the
service without an image encoder. Without --photos, pictures with the noise of a camera are drawn. The process
and its service have one core. The baselines are items without photos, and the same pictures as files in a
folder. The last line is JSON.
"""

import asyncio
import base64
import io
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks import report
from benchmarks.first import Stages
from benchmarks.timing import each_ms
from benchmarks.workload.processes import service_of
from service.core.bundle import Bundle, PictureSpec, load_bundle
from service.core.image_field import PictureReference, with_reference
from service.core.pictures import KEPT_EFFORT, KEPT_PX, KEPT_QUALITY, keep_picture, picture_pixels
from service.core.sid import SidSpec
from service.errors import GlyphrecError
from service.store.client import connect
from service.store.items import ItemStore
from service.store.picture_records import PictureChange
from service.store.records import ItemRecord
from service.store.server import start_server
from tests.known_bundle import KNOWN_ITEMS, PICTURES, write_known_bundle

WARM_UP = 5
MILLION = 1_000_000
SHAPES = ((1600, 1200), (1200, 1600), (1000, 1000), (2400, 1800))  # of drawn photos, in pixels
SIDES, QUALITIES = (224, 256, 320), (75, 80, 85)
STORED_SPEC = SidSpec(levels=(64, 64, 32))
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def main(argv: Sequence[str]) -> int:
    parser = report.arguments(__doc__)
    parser.add_argument("--bundle", type=Path, help="a folder of a bundle that reads pictures")
    parser.add_argument("--photos", type=Path, help="a folder of JPEG, PNG and WebP files")
    parser.add_argument("--items", type=int, default=60, help="items that are posted one by one")
    parser.add_argument("--bulk", type=int, default=200, help="items in bulk")
    parser.add_argument("--stored", type=int, default=10_000, help="items with pictures in Redis")
    args = parser.parse_args(argv)
    num_items, num_bulk, num_stored = (8, 8, 200) if args.tiny else (args.items, args.bulk, args.stored)
    with tempfile.TemporaryDirectory() as name, on_one_core():
        folder = Path(name)
        photos = read_photos(args.photos) if args.photos else drawn_photos(4 if args.tiny else 16)
        bundle = load_bundle(
            args.bundle or write_known_bundle(folder / "tiny", KNOWN_ITEMS, pictures=PICTURES)
        )
        if bundle.manifest.pictures is None:
            raise GlyphrecError(f"{bundle.path}: this bundle reads no pictures. Export one that does.")
        print(
            f"{bundle.path.name}, {len(photos)} different photos, "
            f"{np.mean([len(each) for each in photos]) / 1e3:,.0f} kB each on average; one core"
        )
        show_sizes(photos[:16])
        figures = time_stages(photos, bundle.manifest.pictures)
        kept, stored_alone = asyncio.run(kept_bytes(photos, num_stored, folder))
        figures |= kept
        served, baseline = measure_service(bundle, folder, photos, num_items, num_bulk)
        figures |= served
        # Shares of one item: the CPU of each step beside the median time of the whole request.
        for step in ("decode", "resize", "webp"):
            figures[f"{step}_share"] = figures[f"{step}_ms"] / figures["item_ms_p50"]
        figures["encode_share"] = figures.pop("tokenizer_ms_p50") / figures["item_ms_p50"]
    report.finish("pictures", argv, figures, baseline | stored_alone, shown=False)
    return 0


@contextmanager
def on_one_core() -> Iterator[None]:
    """This process, and those that it starts, share one core, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def read_photos(folder: Path) -> list[bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise GlyphrecError(f"{folder}: has no file that ends in {', '.join(SUFFIXES)}")
    chosen = np.random.default_rng(0).permutation(len(paths))[:64]
    return [paths[place].read_bytes() for place in sorted(chosen)]


def drawn_photos(count: int) -> list[bytes]:
    """JPEGs of large shapes with edges, gradients and the noise of a camera."""
    rng = np.random.default_rng(0)
    found = []
    for n in range(count):
        size = SHAPES[n % len(SHAPES)]
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        smooth = coarse.resize(size, Image.Resampling.BICUBIC)
        smooth.paste(
            coarse.resize((size[0] // 2, size[1] // 2), Image.Resampling.NEAREST), (size[0] // 4,) * 2
        )
        noise = rng.normal(0, 4, (size[1], size[0], 1))
        pixels = np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def show_sizes(photos: Sequence[bytes]) -> None:
    """What other sizes and qualities of the kept picture would take."""
    rows = []
    for side, quality in itertools.product(SIDES, QUALITIES):
        num_bytes, milliseconds = [], []
        for data in photos:
            picture = Image.open(io.BytesIO(data)).convert("RGB")
            picture.thumbnail((side, side), Image.Resampling.LANCZOS)
            started, file = perf_counter(), io.BytesIO()
            picture.save(file, "WEBP", quality=quality, method=KEPT_EFFORT)
            milliseconds.append(1e3 * (perf_counter() - started))
            num_bytes.append(len(file.getvalue()))
        mark = " *" if (side, quality) == (KEPT_PX, KEPT_QUALITY) else ""
        rows.append(
            (
                f"{side} px, quality {quality}{mark}",
                f"{np.mean(num_bytes):,.0f}",
                f"{np.median(milliseconds):.1f}",
            )
        )
    report.table(("what could be kept (* is)", "bytes", "ms to write"), rows)


def time_stages(photos: Sequence[bytes], spec: PictureSpec) -> dict[str, float]:
    """Median milliseconds of CPU of one photo in each step."""
    took: dict[str, list[float]] = {"decode": [], "resize": [], "webp": []}
    for data in photos:
        kept = keep_picture(data)
        whole, decode = _cpu_ms(keep_picture, data), _cpu_ms(_decode, data)
        webp = _cpu_ms(_write, Image.open(io.BytesIO(kept.data)).convert("RGB"))
        took["decode"].append(decode)
        took["webp"].append(webp)
        took["resize"].append(max(0.0, whole - decode - webp) + _cpu_ms(picture_pixels, kept.data, spec))
    return {f"{step}_ms": float(np.median(values)) for step, values in took.items()}


def _write(picture: Image.Image) -> None:
    picture.save(io.BytesIO(), "WEBP", quality=KEPT_QUALITY, method=KEPT_EFFORT)


def _decode(data: bytes) -> None:
    picture = Image.open(io.BytesIO(data))
    picture.draft(None, (2 * KEPT_PX, 2 * KEPT_PX))
    picture.load()


def _cpu_ms(call: Callable[..., object], *args: object) -> float:
    found = []
    for _ in range(3):
        started = process_time()
        call(*args)
        found.append(1e3 * (process_time() - started))
    return min(found)


async def kept_bytes(
    photos: Sequence[bytes], num_items: int, folder: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """Redis' memory for each kept picture, and what the same pictures take as files."""
    kept = [keep_picture(data) for data in photos]
    with start_server() as server:
        redis = connect(server.url)
        store = ItemStore(redis, catalog="bench", tokenizer_id="0123456789ab", spec=STORED_SPEC)
        rng = np.random.default_rng(0)
        used = []
        for has_pictures in (False, True):
            await redis.flushall()
            empty = (await redis.info("memory"))["used_memory"]
            for start in range(0, num_items, 250):
                await store.put([_record(n, kept, rng, has_pictures) for n in range(start, start + 250)])
            used.append(((await redis.info("memory"))["used_memory"] - empty) / num_items)
        await redis.aclose()
    files = folder / "files"
    files.mkdir()
    for n, each in enumerate(kept):
        (files / str(n)).write_bytes(each.data)
    blocks = np.mean([512 * path.stat().st_blocks for path in files.iterdir()])
    per_item = used[1] - used[0]
    webp = float(np.mean([len(each.data) for each in kept]))
    print(f"kept: {webp:,.0f} bytes of WebP, {per_item:,.0f} bytes of Redis")
    redis_gb, disk_gb = (each * MILLION / 1e9 for each in (per_item, blocks))
    print(f"a million take {redis_gb:.1f} GB of Redis, or {disk_gb:.1f} GB of a disk as files")
    return (
        {
            "kept_bytes_per_item": per_item,
            "webp_bytes_per_item": webp,
            "gb_per_million": redis_gb,
        },
        {"item_bytes_without_picture": used[0], "file_bytes_per_item": float(blocks)},
    )


def _record(n: int, kept: Sequence[Any], rng: np.random.Generator, has_picture: bool) -> Any:
    codes = tuple(int(rng.integers(num_codes)) for num_codes in STORED_SPEC.levels)
    item_id = f"B{n:09d}"
    item = {"item_id": item_id, "title": f"Thing number {n}", "price": n / 100, "brand": f"brand {n % 200}"}
    if not has_picture:
        return ItemRecord(item_id, f"{n:032x}", item), codes
    each = kept[n % len(kept)]
    reference = PictureReference(each.sha256, each.width, each.height)
    stored = with_reference(item, reference)
    return ItemRecord(item_id, f"{n:032x}", stored, PictureChange.set(each)), codes


def measure_service(
    bundle: Bundle, folder: Path, photos: Sequence[bytes], num_items: int, num_bulk: int
) -> tuple[dict[str, float], dict[str, float]]:
    """One new item with a photo, many of them, and the same without photos."""
    sent = [base64.b64encode(data).decode() for data in photos]
    with service_of(bundle, folder) as service:
        client = service.client
        stages, plain = Stages(), Stages()
        with_photo = each_ms(
            lambda n: stages.take(client.post("/items", json=_item("one", n, sent))),
            num_items,
            warm_up=WARM_UP,
        )
        without = each_ms(
            lambda n: plain.take(client.post("/items", json=_item("text", n))), num_items, warm_up=WARM_UP
        )
        bulk_s = _post_all(client, [_item("bulk", n, sent) for n in range(num_bulk)])
        text_s = _post_all(client, [_item("bulktext", n) for n in range(num_bulk)])
    (tokenizer_ms,) = (ms for stage, ms in stages.ms.items() if stage.startswith("token"))
    figures = {
        "item_ms_p50": float(np.percentile(with_photo, 50)),
        "item_ms_p99": float(np.percentile(with_photo, 99)),
        "bulk_items_per_s": num_bulk / bulk_s,
        "tokenizer_ms_p50": float(np.median(tokenizer_ms)),
    }
    baseline = {
        "text_item_ms_p50": float(np.percentile(without, 50)),
        "text_bulk_items_per_s": num_bulk / text_s,
    }
    return figures, baseline


def _item(mark: str, n: int, sent: Sequence[str] = ()) -> dict[str, Any]:
    item: dict[str, Any] = {"item_id": f"{mark}-{n}", "title": f"Floor lamp {mark} {n}, 60 W, 1.5 m"}
    return item | ({"image": {"data": sent[n % len(sent)]}} if sent else {})


def _post_all(client: httpx.Client, items: Sequence[dict[str, Any]]) -> float:
    started = perf_counter()
    for start in range(0, len(items), 20):
        rows = (
            client.post("/items", json={"items": items[start : start + 20]})
            .raise_for_status()
            .json()["items"]
        )
        if errors := [row["error"]["detail"] for row in rows if row["error"]]:
            raise GlyphrecError(f"{len(errors)} items failed: {errors[0]}")
    return perf_counter() - started


if __name__ == "__main__":
    report.run(main)
