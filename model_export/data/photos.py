"""The photos of a data set's items, as an encoder sees them.

Every file goes through the functions of service/core/pictures.py. So training sees what a service sees.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model_export.data.dataset import Dataset
from service.core.bundle import PictureSpec, RenderSpec
from service.core.encoder_view import encoder_view
from service.core.pictures import keep_picture
from service.errors import InvalidItem

Pixels = NDArray[np.uint8]  # [size, size, 3]


def seen_of(
    dataset: Dataset, items: Sequence[int], spec: PictureSpec | None, render: RenderSpec
) -> list[Pixels | None]:
    """What the image encoder sees of these items alone. None for an item of which it sees nothing.

    `spec` None: the encoder reads texts only.
    """
    if spec is None:
        return [None] * len(items)
    return [encoder_view(dataset.items[item], kept_of(dataset, item), spec, render) for item in items]


def kept_of(dataset: Dataset, item: int) -> bytes | None:
    """The photo of an item as a service keeps it. None if there is none, or if a service would refuse it."""
    path = dataset.images.get(item)
    try:
        return None if path is None else keep_picture(path.read_bytes()).data
    except (InvalidItem, OSError):
        return None
