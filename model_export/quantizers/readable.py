"""Readable codes: the first code of an item is its category, or another field. The codes below are learnt.

Items of one category are then one range of the trie, and a first code has a name. The rest of the codes
divide what the category leaves of a vector: its difference from the mean of the category. Any quantizer can
do that.

Code 0 is for items whose value is not known or rare (core/item_fields.py), in the catalog and later. So a new
category does not need a new model; its items stand with the rest until the next export.

The number of the category comes with the vector, as one more dimension at its end. So an item's codes still
follow from one row, in the treatment of collisions and in the graph.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_export.configs import ReadableConfig
from model_export.quantizers.base import QuantizerReport, ResidualQuantizer, encode_all, measure
from service.core.sid import SidSpec

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py

Floats = NDArray[np.float32]
Train = Callable[..., tuple[ResidualQuantizer, QuantizerReport]]


class Readable(ResidualQuantizer):
    """A first code that is given, and a quantizer for what it leaves."""

    def __init__(self, *, spec: SidSpec, means: Tensor, inner: ResidualQuantizer) -> None:
        """`means` [code, dim]: of the vectors with each first code."""
        super().__init__()
        self.spec = spec
        self.means: Tensor
        self.register_buffer("means", means)
        self.inner = inner
        latent_dim = inner.codebooks[0].shape[1]
        first = nn.Parameter(torch.zeros(spec.levels[0], latent_dim), requires_grad=False)
        self.codebooks = nn.ParameterList([first, *inner.codebooks])

    def latents(self, vectors: Tensor) -> Tensor:
        """Vectors with their first codes [item, dim + 1] -> the inner quantizer's latents [item, latent]."""
        return self.inner.latents(self._rest(vectors))

    def encode(self, vectors: Tensor) -> Tensor:
        """Vectors with their first codes [item, dim + 1] -> codes [item, level] int64."""
        below = self.inner.encode(self._rest(vectors))  # [item, level - 1]
        return torch.cat([first_codes(vectors)[:, None], below], dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [item, level] -> the vectors [item, dim] that they represent, without the first code."""
        return self.means[codes[:, 0]] + self.inner.decode(codes[:, 1:])

    def _rest(self, vectors: Tensor) -> Tensor:
        return vectors[:, :-1] - self.means[first_codes(vectors)]


def first_codes(vectors: Tensor) -> Tensor:
    """The first codes [item] of vectors that end in them [item, dim + 1]."""
    return vectors[:, -1].round().to(torch.int64)


def with_first_codes(vectors: Floats, numbers: NDArray[np.int64]) -> Floats:
    """Vectors [item, dim] and the first code of each item [item] -> [item, dim + 1]."""
    return np.concatenate([vectors, numbers[:, None].astype(np.float32)], axis=1)


@torch.no_grad()
def train_readable(
    vectors: Floats,
    spec: SidSpec,
    config: ReadableConfig,
    *,
    seed: int,
    train: Train,
    collaborative: Floats | None = None,
    progress: bool = True,
) -> tuple[Readable, QuantizerReport]:
    """Fit the inner quantizer to what the first codes leave of vectors [item, dim + 1], which end in them.

    `train` is that of the inner quantizer, and raises its errors. Raises ValueError with less than two
    levels.
    """
    if spec.num_levels < 2:
        raise ValueError(f"sid.levels = {spec.levels}: no level is left below the first. Give two or more.")
    data = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))  # [item, dim + 1]
    first = first_codes(data)  # [item]
    count = torch.bincount(first, minlength=spec.levels[0])  # [code]
    total = torch.zeros(spec.levels[0], data.shape[1] - 1).index_add(0, first, data[:, :-1])  # [code, dim]
    # A code that nobody has is as the mean item.
    means = torch.where(count[:, None] > 0, total / count[:, None].clamp(min=1), data[:, :-1].mean(dim=0))
    below = SidSpec(levels=spec.levels[1:])
    with torch.enable_grad():
        inner, _ = train(
            (data[:, :-1] - means[first]).numpy(), below, config.quantizer,
            seed=seed, collaborative=collaborative, progress=progress,
        )  # fmt: skip
    model = Readable(spec=spec, means=means, inner=inner).eval()
    codes = encode_all(model, data)
    loss = float((model.decode(codes) - data[:, :-1]).square().mean())
    return model, QuantizerReport((measure(1, loss, codes, spec),))
