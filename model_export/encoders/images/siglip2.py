"""The image tower of SigLIP 2 (Tschannen et al., arXiv 2502.14786), for example
google/siglip2-so400m-patch16-512, with which CARD (arXiv 2604.26427) reads its visual semantic units.

Checkpoints of one size have the classes of SigLIP, so those of SigLIP load too. The NaFlex checkpoints, which
read pictures of any proportions, are of another type and are refused.
"""

from typing import Any

from torch import Tensor, nn

from model_export.encoders.hub.base import load_model
from model_export.encoders.images.hub_tower import HubImageEncoder

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py


class SigLip2(HubImageEncoder):
    """Photos -> the tower's pooled features, 1,152 numbers for so400m."""

    whole, alone = "siglip", "siglip_vision_model"

    def _vision_config(self, config: Any) -> Any:
        return config.vision_config

    def _load(self, checkpoint: str, vision: Any) -> nn.Module:
        from transformers import SiglipVisionModel

        return load_model(SiglipVisionModel, checkpoint, config=vision, attn_implementation="eager")

    def _feature_dim(self, vision: Any) -> int:
        return int(vision.hidden_size)

    def _pooled(self, pixels: Tensor) -> Tensor:
        pooled: Tensor = self.tower(pixel_values=pixels).pooler_output
        return pooled
