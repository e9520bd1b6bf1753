"""Choose the image encoder of a configuration. A new one is a file of its own and one line in CHOICES."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from model_export.encoders.images import clip, efficientnet_lite0, mobilenet_v2, siglip2
from model_export.encoders.images.base import ImageEncoder
from model_export.encoders.images.hub_tower import HubImageEncoder
from model_export.picture_configs import PicturesConfig


class Choice(NamedTuple):
    """An image encoder and what identifies it."""

    make: Callable[[PicturesConfig], ImageEncoder]
    files: Callable[[str], list[Path]]  # checkpoint -> the files that hold the weights
    name: str  # of the stage, in keys
    version: int  # of the stage's output


def make_image_encoder(config: PicturesConfig) -> ImageEncoder:
    """The image encoder of `config`. Raises GlyphrecError if its weights are missing or damaged."""
    return CHOICES[config.kind].make(config)


def image_encoder_files(config: PicturesConfig) -> list[Path]:
    """The files that hold the encoder's weights. Their content is part of a stage's key."""
    return CHOICES[config.kind].files(config.checkpoint)


def image_encoder_version(config: PicturesConfig) -> dict[str, int]:
    """The encoder's name -> the version of its output."""
    return {CHOICES[config.kind].name: CHOICES[config.kind].version}


def _hub(kind: type[HubImageEncoder], name: str, version: int) -> Choice:
    return Choice(lambda config: kind(config.checkpoint, config.size_px), kind.files, name, version)


CHOICES = {
    "efficientnet-lite0": Choice(
        lambda config: efficientnet_lite0.EfficientNetLite0(config.size_px),
        efficientnet_lite0.EfficientNetLite0.files,
        "efficientnet_lite0",
        efficientnet_lite0.VERSION,
    ),
    "mobilenet-v2": Choice(
        lambda config: mobilenet_v2.MobileNetV2(config.size_px),
        mobilenet_v2.MobileNetV2.files,
        "mobilenet_v2",
        mobilenet_v2.VERSION,
    ),
    "clip": _hub(clip.Clip, "clip", clip.VERSION),
    "siglip2": _hub(siglip2.SigLip2, "siglip2", siglip2.VERSION),
}
