"""The encoder of TrOCR (microsoft/trocr-base-printed): a vision transformer.

It reads one line of text, resized to a square.
"""

from typing import Any

from model_export.encoders.hub.base import HubEncoder, PictureReader, View, load_encoder
from model_export.encoders.hub.pixels import Pixels, plain_geometry

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py

# The number of tokens before the patches: the class token, and in DeiT also the distillation token.
NUM_SPECIAL = {"vit": 1, "deit": 2}


class TrOcr(HubEncoder):
    """Reads strips with TrOCR's encoder."""

    def _load(self, checkpoint: str, processor: Any, height: int, width: int) -> PictureReader:
        from transformers import DeiTModel, ViTModel

        kinds = {"vit": ViTModel, "deit": DeiTModel}
        model = load_encoder(checkpoint, kinds, add_pooling_layer=False)
        config: Any = model.config
        pixels = Pixels(plain_geometry(processor, height, width), processor)
        num_special = NUM_SPECIAL[config.model_type]
        return PictureReader(model, [View("pixel_values", [pixels])], num_special=num_special)
