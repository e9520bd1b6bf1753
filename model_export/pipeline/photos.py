"""The stage that reads a catalog's photos: files -> kept pictures -> pixels -> features.

Every file goes through the functions of service/core/pictures.py. So training sees what a service sees.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_export.data.photos import Pixels, kept_of
from model_export.encoders.fusion import Photos
from model_export.encoders.images.base import ImageSession
from model_export.encoders.images.choose import (
    image_encoder_files,
    image_encoder_version,
    make_image_encoder,
)
from model_export.picture_configs import CardConfig, PicturesConfig
from model_export.pipeline.parts import in_parts
from model_export.pipeline.run import Run
from service.core import pictures
from service.core.bundle import PictureSpec
from service.core.cpus import usable_cpus
from service.core.graphs import NO_PICTURE
from service.core.pictures import keep_picture, picture_pixels
from service.errors import GlyphrecError, InvalidItem

SHOWN = 3  # unusable files that are named


def spec_of(config: PicturesConfig) -> PictureSpec:
    """What the manifest says of the photos."""
    return PictureSpec(size_px=config.size_px, shows="unit" if isinstance(config, CardConfig) else "photo")


def read_photos(run: Run) -> Photos:
    """The features of the catalog's photos. A photo that cannot be used is named, and its item has none.

    Raises GlyphrecError if the catalog has no usable photo at all.
    """
    dataset, config = run.dataset, run.config.pictures
    assert config is not None
    owners = sorted(dataset.images)
    if not owners:
        raise GlyphrecError(
            f"{dataset.name}: no item has a photo, but the configuration {run.config.name} reads photos. "
            "Give items an `image`, or choose the configuration base."
        )
    inputs = (
        [dataset.image_hashes[item] for item in owners], spec_of(config), config.kind, config.checkpoint,
        *image_encoder_files(config), {"pictures": pictures.VERSION} | image_encoder_version(config),
    )  # fmt: skip
    spec = spec_of(config)

    def look(place: int) -> Pixels | None:
        kept = kept_of(dataset, owners[place])
        return None if kept is None else picture_pixels(kept, spec)

    features = features_of(run, "photos", inputs, len(owners), look)  # [owner, dim]
    is_usable = ~np.isnan(features[:, 0])
    _tell(run, owners, is_usable)
    rows = np.full(dataset.num_items, NO_PICTURE, np.int64)  # [item]
    rows[np.array(owners)[is_usable]] = np.arange(is_usable.sum())
    return Photos(features[is_usable], rows)


def _tell(run: Run, owners: Sequence[int], is_usable: NDArray[np.bool_]) -> None:
    num_items = run.dataset.num_items
    if not is_usable.any():
        raise GlyphrecError(
            f"{run.dataset.name}: none of its {len(owners):,} photos can be read. The first says: "
            f"{_fault(run.dataset.images[owners[0]])}"
        )
    run.say(f"      {is_usable.sum():,} of {num_items:,} items have a photo that can be read")
    broken = [owner for owner, usable in zip(owners, is_usable, strict=True) if not usable]
    for item in broken[:SHOWN]:
        path = run.dataset.images[item]
        run.say(f"      left out: {path}: {_fault(path)}")
    if len(broken) > SHOWN:
        run.say(f"      left out: {len(broken) - SHOWN:,} more photos")


def _fault(path: Path) -> str:
    try:
        keep_picture(path.read_bytes())
    except (InvalidItem, OSError) as error:
        return str(error)
    return "it can be read now"


def features_of(
    run: Run, stage: str, inputs: tuple[Any, ...], count: int, look: Callable[[int], Pixels | None]
) -> NDArray[np.float32]:
    """The features [picture, dim] of `count` pictures, from the cache if they are there for these inputs.

    `look` gives the pixels of a picture, or None if it cannot be used; its features are NaN then.
    """
    config = run.config.pictures
    assert config is not None

    @cache
    def session() -> ImageSession:
        return ImageSession(make_image_encoder(config), threads=usable_cpus().num_threads)

    def read(start: int, stop: int) -> NDArray[np.float32]:
        part = np.full((stop - start, session().feature_dim), np.nan, np.float32)
        with ThreadPoolExecutor(1) as ahead:  # while one picture is read, the next ones are decoded
            for row, pixels in enumerate(ahead.map(look, range(start, stop))):
                if pixels is not None:
                    part[row] = session().features([pixels])[0]
        return part

    return in_parts(run.cache, stage, inputs, count, read, desc="Reading photos")
