"""The base of image encoders from `transformers` checkpoints: the image tower of a model of images and texts.

A photo's pixels are already a square of the size that the tower reads, so only the levels are normalized.
The features have length 1, as both models compare images and texts by their cosine.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.encoders.hub.base import (
    MAX_MODEL_BYTES,
    checkpoint_files,
    load_config,
    load_processor,
    require_transformers,
    wrong_model,
)
from model_export.encoders.hub.pixels import channels
from model_export.encoders.images.base import ImageEncoder
from service.errors import GlyphrecError

MAX_LEVELS_APART = 0.01  # of 255: the levels are only scaled


class HubImageEncoder(ImageEncoder):
    """Photos -> the pooled features of a checkpoint's image tower, of length 1."""

    whole: str  # the type of a checkpoint that also has the text tower
    alone: str  # the type of a checkpoint of the image tower
    scale: Tensor  # [3, 1, 1]
    shift: Tensor  # [3, 1, 1]

    def __init__(self, checkpoint: str, size_px: int) -> None:
        """`checkpoint`: a folder or a name on the model hub. Raises GlyphrecError if it cannot be used."""
        super().__init__()
        require_transformers()
        config = load_config(_named(checkpoint))
        if config.model_type not in (self.whole, self.alone):
            raise wrong_model(checkpoint, config.model_type, (self.whole, self.alone))
        vision = self._vision_config(config) if config.model_type == self.whole else config
        if vision.image_size != size_px:
            raise GlyphrecError(
                f"{checkpoint}: reads squares of {vision.image_size} pixels, but the configuration says "
                f"{size_px}. Add --set pictures.size_px={vision.image_size}"
            )
        self.size_px = size_px
        self.tower = self._load(checkpoint, vision).eval()
        self.feature_dim = self._feature_dim(vision)
        num_bytes = sum(weights.numel() * weights.element_size() for weights in self.parameters())
        if num_bytes >= MAX_MODEL_BYTES:
            raise GlyphrecError(
                f"{checkpoint}: its image tower has {num_bytes / 1e9:.1f} GB of weights, but an ONNX file "
                f"holds at most {MAX_MODEL_BYTES / 1e9:.1f} GB. Choose a smaller checkpoint."
            )
        processor = load_processor(checkpoint)
        mean = channels(processor.image_mean if processor.do_normalize else 0.0)
        std = channels(processor.image_std if processor.do_normalize else 1.0)
        self.register_buffer("scale", (processor.rescale_factor if processor.do_rescale else 1.0) / std)
        self.register_buffer("shift", -mean / std)
        self._check_pixels(checkpoint, processor)
        self.eval()

    def forward(self, photos: Tensor) -> Tensor:
        """Pixels [photo, size_px, size_px, 3] uint8, RGB -> features [photo, feature_dim], of length 1."""
        return F.normalize(self._pooled(self._pixels(photos)), dim=-1)

    @classmethod
    def files(cls, checkpoint: str) -> list[Path]:
        """All files of the checkpoint's folder. Raises GlyphrecError if no checkpoint is named."""
        return checkpoint_files(_named(checkpoint))

    @abstractmethod
    def _vision_config(self, config: Any) -> Any:
        """The image tower's part of the configuration of a whole checkpoint."""

    @abstractmethod
    def _load(self, checkpoint: str, vision: Any) -> nn.Module:
        """The image tower."""

    @abstractmethod
    def _feature_dim(self, vision: Any) -> int:
        """The number of pooled features."""

    @abstractmethod
    def _pooled(self, pixels: Tensor) -> Tensor:
        """Normalized pixels [photo, 3, height, width] -> [photo, feature_dim]."""

    def _pixels(self, photos: Tensor) -> Tensor:
        """Pixels [photo, row, column, 3] uint8 -> normalized [photo, 3, row, column]."""
        return photos.permute(0, 3, 1, 2).to(torch.float32) * self.scale + self.shift

    @torch.inference_mode()
    def _check_pixels(self, checkpoint: str, processor: Any) -> None:
        """Raise GlyphrecError if the checkpoint's image processor gives other pixels than we do."""
        photo = np.random.default_rng(0).integers(0, 256, (self.size_px, self.size_px, 3), dtype=np.uint8)
        expected = processor(Image.fromarray(photo), return_tensors="pt")["pixel_values"]
        ours = self._pixels(torch.from_numpy(photo)[None])
        if expected.shape != ours.shape or ((ours - expected) / self.scale).abs().max() > MAX_LEVELS_APART:
            raise GlyphrecError(
                f"{checkpoint}: {type(processor).__name__} makes other pixels of a square of {self.size_px} "
                "pixels than glyphrec. It has a step that glyphrec does not know, or another size than the "
                "tower. Compare preprocessor_config.json with config.json."
            )


def _named(checkpoint: str) -> str:
    if not checkpoint:
        raise GlyphrecError(
            "This image encoder needs a checkpoint: a folder, or a name on the model hub. "
            "Add --set pictures.checkpoint=FOLDER"
        )
    return checkpoint
