"""What grounding finds, and what that is worth, where a photo shows two products."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from model_export.pipeline.cache import StageCache
from model_export.vl_clip import clutter
from model_export.vl_clip.catalog import PairedItems
from model_export.vl_clip.clutter import Placed, beside, is_found, place_beside
from model_export.vl_clip.configs import VlClipConfig
from model_export.vl_clip.grounding import Grounder, Photo, ground, used
from model_export.vl_clip.readings import Photos
from model_export.vl_clip.sheet import Shown, write_sheet
from model_export.vl_clip.spaces import Learned

ON_SHEET = 48  # photos
PHRASES = ("type", "text")


class InClutter(NamedTuple):
    """The figures."""

    rows: list[tuple[str, dict[str, float]]]  # name, from text to photo
    numbers: dict[str, float]


def figures_in_clutter(
    learned: Learned,
    grounder: Grounder,
    test: PairedItems,
    config: VlClipConfig,
    cache: StageCache,
    *,
    sheet: Path,
) -> InClutter:
    """Show test photos beside another product's, and measure both halves of the question.

    How often the most confident box lies in the right half: for the product type as the phrase, and for the
    whole text. Chance is one half. And how well a text finds its own photo if the photos are used whole, and
    if they are cropped. The space was learned on photos of one product.
    """
    found = InClutter([], {})
    placed = place_beside(range(len(test)), test.types, config.num_cluttered, config.seed)
    if len(placed) < 2:
        return found
    names = [_name_of(test, each) for each in placed]
    texts = [test.texts[each.item] for each in placed]

    def load(place: int) -> Image.Image | None:
        return _shown(test, placed[place])

    found.rows.append(("whole photos", learned.figures(texts, Photos(names, load))))
    for phrase in PHRASES:
        words = [(test.types if phrase == "type" else test.texts)[each.item] for each in placed]
        photos = [
            Photo(name, said, partial(load, place))
            for place, (name, said) in enumerate(zip(names, words, strict=True))
        ]
        best = ground(cache, photos, grounder)
        right = [is_found(box, is_right=each.is_right) for box, each in zip(best, placed, strict=True)]
        with_box = np.array([box is not None for box in best])
        if not with_box.any():
            continue
        found.numbers[f"side_by_side_boxes_by_{phrase}"] = float(with_box.mean())
        found.numbers[f"side_by_side_right_by_{phrase}"] = float(np.array(right)[with_box].mean())
        boxes = used(best, grounder, config.grounding)
        name = f"cropped, {config.grounding.way} by {phrase}"
        found.rows.append((name, learned.figures(texts, Photos(names, load, boxes))))
        if phrase == config.grounding.phrase:
            pages = [
                Shown(picture, boxes[place], words[place], ["left", "right"][placed[place].is_right])
                for place in range(min(ON_SHEET, len(placed)))
                if (picture := load(place)) is not None
            ]
            write_sheet(sheet, f"{test.dataset.name}: each photo beside another product's", pages)
    return found


def _name_of(test: PairedItems, placed: Placed) -> str:
    hashes = test.dataset.image_hashes
    item, other = (hashes[int(test.items[each])] for each in (placed.item, placed.other))
    return f"beside {clutter.VERSION} {item} {other} {placed.is_right}"


def _shown(test: PairedItems, placed: Placed) -> Image.Image | None:
    photo, other = test.photo(placed.item), test.photo(placed.other)
    if photo is None or other is None:
        return None
    return beside(photo, other, is_right=placed.is_right)
