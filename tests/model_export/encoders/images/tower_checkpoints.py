"""Tiny checkpoints of CLIP and SigLIP with random weights, saved in the form of the model hub."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionModelWithProjection,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipVisionModel,
)

SIZE_PX = 32
VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": SIZE_PX, "patch_size": 8,
}  # fmt: skip
TEXT = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "vocab_size": 20, "max_position_embeddings": 8, "projection_size": 16,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def save_clip(folder: Path, *, alone: bool = False, crop_px: int = SIZE_PX) -> nn.Module:
    """Write a checkpoint of the whole model, or of the image tower alone, and return the model."""
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE_PX}, crop_size={"height": crop_px, "width": crop_px}
    )
    processor.save_pretrained(folder)
    config = CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=12)
    if not alone:
        return _save(folder, CLIPModel(config))
    config.vision_config.projection_dim = 12
    return _save(folder, CLIPVisionModelWithProjection(config.vision_config))


def save_siglip(folder: Path, *, alone: bool = False) -> nn.Module:
    """As `save_clip`."""
    SiglipImageProcessorPil(size={"height": SIZE_PX, "width": SIZE_PX}).save_pretrained(folder)
    config = SiglipConfig(vision_config=VISION, text_config=TEXT)
    return _save(folder, SiglipVisionModel(config.vision_config) if alone else SiglipModel(config))


def _save(folder: Path, model: Any) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():  # weights that start at zero would hide a mistake
            weights.copy_(torch.randn(weights.shape, generator=generator) * 0.3)
    model.eval().save_pretrained(folder)
    result: nn.Module = model
    return result
