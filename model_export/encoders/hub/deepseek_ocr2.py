"""The encoder of DeepSeek-OCR-2 (deepseek-community/DeepSeek-OCR-2): learned queries attend to SAM's patches.

The encoder sees a picture larger than a tile twice, as a whole and in tiles. The frame is the mean of all
tokens. We measured the full size with random weights. It has 453 million weights, and its graph takes 1.83
GB. A page of 480 x 640 pixels takes 41 s on one CPU core in PyTorch. The export of the body takes five
minutes and 18 GB of memory.
"""

from copy import deepcopy
from typing import Any

from torch import nn

from model_export.encoders.hub.base import (
    HubEncoder,
    PictureReader,
    View,
    load_config,
    load_model,
    wrong_model,
)
from model_export.encoders.hub.pixels import Geometry, Pixels

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
WHOLE, ENCODER = "deepseek_ocr2", "deepseek_ocr2_vision"


class DeepseekOcr2(HubEncoder):
    """Reads strips with DeepSeek-OCR-2's encoder."""

    def _load(self, checkpoint: str, processor: Any, height: int, width: int) -> PictureReader:
        model = load_vision_model(checkpoint)
        whole = Pixels(global_geometry(processor, height, width), processor)
        views = [View("pixel_values", [whole])]
        if tiles := tile_geometries(processor, height, width):
            views = [View("pixel_values_local", [Pixels(tile, processor) for tile in tiles]), *views]
        return PictureReader(model, views)


def load_vision_model(checkpoint: str) -> nn.Module:
    """Load the encoder from a checkpoint of the whole model or of the encoder alone.

    The layers of the language model are not loaded. Raises GlyphrecError for a checkpoint of another type.
    """
    from transformers import DeepseekOcr2Model, DeepseekOcr2VisionModel

    config = load_config(checkpoint)
    if config.model_type == ENCODER:
        return load_model(DeepseekOcr2VisionModel, checkpoint, config=config, attn_implementation="eager")
    if config.model_type != WHOLE:
        raise wrong_model(checkpoint, config.model_type, (WHOLE, ENCODER))
    config = deepcopy(config)
    config.text_config.num_hidden_layers, config.text_config.mlp_layer_types = 0, []
    whole = load_model(
        DeepseekOcr2Model, checkpoint, needed="vision_tower.", config=config, attn_implementation="eager"
    )
    tower = whole.vision_tower
    assert isinstance(tower, nn.Module)
    return tower


def global_geometry(processor: Any, height: int, width: int) -> Geometry:
    """The whole picture, scaled until its long side fills the square. The rest of the square is gray."""
    side = processor.size.height if processor.crop_to_patches else processor.tile_size
    scale = side / max(height, width)
    picture = Geometry.of(height, width)
    picture = picture.resize(round(height * scale), round(width * scale), processor.resample)
    return picture.pad(side, side, fill=processor.background_color[0])


def tile_geometries(processor: Any, height: int, width: int) -> list[Geometry]:
    """The tiles of a large picture, row by row. A picture that fits into one tile has none."""
    from transformers.models.deepseek_ocr2.image_processing_pil_deepseek_ocr2 import get_optimal_tiled_canvas

    side = processor.tile_size
    if not processor.crop_to_patches or max(height, width) <= side:
        return []
    num_columns, num_rows = get_optimal_tiled_canvas(
        (height, width), (side, side), processor.min_patches, processor.max_patches
    )
    canvas = Geometry.of(height, width).resize(num_rows * side, num_columns * side, processor.resample)
    return [
        canvas.crop(row * side, column * side, side, side)
        for row in range(num_rows)
        for column in range(num_columns)
    ]
