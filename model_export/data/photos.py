"""The photos of a data set's items, as an encoder sees them.

Every file goes through the functions of service/core/pictures.py. So training sees what a service sees.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_export.data.dataset import Dataset
from service.core.bundle import PictureSpec
from service.core.pictures import keep_picture, picture_pixels
from service.errors import InvalidItem

Pixels = NDArray[np.uint8]  # [size, size, 3]


def photos_of(dataset: Dataset, items: Sequence[int], spec: PictureSpec | None) -> list[Pixels | None]:
    """The pixels of the photos of these items. None for an item without a usable photo.

    `spec` None: no photo is read.
    """
    if spec is None:
        return [None] * len(items)
    return [photo_of(dataset.images[item], spec) if item in dataset.images else None for item in items]


def photo_of(path: Path, spec: PictureSpec) -> Pixels | None:
    """The pixels of the photo in a file, or None if a service would refuse the file."""
    try:
        return picture_pixels(keep_picture(path.read_bytes()).data, spec)
    except (InvalidItem, OSError):
        return None
