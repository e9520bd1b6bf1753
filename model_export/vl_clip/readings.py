"""What our space reads of texts and photos, kept in memory for as long as a run lasts.

A run needs the same texts and photos in several parts, which depend on its seed. They are read ahead in the
order of the catalog, so the stored readings do not depend on the seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_export.encoders.base import Reading
from model_export.pipeline.cache import StageCache
from model_export.vl_clip.boxes import Box
from model_export.vl_clip.catalog import PairedItems
from model_export.vl_clip.photo_features import read_photos
from model_export.vl_clip.text_reader import read_texts
from service.core.bundle import RenderSpec

Boxes = Sequence[Box | None] | None  # of each pair; None: whole photos
Features = NDArray[np.float32]


@dataclass(frozen=True)
class Photos:
    """Photos to read, and which part of each."""

    names: list[str]  # [photo]  what tells each from all others
    load: Callable[[int], Image.Image | None]
    boxes: Boxes = None

    @classmethod
    def of(cls, pairs: PairedItems, boxes: Boxes = None) -> "Photos":
        """The photos of pairs."""
        return cls(pairs.hashes(), pairs.photo, boxes)


class Readings:
    """Reads each text and each whole photo once."""

    def __init__(self, cache: StageCache, render: RenderSpec) -> None:
        self.cache, self.render = cache, render
        self._texts: dict[str, Reading] = {}
        self._photos: dict[tuple[str, int], Features] = {}

    def read_ahead(self, pairs: PairedItems, size_px: int) -> None:
        """Read both texts and the photo of each pair."""
        self.texts(pairs.texts)
        self.texts(pairs.short_texts)
        self.photos(Photos.of(pairs), size_px)

    def texts(self, texts: Sequence[str]) -> Reading:
        """The frames of texts, in their order."""
        if any(text not in self._texts for text in texts):
            found = read_texts(self.cache, texts, self.render)
            self._texts |= {text: found.of_items(place, place + 1) for place, text in enumerate(texts)}
        if not texts:
            return read_texts(self.cache, texts, self.render)
        return Reading.join([self._texts[text] for text in texts])

    def photos(self, photos: Photos, size_px: int) -> Features:
        """The features of photos [photo, feature], NaN for one that cannot be used."""
        if photos.boxes is not None:
            return read_photos(self.cache, photos.names, photos.load, size_px, photos.boxes)
        if any((name, size_px) not in self._photos for name in photos.names):
            found = read_photos(self.cache, photos.names, photos.load, size_px)
            self._photos |= {(name, size_px): row for name, row in zip(photos.names, found, strict=True)}
        if not photos.names:
            return read_photos(self.cache, [], photos.load, size_px)
        return np.stack([self._photos[name, size_px] for name in photos.names])
