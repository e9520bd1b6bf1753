"""The share of the vectors' variance that a quantizer's codes keep."""

import numpy as np
import torch
from numpy.typing import NDArray

from model_export.quantizers.base import ResidualQuantizer


@torch.no_grad()
def explained_variance(model: ResidualQuantizer, vectors: NDArray[np.float32]) -> float:
    """The share of the variance of vectors [item, dim] that decoding keeps. It is 1 without any variance."""
    data = torch.from_numpy(vectors)
    unexplained = (model.decode(model.encode(data)) - data).square().mean()
    variance = (data - data.mean(dim=0)).square().mean()
    return float(1 - unexplained / variance) if variance > 0 else 1.0
