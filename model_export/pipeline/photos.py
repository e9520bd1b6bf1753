"""The stage that reads a catalog's photos: files -> kept pictures -> pixels -> features.

Every file goes through the functions of service/core/pictures.py. So training sees what a service sees.
"""

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_export.configs import PicturesConfig
from model_export.data.photos import Pixels, photo_of
from model_export.encoders.fusion import Photos
from model_export.encoders.images.base import ImageSession
from model_export.encoders.images.choose import (
    image_encoder_files,
    image_encoder_version,
    make_image_encoder,
)
from model_export.files import read_or_remove
from model_export.pipeline.run import Run
from service.core import pictures
from service.core.bundle import PictureSpec
from service.core.cpus import usable_cpus
from service.core.graphs import NO_PICTURE
from service.core.pictures import keep_picture
from service.core.progress import ProgressBar
from service.core.whole_files import write_whole
from service.errors import GlyphrecError, InvalidItem

PHOTOS_PER_PART = 500  # an interrupted reading goes on after the last finished part
SHOWN = 3  # unusable files that are named


def spec_of(config: PicturesConfig) -> PictureSpec:
    """What the manifest says of the photos."""
    return PictureSpec(size_px=config.size_px)


def read_photos(run: Run) -> Photos:
    """The features of the catalog's photos. A photo that cannot be used is named, and its item has none.

    Raises GlyphrecError if the catalog has no usable photo at all.
    """
    dataset, config, cache = run.dataset, run.config.pictures, run.cache
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
    parts = cache.path("photos", ".parts", *inputs)

    def read_all(target: Path) -> None:
        parts.mkdir(exist_ok=True)
        _save(target, _read_in_parts([dataset.images[item] for item in owners], config, parts))

    features = cache.get(cache.path("photos", ".npy", *inputs), read_all, _load)  # [owner, dim]
    shutil.rmtree(parts, ignore_errors=True)
    is_usable = ~np.isnan(features[:, 0])
    _tell(run, owners, is_usable)
    photo_of = np.full(dataset.num_items, NO_PICTURE, np.int64)
    photo_of[np.array(owners)[is_usable]] = np.arange(is_usable.sum())
    return Photos(features[is_usable], photo_of)


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


def _read_in_parts(paths: Sequence[Path], config: PicturesConfig, parts: Path) -> NDArray[np.float32]:
    """Features [photo, dim]; NaN where a photo cannot be used. Finished parts stay in the folder `parts`."""
    encoder = make_image_encoder(config)
    session = ImageSession(encoder, threads=usable_cpus().num_threads)
    spec, found = spec_of(config), []
    with (
        ProgressBar(total=len(paths), desc="Reading photos", unit="photo", mininterval=1.0) as progress,
        ThreadPoolExecutor(1) as decoder,
    ):
        for start in range(0, len(paths), PHOTOS_PER_PART):
            some = paths[start : start + PHOTOS_PER_PART]
            path = parts / f"photos_{start:08d}.npy"
            part = read_or_remove(path, _load) if path.is_file() else None
            if part is None:
                part = np.full((len(some), encoder.feature_dim), np.nan, np.float32)
                for place, pixels in enumerate(_ahead(decoder, some, spec)):
                    if pixels is not None:
                        part[place] = session.features([pixels])[0]
                    progress.update(1)
                _save(path, part)
            else:
                progress.update(len(some))
            found.append(part)
    return np.concatenate(found)


def _ahead(decoder: ThreadPoolExecutor, paths: Sequence[Path], spec: PictureSpec) -> Iterator[Pixels | None]:
    """The pixels of each photo. While one is read, the next is decoded."""
    waiting = [decoder.submit(photo_of, path, spec) for path in paths]
    while waiting:
        yield waiting.pop(0).result()


def _save(path: Path, features: NDArray[np.float32]) -> None:
    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.save(file, features)

    write_whole(path, write)


def _load(path: Path) -> NDArray[np.float32]:
    with path.open("rb") as file:
        found: NDArray[np.float32] = np.load(file)
    return found
