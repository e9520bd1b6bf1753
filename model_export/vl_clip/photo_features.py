"""The stage that reads photos for our joint space, whole or cropped to boxes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_export.pipeline.cache import StageCache
from model_export.pipeline.parts import in_parts
from model_export.vl_clip import photo_reader
from model_export.vl_clip.boxes import Box, as_rows, crop
from model_export.vl_clip.photo_reader import PhotoReader, cell_session
from service.core import pictures

Features = NDArray[np.float32]


def read_photos(
    cache: StageCache,
    names: Sequence[str],
    load: Callable[[int], Image.Image | None],
    size_px: int,
    boxes: Sequence[Box | None] | None = None,
) -> Features:
    """The features [photo, feature] of photos, NaN for a photo that cannot be used.

    `names` tells each photo from all others, for example by its hash, and `load` gives its pixels. `boxes`
    None: the whole photos.
    """
    chosen: Sequence[Box | None] = [None] * len(names) if boxes is None else boxes
    inputs: tuple[Any, ...] = (
        list(names), as_rows(chosen), size_px, *PhotoReader.files(),
        {"photo_reader": photo_reader.VERSION, "pictures": pictures.VERSION},
    )  # fmt: skip

    def make(start: int, stop: int) -> Features:
        part = np.full((stop - start, PhotoReader.feature_dim), np.nan, np.float32)
        for row, place in enumerate(range(start, stop)):
            if (photo := load(place)) is not None:
                part[row] = cell_session(size_px).features(crop(photo, chosen[place]))
        return part

    return in_parts(cache, "vl_clip_photos", inputs, len(names), make, desc="Reading photos")
