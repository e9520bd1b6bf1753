"""Grounding by regions that are compared with the phrase in a learned space of texts and photos.

The confidence of a region says how much nearer to the phrase it is than the whole photo. So a photo that
already shows the product alone is left whole.
"""

from typing import Any

import numpy as np
from PIL import Image

from model_export.vl_clip.boxes import WHOLE, Box
from model_export.vl_clip.space import TextPhotoSpace, Vectors

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
STEPS = 6  # a region starts and ends at a multiple of 1 / STEPS of the photo's sides
WIDTHS, HEIGHTS = (2, 3, 4, 6), (3, 4, 6)  # in steps
PHRASES_KEPT = 4096


class Regions:
    """Boxes from a learned space."""

    threshold = 0.05  # of the cosine above that of the whole photo

    def __init__(self, space: TextPhotoSpace, key: tuple[Any, ...] = ()) -> None:
        """`key`: what identifies the space in the keys of stages."""
        self._space, self._key = space, key
        self._candidates = candidates()
        self._phrases: dict[str, Vectors] = {}

    def key(self) -> tuple[Any, ...]:
        """What identifies the space."""
        return ("regions", *self._key, {"regions": VERSION})

    def boxes(self, photo: Image.Image, phrase: str) -> list[Box]:
        """See `Grounder`. The confidence is the gain of cosine over the whole photo, -2 to 2."""
        if not phrase.strip():
            return []
        if phrase not in self._phrases:
            if len(self._phrases) >= PHRASES_KEPT:
                self._phrases.clear()
            self._phrases[phrase] = self._space.texts([phrase])[0]
        vectors = self._space.regions(photo, [WHOLE, *self._candidates])  # [region, dim]
        likeness = vectors @ self._phrases[phrase]
        gains = (likeness[1:] - likeness[0]).tolist()
        return [box._replace(confidence=gain) for box, gain in zip(self._candidates, gains, strict=True)]


def candidates() -> list[Box]:
    """All regions but the whole photo."""
    found = []
    for width in WIDTHS:
        for height in HEIGHTS:
            for left in range(STEPS - width + 1):
                for top in range(STEPS - height + 1):
                    sides = np.array([left, top, left + width, top + height]) / STEPS
                    found.append(Box(*map(float, sides)))
    return [box for box in found if box.area < 1]
