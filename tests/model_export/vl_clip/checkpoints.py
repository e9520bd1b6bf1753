"""Tiny checkpoints of Grounding DINO and of CLIP with its tokenizer, with random weights."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    SwinConfig,
)

from tests.model_export.encoders.images.tower_checkpoints import SIZE_PX, VISION

WORDS = ("ball", "box", "kite", "crimson", "navy", "gold", "black", "a", "in", "the")
END = "<|endoftext|>"


def save_grounding_dino(folder: Path) -> Any:
    """Write a detector that reads pictures of at most 64 pixels, and return it."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?"]
    vocabulary = {word: place for place, word in enumerate([*special, *WORDS])}
    tokenizer = BertTokenizer(vocab=vocabulary)
    images = GroundingDinoImageProcessorPil(size={"shortest_edge": 48, "longest_edge": 64})
    GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2],
            window_size=4, out_indices=[2, 3, 4],
        ),
        text_config=BertConfig(
            vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=32,
        ),
        num_queries=6, encoder_layers=1, encoder_ffn_dim=16, encoder_attention_heads=2, decoder_layers=2,
        decoder_ffn_dim=16, decoder_attention_heads=2, d_model=32, num_feature_levels=3, max_text_len=16,
    )  # fmt: skip
    return _save(GroundingDinoForObjectDetection(config), folder)


def save_clip(folder: Path) -> Any:
    """Write CLIP with a tokenizer of single letters, and return it."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", END]
    tokens = {token: place for place, token in enumerate(vocabulary)}
    CLIPTokenizer(vocab=tokens, merges=[], model_max_length=24).save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": SIZE_PX}, crop_size={"height": SIZE_PX, "width": SIZE_PX}
    ).save_pretrained(folder)
    text = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        "vocab_size": len(tokens), "max_position_embeddings": 24, "projection_size": 16,
        "bos_token_id": tokens["<|startoftext|>"], "eos_token_id": tokens[END], "pad_token_id": tokens[END],
    }  # fmt: skip
    return _save(CLIPModel(CLIPConfig(vision_config=VISION, text_config=text, projection_dim=12)), folder)


def _save(model: Any, folder: Path) -> Any:
    """Weights of our own, as those that a library starts with may change. Biases and norms keep theirs."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim > 1 or name.endswith("class_embedding"):  # which is one random vector
                weights.copy_(torch.randn(weights.shape, generator=generator) * 0.15)
    model.eval().save_pretrained(folder)
    return model
