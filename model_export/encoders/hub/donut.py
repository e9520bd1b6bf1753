"""The encoder of Donut (naver-clova-ix/donut-base): a Swin transformer that reads whole pages.

A page is much larger than a line of text, so a strip should hold many lines (RenderSpec.lines_per_strip).
"""

from typing import Any

from model_export.encoders.hub.base import HubEncoder, PictureReader, View, load_encoder
from model_export.encoders.hub.pixels import Geometry, Pixels
from service.errors import GlyphrecError

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py


class Donut(HubEncoder):
    """Reads strips with Donut's encoder."""

    def _load(self, checkpoint: str, processor: Any, height: int, width: int) -> PictureReader:
        from transformers import DonutSwinModel

        model = load_encoder(checkpoint, {"donut-swin": DonutSwinModel}, add_pooling_layer=False)
        pixels = Pixels(page_geometry(processor, height, width), processor)
        return PictureReader(model, [View("pixel_values", [pixels])])


def page_geometry(processor: Any, height: int, width: int) -> Geometry:
    """The steps of DonutImageProcessor: fill the page's shorter side, shrink to the page, pad with black.

    Raises GlyphrecError if the picture is larger than the page.
    """
    size, resample = processor.size, processor.resample
    picture = Geometry.of(height, width)
    if processor.do_resize:
        picture = picture.resize_shortest(min(size.height, size.width), resample)
    if processor.do_thumbnail:
        picture = _thumbnail(picture, size.height, size.width, resample)
    if processor.do_pad:
        if picture.height > size.height or picture.width > size.width:
            raise GlyphrecError(
                f"Strips of {height} x {width} pixels become {picture.height} x {picture.width}, which "
                f"exceeds Donut's page of {size.height} x {size.width}. "
                "Choose a recipe (RenderSpec) with proportions closer to the page's."
            )
        picture = picture.pad(size.height, size.width, fill=0.0)
    return picture


def _thumbnail(picture: Geometry, max_height: int, max_width: int, resample: int) -> Geometry:
    height, width = min(picture.height, max_height), min(picture.width, max_width)
    if (height, width) == (picture.height, picture.width):
        return picture
    if picture.height > picture.width:
        width = int(picture.width * height / picture.height)
    elif picture.width > picture.height:
        height = int(picture.height * width / picture.width)
    return picture.resize(height, width, resample)
