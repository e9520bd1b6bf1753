"""Grounding by class activation maps (Zhou et al., arXiv 1512.04150) of EfficientNet-Lite0.

A table says which of ImageNet's classes stand for a product type. The cells of the photo that speak for these
classes are the product. A type that the table does not know has no box.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_export.encoders.images.efficientnet_lite0 import EfficientNetLite0
from model_export.vl_clip import photo_reader
from model_export.vl_clip.boxes import Box, from_square
from model_export.vl_clip.heat import boxes_of_heat
from model_export.vl_clip.photo_reader import cell_session, class_logits
from service.core import pictures

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
TABLE = Path(__file__).with_name("product_classes.json")


class ClassMaps:
    """Boxes from class activation maps."""

    threshold = 0.05  # of the probability of the type's classes in the box

    def __init__(self, size_px: int) -> None:
        """`size_px`: side of the square that is read. Raises GlyphrecError if the weights are missing."""
        self._session = cell_session(size_px)

    def key(self) -> tuple[Any, ...]:
        """The weights and the table."""
        versions = {"class_maps": VERSION, "photo_reader": photo_reader.VERSION}
        return ("classes", *EfficientNetLite0.files(), TABLE, versions)

    def boxes(self, photo: Image.Image, phrase: str) -> list[Box]:
        """See `Grounder`. The confidence is the probability of the type's classes in the box, 0 to 1."""
        classes = classes_of(phrase)
        if not classes:
            return []
        logits = class_logits(self._session.cells(pictures.on_square(photo, self._session.size_px)))
        heat = class_heat(logits, classes)  # [row, column]
        return [
            from_square(box, *photo.size)._replace(confidence=_confidence(logits, classes, box))
            for box in boxes_of_heat(heat)
        ]


def class_heat(logits: NDArray[np.float32], classes: list[int]) -> NDArray[np.float32]:
    """How much each cell speaks for the classes, above what it says of the average class [row, column]."""
    found: NDArray[np.float32] = logits[..., classes].max(axis=-1) - logits.mean(axis=-1)
    return found


def _confidence(logits: NDArray[np.float32], classes: list[int], box: Box) -> float:
    """The probability of the classes, by the mean logits of the cells in the box."""
    rows, columns = logits.shape[:2]
    top, left = int(box.top * rows), int(box.left * columns)
    inside = logits[
        top : max(top + 1, round(box.bottom * rows)), left : max(left + 1, round(box.right * columns))
    ]
    mean = inside.mean(axis=(0, 1)).astype(np.float64)  # [class]
    odds = np.exp(mean - mean.max())
    return float(odds[classes].sum() / odds.sum())


def classes_of(phrase: str) -> list[int]:
    """ImageNet's classes for a product type. Empty if the table does not know it.

    The longest entry of the table that the phrase holds as whole words counts.
    """
    words = f" {' '.join(_words(phrase))} "
    known = [entry for entry in _table() if f" {entry} " in words]
    return _table()[max(known, key=len)] if known else []


def _words(phrase: str) -> list[str]:
    plain = "".join(letter if letter.isalnum() else " " for letter in phrase.casefold())
    return [word.removesuffix("s") if len(word) > 3 else word for word in plain.split()]


@lru_cache(maxsize=1)
def _table() -> dict[str, list[int]]:
    content = json.loads(TABLE.read_text(encoding="utf-8"))
    return {" ".join(_words(name)): classes for name, classes in content["types"].items()}
