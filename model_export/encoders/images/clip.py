"""The image tower of CLIP (Radford et al., arXiv 2103.00020), for example openai/clip-vit-base-patch32.

VL-CLIP (arXiv 2507.17080) reads products with it. The features are those that CLIP compares with texts: the
class token after the projection.
"""

from typing import Any

from torch import Tensor, nn

from model_export.encoders.hub.base import load_model
from model_export.encoders.images.hub_tower import HubImageEncoder

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py


class Clip(HubImageEncoder):
    """Photos -> CLIP's image embeddings, 512 numbers for ViT-B/32."""

    whole, alone = "clip", "clip_vision_model"

    def _vision_config(self, config: Any) -> Any:
        config.vision_config.projection_dim = config.projection_dim  # old checkpoints say it only here
        return config.vision_config

    def _load(self, checkpoint: str, vision: Any) -> nn.Module:
        from transformers import CLIPVisionModelWithProjection

        return load_model(
            CLIPVisionModelWithProjection, checkpoint, config=vision, attn_implementation="eager"
        )

    def _feature_dim(self, vision: Any) -> int:
        return int(vision.projection_dim)

    def _pooled(self, pixels: Tensor) -> Tensor:
        embeddings: Tensor = self.tower(pixel_values=pixels).image_embeds
        return embeddings
