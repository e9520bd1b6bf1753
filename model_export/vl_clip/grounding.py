"""Grounding: a photo is cropped to the product that a phrase names (VL-CLIP, arXiv 2507.17080).

    photo, phrase ─ a Grounder ─▶ boxes ─ most confident one over the threshold ─▶ crop with a margin

Without such a box the whole photo is used.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from PIL import Image

from model_export.pipeline.cache import StageCache
from model_export.pipeline.parts import in_parts
from model_export.vl_clip.boxes import Box, as_rows, best_box, from_rows, widened
from model_export.vl_clip.class_maps import ClassMaps
from model_export.vl_clip.configs import GroundingConfig
from model_export.vl_clip.detector import Detector
from model_export.vl_clip.regions import Regions
from model_export.vl_clip.space import TextPhotoSpace
from service.core import pictures


class Grounder(Protocol):
    """Finds what a phrase names in a photo."""

    threshold: float  # a box below this confidence is not used, unless the configuration says otherwise

    def boxes(self, photo: Image.Image, phrase: str) -> list[Box]:
        """Boxes with their confidence, in any order. Empty if the phrase says nothing to this grounder."""

    def key(self) -> tuple[Any, ...]:
        """Everything that its boxes depend on, as inputs of a stage's key (pipeline/cache.py)."""


class Photo(NamedTuple):
    """One photo to ground."""

    name: str  # SHA-256 of its bytes, or what else tells it apart
    phrase: str
    load: Callable[[], Image.Image | None]  # None if the file cannot be used


def ground(cache: StageCache, photos: Sequence[Photo], grounder: Grounder) -> list[Box | None]:
    """The most confident box of each photo, or None where there is no box at all. Stored in the cache."""
    inputs = (
        [[photo.name, photo.phrase] for photo in photos], grounder.key(),
        {"pictures": pictures.VERSION},
    )  # fmt: skip

    def make(start: int, stop: int) -> Any:
        return as_rows([_best(photo, grounder) for photo in photos[start:stop]])

    rows = in_parts(cache, "vl_clip_boxes", inputs, len(photos), make, desc="Grounding photos")
    return from_rows(rows)


def _best(photo: Photo, grounder: Grounder) -> Box | None:
    pixels = photo.load()
    return None if pixels is None else best_box(grounder.boxes(pixels, photo.phrase))


def used(boxes: Sequence[Box | None], grounder: Grounder, config: GroundingConfig) -> list[Box | None]:
    """The boxes that reach the threshold, with their margin. None where the whole photo is used."""
    threshold = grounder.threshold if config.threshold is None else config.threshold
    return [
        None if box is None or box.confidence < threshold else widened(box, config.margin) for box in boxes
    ]


def make_grounder(config: GroundingConfig, space: TextPhotoSpace, key: tuple[Any, ...]) -> Grounder:
    """The grounder of a configuration. `space` is the learned space, for the way `regions`, and `key`
    identifies it.

    Raises GlyphrecError if weights or a checkpoint cannot be used.
    """
    match config.way:
        case "classes":
            return ClassMaps(config.size_px)
        case "regions":
            return Regions(space, (*key, config.size_px))
        case "detector":
            return Detector(config.checkpoint)
        case _:
            raise AssertionError("nothing is grounded")
