"""Boxes in pictures, in shares of the picture's sides, so that they hold at every size of the picture."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class Box(NamedTuple):
    """A part of a picture. The sides are between 0 and 1, from the upper left corner."""

    left: float
    top: float
    right: float
    bottom: float
    confidence: float = 1.0

    @property
    def area(self) -> float:
        """The share of the picture, 0 to 1."""
        return max(0.0, self.right - self.left) * max(0.0, self.bottom - self.top)


WHOLE = Box(0.0, 0.0, 1.0, 1.0)


def best_box(boxes: Sequence[Box]) -> Box | None:
    """The most confident box that is not empty, the first of equal ones. None if there is none."""
    return max((box for box in boxes if box.area > 0), key=lambda box: box.confidence, default=None)


def widened(box: Box, margin: float) -> Box:
    """The box with `margin` of its sides added on each side, inside the picture."""
    wide, high = margin * (box.right - box.left), margin * (box.bottom - box.top)
    return Box(
        max(0.0, box.left - wide),
        max(0.0, box.top - high),
        min(1.0, box.right + wide),
        min(1.0, box.bottom + high),
        box.confidence,
    )


def crop(picture: Image.Image, box: Box | None) -> Image.Image:
    """The part of the picture in the box, at least one pixel. None gives the whole picture."""
    if box is None:
        return picture
    width, height = picture.size
    left, top = min(width - 1, int(box.left * width)), min(height - 1, int(box.top * height))
    right = max(left + 1, min(width, round(box.right * width)))
    bottom = max(top + 1, min(height, round(box.bottom * height)))
    return picture.crop((left, top, right, bottom))


def on_square(box: Box, width: int, height: int) -> Box:
    """The same part after the picture was centered on a square (service/core/pictures.py)."""
    side = max(width, height)
    wide, high = width / side, height / side
    left, top = (1 - wide) / 2, (1 - high) / 2
    return Box(
        left + wide * box.left, top + high * box.top, left + wide * box.right, top + high * box.bottom,
        box.confidence,
    )  # fmt: skip


def from_square(box: Box, width: int, height: int) -> Box:
    """The part of a picture that `box` shows of its square: the inverse of `on_square`."""
    side = max(width, height)
    wide, high = width / side, height / side
    left, top = (1 - wide) / 2, (1 - high) / 2
    across = [min(1.0, max(0.0, (value - left) / wide)) for value in (box.left, box.right)]
    down = [min(1.0, max(0.0, (value - top) / high)) for value in (box.top, box.bottom)]
    return Box(across[0], down[0], across[1], down[1], box.confidence)


def as_rows(boxes: Sequence[Box | None]) -> NDArray[np.float32]:
    """Boxes as an array [photo, 5], NaN where there is none."""
    nothing = (np.nan,) * len(Box._fields)
    rows = [nothing if box is None else tuple(box) for box in boxes]
    return np.array(rows, np.float32).reshape(-1, len(Box._fields))


def from_rows(rows: NDArray[np.float32]) -> list[Box | None]:
    """The inverse of `as_rows`."""
    return [None if np.isnan(row).any() else Box(*map(float, row)) for row in rows]
