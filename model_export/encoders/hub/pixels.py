"""The steps of a checkpoint's image processor as a part of the graph.

Pillow's resize is linear in each direction. Two matrices, one for the rows and one for the columns, therefore
express any of its filters, antialiasing included. Several resizes in a row are still two matrices. A crop
takes a slice of them.
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
    """The linear map from a strip's pixels to a picture's pixels."""

    rows: NDArray[np.float32]  # [strip row, picture row]
    columns: NDArray[np.float32]  # [strip column, picture column]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # left, right, top, bottom; added last
    fill: float = 0.0  # level of the padding, 0 to 255; 0 is black
    rows_first: bool = False  # the order matters: levels are rounded and clamped to 0..255 in between

    @classmethod
    def of(cls, height: int, width: int) -> Self:
        """The strip without any change."""
        return cls(np.eye(height, dtype=np.float32), np.eye(width, dtype=np.float32))

    @property
    def height(self) -> int:
        """Height in pixels, before the padding."""
        return int(self.rows.shape[1])

    @property
    def width(self) -> int:
        """Width in pixels, before the padding."""
        return int(self.columns.shape[1])

    def resize(self, height: int, width: int, resample: int) -> Self:
        """Resize with Pillow's filter `resample`."""
        rows = resize_matrix(self.height, height, resample)
        columns = resize_matrix(self.width, width, resample)
        return replace(
            self,
            rows=self.rows @ rows,
            columns=self.columns @ columns,
            rows_first=_is_rows_first(rows, columns, resample),
        )

    def resize_shortest(self, side: int, resample: int) -> Self:
        """Resize so that the shorter side becomes `side`. The proportions stay."""
        short, long = sorted((self.height, self.width))
        other = int(side * long / short)
        height, width = (side, other) if self.height <= self.width else (other, side)
        return self.resize(height, width, resample)

    def crop(self, top: int, left: int, height: int, width: int) -> Self:
        """Keep a rectangle, given in pixels."""
        rows, columns = self.rows[:, top : top + height], self.columns[:, left : left + width]
        return replace(self, rows=rows, columns=columns)

    def pad(self, height: int, width: int, fill: float) -> Self:
        """Center the picture on a larger one. An odd pixel of padding goes to the right or the bottom."""
        left, top = (width - self.width) // 2, (height - self.height) // 2
        padding = (left, width - self.width - left, top, height - self.height - top)
        return replace(self, padding=padding, fill=fill)


def resize_matrix(before: int, after: int, resample: int) -> NDArray[np.float32]:
    """The matrix [before, after] of Pillow's resize: a line of `before` pixels times it is the resized line.

    Each row of the matrix is Pillow's own response to a single bright pixel.
    """
    pixels = Image.fromarray(np.eye(before, dtype=np.float32))
    return np.array(pixels.resize((after, before), resample))


def _is_rows_first(rows: NDArray[np.float32], columns: NDArray[np.float32], resample: int) -> bool:
    """Whether Pillow resizes rows before columns. We try it: it depends on the sizes and Pillow's version."""
    before = np.random.default_rng(0).integers(0, LEVELS + 1, (len(rows), len(columns)), dtype=np.uint8)
    size = (columns.shape[1], rows.shape[1])
    expected = torch.tensor(np.asarray(Image.fromarray(before).resize(size, resample)), dtype=torch.float32)
    arguments = torch.from_numpy(before), torch.from_numpy(rows).T, torch.from_numpy(columns)
    apart = [(_resized(*arguments, order) - expected).abs().mean() for order in (False, True)]
    return bool(apart[True] < apart[False])


def _resized(levels: Tensor, rows: Tensor, columns: Tensor, rows_first: bool) -> Tensor:
    """Resize levels [..., row, column] with rows [after, before] and columns [before, after]."""
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
        """`processor` is the image processor. Its scale, mean and deviation normalize the pictures."""
        super().__init__()
        self.register_buffer("rows", torch.from_numpy(np.ascontiguousarray(geometry.rows.T)))
        self.register_buffer("columns", torch.from_numpy(np.ascontiguousarray(geometry.columns)))
        self.padding, self.fill, self.rows_first = geometry.padding, geometry.fill, geometry.rows_first
        mean = channels(processor.image_mean if processor.do_normalize else 0.0)
        std = channels(processor.image_std if processor.do_normalize else 1.0)
        factor = processor.rescale_factor if processor.do_rescale else 1.0
        self.register_buffer("scale", factor / std)
        self.register_buffer("shift", -mean / std)

    def forward(self, strips: Tensor) -> Tensor:
        """Strips [strip, height, width] uint8 -> normalized pictures [strip, 3, height, width] float32."""
        gray = _resized(strips, self.rows, self.columns, self.rows_first)
        gray = F.pad(gray, self.padding, value=self.fill)  # [strip, height, width]
        return gray[:, None] * self.scale + self.shift


def channels(value: float | list[float]) -> Tensor:
    """A tensor [3, 1, 1] from one number or from one number for each channel."""
    return torch.tensor(value, dtype=torch.float32).expand(3)[:, None, None].clone()


def _rounded(levels: Tensor) -> Tensor:
    """Pillow rounds to bytes after each direction, and rounds halves up."""
    return (levels + 0.5).floor().clamp(0, LEVELS)


def plain_geometry(processor: Any, height: int, width: int) -> Geometry:
    """A resize and then a central crop, each if the image processor has it. Most models use these steps."""
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
