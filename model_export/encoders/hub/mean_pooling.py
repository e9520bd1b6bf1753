"""Mean pooling: an item is the mean of its frames, of length 1, then standardized in each dimension.

For encoders that give one frame a picture. Over the catalog each dimension has mean 0 and deviation 1.
"""

from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model_export.encoders.base import Pooling, Reading, item_of_strip

MIN_SPREAD = 1e-2  # of the widest dimension; standardizing a narrower one would blow up rounding


class MeanPooling(Pooling):
    """The fitted pooling."""

    mean: Tensor  # [dim]
    std: Tensor  # [dim]

    def __init__(self, *, mean: NDArray[np.float32], std: NDArray[np.float32]) -> None:  # [dim] each
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("std", torch.from_numpy(std))
        self.feature_dim = len(mean)

    @classmethod
    def fit(cls, reading: Reading) -> Self:
        dim = reading.frames.shape[1]
        identity = cls(mean=np.zeros(dim, np.float32), std=np.ones(dim, np.float32))
        units = identity.pool(reading)  # [item, dim], of length 1
        std = units.std(axis=0)
        return cls(mean=units.mean(axis=0), std=std.clip(min=max(MIN_SPREAD * std.max(), 1e-6)))

    def forward(self, strips: Tensor, frames: Tensor, first_strip: Tensor) -> Tensor:
        strip = torch.arange(strips.shape[0])
        item = item_of_strip(strip, first_strip)  # [strip]
        item = item[:, None].expand(-1, frames.shape[1]).flatten()  # [strip * frame]
        # A Reading stores float16; rounding here as well makes the graph see what was fitted to.
        kept = frames.flatten(0, 1).to(torch.float16).to(torch.float32)  # [strip * frame, dim]
        return self.features(kept, item, first_strip.shape[0])

    def features(self, frames: Tensor, item: Tensor, num_items: int) -> Tensor:
        zeros = torch.zeros(num_items, frames.shape[1])
        # The sum points where the mean does, and only the direction is kept.
        total = zeros.index_add(0, item, frames)  # [item, dim]
        return (F.normalize(total, dim=1) - self.mean) / self.std
