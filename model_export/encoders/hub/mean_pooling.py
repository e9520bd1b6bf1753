"""Mean pooling: an item's features are the mean of its frames, scaled to length 1 and then standardized.

It serves encoders that give one frame for each strip. Over the catalog each dimension has mean 0 and standard
deviation 1.
"""

from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model_export.encoders.base import Pooling, Reading, item_of_strip

MIN_SPREAD = 1e-2  # of the widest dimension; scaling a narrower one up would amplify rounding errors


class MeanPooling(Pooling):
    """The fitted pooling, with the mean and the standard deviation of each dimension."""

    mean: Tensor  # [dim]
    std: Tensor  # [dim]

    def __init__(self, *, mean: NDArray[np.float32], std: NDArray[np.float32]) -> None:  # [dim] each
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("std", torch.from_numpy(std))
        self.feature_dim = len(mean)

    @classmethod
    def fit(cls, reading: Reading) -> Self:
        """Measure mean and deviation over the items of a Reading."""
        dim = reading.frames.shape[1]
        identity = cls(mean=np.zeros(dim, np.float32), std=np.ones(dim, np.float32))
        units = identity.pool(reading)  # [item, dim], of length 1
        std = units.std(axis=0)
        return cls(mean=units.mean(axis=0), std=std.clip(min=max(MIN_SPREAD * std.max(), 1e-6)))

    def forward(self, strips: Tensor, frames: Tensor, first_strip: Tensor) -> Tensor:
        """Pool all frames of each item, see `Pooling.forward`."""
        strip = torch.arange(strips.shape[0])
        item = item_of_strip(strip, first_strip)  # [strip]
        item = item[:, None].expand(-1, frames.shape[1]).flatten()  # [strip * frame]
        # A Reading stores float16. With the same rounding here the graph sees the values that were fitted.
        kept = frames.flatten(0, 1).to(torch.float16).to(torch.float32)  # [strip * frame, dim]
        return self.features(kept, item, first_strip.shape[0])

    def features(self, frames: Tensor, item: Tensor, num_items: int) -> Tensor:
        """Features [item, dim] of frames [frame, dim], see `Pooling.features`."""
        zeros = torch.zeros(num_items, frames.shape[1])
        # The sum has the direction of the mean, and only the direction is used.
        total = zeros.index_add(0, item, frames)  # [item, dim]
        return (F.normalize(total, dim=1) - self.mean) / self.std
