"""Photos with a second product beside the first, to measure what grounding finds.

A studio photo shows one product, so a crop changes little. Two photos side by side are the smallest clutter,
and chance finds the right half in half of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from model_export.vl_clip.boxes import Box

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
WHITE = (255, 255, 255)


class Placed(NamedTuple):
    """An item whose photo is shown beside another one's."""

    item: int
    other: int
    is_right: bool  # whether the item is on the right


def place_beside(items: Sequence[int], types: Sequence[str], count: int, seed: int) -> list[Placed]:
    """Up to `count` items, each with another item of another product type, left or right by chance.

    `types` [item] has the product type of each item of the catalog. Without two types there are none.
    """
    rng = np.random.default_rng(seed)
    found = []
    for item in rng.permutation(np.array(items, np.int64))[:count].tolist():
        others = [other for other in items if types[other] != types[item]]
        if others:
            found.append(Placed(item, int(rng.choice(others)), bool(rng.random() < 0.5)))
    return found


def beside(photo: Image.Image, other: Image.Image, *, is_right: bool) -> Image.Image:
    """Both photos at one height on white; `photo` is on the right if `is_right`."""
    height = max(photo.height, other.height)
    scaled = [
        each.resize((max(1, round(each.width * height / each.height)), height), Image.Resampling.BICUBIC)
        for each in ((other, photo) if is_right else (photo, other))
    ]
    both = Image.new("RGB", (scaled[0].width + scaled[1].width, height), WHITE)
    both.paste(scaled[0], (0, 0))
    both.paste(scaled[1], (scaled[0].width, 0))
    return both


def is_found(box: Box | None, *, is_right: bool) -> bool:
    """Whether the middle of the box lies in the half of the product. No box finds nothing."""
    return box is not None and ((box.left + box.right) / 2 > 0.5) == is_right
