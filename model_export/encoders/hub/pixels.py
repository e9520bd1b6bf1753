"""What a checkpoint's image processor does to a picture, as a part of the graph.

Pillow's resize is linear in each direction, so two matrices, one for each side, are any of its filters,
antialiasing included. Several resizes one after another are still two matrices, and a crop is a slice.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 255


@dataclass(frozen=True)
class Geometry:
    """Which pixels of a strip go into which of a picture."""

    rows: NDArray[np.float32]  # [strip row, picture row]
    columns: NDArray[np.float32]  # [strip column, picture column]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # left, right, top, bottom; added last
    fill: float = 0.0  # the padding's level, 0 is black
    rows_first: bool = False  # bytes are rounded and cut to 0..255 between the two directions

    @classmethod
    def of(cls, height: int, width: int) -> Self:
        """The strip as it is."""
        return cls(np.eye(height, dtype=np.float32), np.eye(width, dtype=np.float32))

    @property
    def height(self) -> int:
        return int(self.rows.shape[1])

    @property
    def width(self) -> int:
        return int(self.columns.shape[1])

    def resize(self, height: int, width: int, resample: int) -> Self:
        rows = resize_matrix(self.height, height, resample)
        columns = resize_matrix(self.width, width, resample)
        return replace(
            self,
            rows=self.rows @ rows,
            columns=self.columns @ columns,
            rows_first=_is_rows_first(rows, columns, resample),
        )

    def resize_shortest(self, side: int, resample: int) -> Self:
        """Keep the proportions; the shorter side becomes `side`."""
        short, long = sorted((self.height, self.width))
        other = int(side * long / short)
        height, width = (side, other) if self.height <= self.width else (other, side)
        return self.resize(height, width, resample)

    def crop(self, top: int, left: int, height: int, width: int) -> Self:
        rows, columns = self.rows[:, top : top + height], self.columns[:, left : left + width]
        return replace(self, rows=rows, columns=columns)

    def pad(self, height: int, width: int, fill: float) -> Self:
        """Center the picture on one of this size; half a pixel goes to the right and the bottom."""
        left, top = (width - self.width) // 2, (height - self.height) // 2
        padding = (left, width - self.width - left, top, height - self.height - top)
        return replace(self, padding=padding, fill=fill)


def resize_matrix(before: int, after: int, resample: int) -> NDArray[np.float32]:
    """[before, after]: a line of `before` pixels times this is what Pillow makes of it.

    Pillow itself says so, asked for the answer to each single pixel.
    """
    pixels = Image.fromarray(np.eye(before, dtype=np.float32))
    return np.array(pixels.resize((after, before), resample))


def _is_rows_first(rows: NDArray[np.float32], columns: NDArray[np.float32], resample: int) -> bool:
    """Whether Pillow resizes rows before columns, which depends on the sizes and on its version: try it."""
    before = np.random.default_rng(0).integers(0, LEVELS + 1, (len(rows), len(columns)), dtype=np.uint8)
    size = (columns.shape[1], rows.shape[1])
    expected = torch.tensor(np.asarray(Image.fromarray(before).resize(size, resample)), dtype=torch.float32)
    arguments = torch.from_numpy(before), torch.from_numpy(rows).T, torch.from_numpy(columns)
    apart = [(_resized(*arguments, order) - expected).abs().mean() for order in (False, True)]
    return bool(apart[True] < apart[False])


def _resized(levels: Tensor, rows: Tensor, columns: Tensor, rows_first: bool) -> Tensor:
    """Levels [..., row, column] by rows [after, before] and columns [before, after]."""
    levels = levels.to(torch.float32)
    if rows_first:
        return _rounded(_rounded(rows @ levels) @ columns)
    return _rounded(rows @ _rounded(levels @ columns))


class Pixels(nn.Module):
    """Strips [strip, height, width] uint8 -> normalized pictures [strip, 3, height, width]."""

    rows: Tensor  # [picture row, strip row]
    columns: Tensor  # [strip column, picture column]
    scale: Tensor  # [3, 1, 1]
    shift: Tensor  # [3, 1, 1]

    def __init__(self, geometry: Geometry, processor: Any) -> None:
        super().__init__()
        self.register_buffer("rows", torch.from_numpy(np.ascontiguousarray(geometry.rows.T)))
        self.register_buffer("columns", torch.from_numpy(np.ascontiguousarray(geometry.columns)))
        self.padding, self.fill, self.rows_first = geometry.padding, geometry.fill, geometry.rows_first
        mean = _channels(processor.image_mean if processor.do_normalize else 0.0)
        std = _channels(processor.image_std if processor.do_normalize else 1.0)
        factor = processor.rescale_factor if processor.do_rescale else 1.0
        self.register_buffer("scale", factor / std)
        self.register_buffer("shift", -mean / std)

    def forward(self, strips: Tensor) -> Tensor:
        gray = _resized(strips, self.rows, self.columns, self.rows_first)
        gray = F.pad(gray, self.padding, value=self.fill)  # [strip, height, width]
        return gray[:, None] * self.scale + self.shift


def _channels(value: float | list[float]) -> Tensor:
    """[3, 1, 1], of one number or one for each channel."""
    return torch.tensor(value, dtype=torch.float32).expand(3)[:, None, None].clone()


def _rounded(levels: Tensor) -> Tensor:
    """Pillow keeps bytes after each direction, and halves go up."""
    return (levels + 0.5).floor().clamp(0, LEVELS)


def plain_geometry(processor: Any, height: int, width: int) -> Geometry:
    """Resize, then a central crop, where the processor says so: what most models want."""
    picture = Geometry.of(height, width)
    if processor.do_resize:
        size = processor.size
        if size.shortest_edge:
            picture = picture.resize_shortest(size.shortest_edge, processor.resample)
        else:
            picture = picture.resize(size.height, size.width, processor.resample)
    if processor.do_center_crop:
        crop = processor.crop_size
        top, left = (picture.height - crop.height) // 2, (picture.width - crop.width) // 2
        picture = picture.crop(max(top, 0), max(left, 0), crop.height, crop.width)
    return picture
