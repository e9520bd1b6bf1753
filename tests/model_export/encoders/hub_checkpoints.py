"""Tiny checkpoints with random weights, saved in the form of the model hub."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import (
    DeepseekOcr2Config,
    DeepseekOcr2ForConditionalGeneration,
    DeepseekOcr2ImageProcessorPil,
    DeiTConfig,
    DeiTImageProcessorPil,
    DonutImageProcessorPil,
    DonutSwinConfig,
    MBartConfig,
    TrOCRConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessorPil,
)

VIT = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
SQUARE = {"height": 32, "width": 32}


def save_donut(folder: Path) -> nn.Module:
    """Write a checkpoint to `folder` and return its encoder."""
    encoder = DonutSwinConfig(
        image_size=(64, 48), patch_size=4, embed_dim=8, depths=[2, 1], num_heads=[1, 2], window_size=4
    )
    decoder = MBartConfig(
        vocab_size=20, d_model=16, decoder_layers=1, decoder_attention_heads=1, decoder_ffn_dim=8
    )
    DonutImageProcessorPil(size={"height": 64, "width": 48}).save_pretrained(folder)
    return _save(folder, VisionEncoderDecoderModel, _both(encoder, decoder)).encoder


def save_trocr(folder: Path) -> nn.Module:
    ViTImageProcessorPil(size=SQUARE, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.5, 0.6]).save_pretrained(
        folder
    )
    return _save(folder, VisionEncoderDecoderModel, _both(ViTConfig(**VIT), _trocr_decoder())).encoder


def save_trocr_deit(folder: Path) -> nn.Module:
    """Like trocr-small: the encoder has a distillation token, and a crop follows the resize."""
    processor = DeiTImageProcessorPil(size={"height": 40, "width": 40}, crop_size=SQUARE)
    processor.save_pretrained(folder)
    return _save(folder, VisionEncoderDecoderModel, _both(DeiTConfig(**VIT), _trocr_decoder())).encoder


def save_deepseek_ocr2(folder: Path, tile_size: int = 48) -> nn.Module:
    """Pictures have 16 x 16 pixels. The real checkpoint has 1024 x 1024, and tiles of 768 x 768."""
    sees = {
        "hidden_size": 8,
        "output_channels": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "image_size": 16,
        "patch_size": 1,
        "window_size": 5,
        "global_attn_indexes": [1],
        "downsample_channels": [12, 16],
    }
    asks = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 8,
    }
    writes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "n_routed_experts": 2,
        "moe_intermediate_size": 4,
        "mlp_layer_types": ["dense"],
        "vocab_size": 20,
    }
    config = DeepseekOcr2Config(
        vision_config={"sam_config": sees, "encoder_config": asks}, text_config=writes
    )
    processor = DeepseekOcr2ImageProcessorPil(size={"height": 16, "width": 16}, tile_size=tile_size)
    processor.save_pretrained(folder)
    return _save(folder, DeepseekOcr2ForConditionalGeneration, config).model.vision_tower


def _trocr_decoder() -> TrOCRConfig:
    return TrOCRConfig(
        vocab_size=20, d_model=16, decoder_layers=1, decoder_attention_heads=1, decoder_ffn_dim=8
    )


def _both(encoder: object, decoder: object) -> VisionEncoderDecoderConfig:
    return VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)


def _save(folder: Path, kind: Callable[..., nn.Module], config: object) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config).eval()
        for weights in model.parameters():
            if weights.dim() > 1:  # weights that start at zero would hide a mistake
                nn.init.normal_(weights, std=0.3)
    model.save_pretrained(folder)
    return model
