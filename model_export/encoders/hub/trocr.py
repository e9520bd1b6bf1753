"""TrOCR's encoder (microsoft/trocr-base-printed): a vision transformer that reads a line squeezed square."""

from typing import Any

from model_export.encoders.hub.base import HubEncoder, PictureReader, View, load_encoder
from model_export.encoders.hub.pixels import Pixels, plain_geometry

VERSION = 1  # of what comes out; raised with it, see pipeline/versions.py

# Tokens before those of the patches: the class token, and in DeiT the one for distillation.
NUM_SPECIAL = {"vit": 1, "deit": 2}


class TrOcr(HubEncoder):
    def _load(self, checkpoint: str, processor: Any, height: int, width: int) -> PictureReader:
        from transformers import DeiTModel, ViTModel

        kinds = {"vit": ViTModel, "deit": DeiTModel}
        model = load_encoder(checkpoint, kinds, add_pooling_layer=False)
        config: Any = model.config
        pixels = Pixels(plain_geometry(processor, height, width), processor)
        num_special = NUM_SPECIAL[config.model_type]
        return PictureReader(model, [View("pixel_values", [pixels])], num_special=num_special)
