"""RQ-k-means: k-means on the vectors, then k-means on the residuals, and so on, one level after another.

The latents are the vectors themselves, which are unit vectors from the head. RQ-VAE must standardize each
dimension. Here this would change the weight of directions that the head has learned from purchases.

In the balanced form every code of a level gets the same number of items. The prices that balance the codes
(balanced.py) are part of `encode`, so new items are encoded by the same rule as the catalog.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from model_export.configs import RqKMeansConfig
from model_export.quantizers.balanced import balanced_kmeans
from model_export.quantizers.base import (
    QuantizerReport,
    ResidualQuantizer,
    encode_all,
    kmeans_centroids,
    measure,
    nearest,
)
from service.core.progress import ProgressBar
from service.core.sid import SidSpec

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
ROUNDING = (
    1e-5  # of the length of a latent: residuals that differ by less differ by the rounding of arithmetic
)
FEW = 8  # items for each code: with fewer, many items may be alone in a code, or two by two


class RqKMeans(ResidualQuantizer):
    """Codebooks and prices. A code's price is added to its squared distance."""

    def __init__(self, *, vector_dim: int, spec: SidSpec) -> None:
        super().__init__()
        self.spec = spec
        self.codebooks = nn.ParameterList(nn.Parameter(torch.zeros(k, vector_dim)) for k in spec.levels)
        self.prices = nn.ParameterList(nn.Parameter(torch.zeros(k)) for k in spec.levels)  # level l: [code]

    def latents(self, vectors: Tensor) -> Tensor:
        """The vectors [item, dim] themselves."""
        return vectors

    def encode(self, vectors: Tensor) -> Tensor:
        """Vectors [item, dim] -> codes [item, level] int64."""
        residual, codes = self.latents(vectors), []
        for codebook, price in zip(self.codebooks, self.prices, strict=True):
            code = nearest(residual, codebook, price)  # [item]
            residual = residual - codebook[code]
            codes.append(code)
        return torch.stack(codes, dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [item, level] -> the sum of their codewords [item, dim]."""
        return self.total(codes)


@torch.no_grad()
def train_rq_kmeans(
    vectors: NDArray[np.float32],
    spec: SidSpec,
    config: RqKMeansConfig,
    *,
    seed: int,
    collaborative: NDArray[np.float32] | None = None,  # noqa: ARG001 - all quantizers have this signature
    progress: bool = True,
    make: Callable[..., RqKMeans] = RqKMeans,
) -> tuple[RqKMeans, QuantizerReport]:
    """Fit codebooks to vectors [item, dim], level by level. `make` makes the model without its codebooks.

    On one machine the result depends only on the inputs and the seed. Raises ValueError without any vectors.
    """
    if len(vectors) == 0:
        raise ValueError("there are no vectors to fit RQ-k-means to. Give at least one item.")
    data = torch.as_tensor(vectors, dtype=torch.float32)  # [item, dim]
    model = make(vector_dim=data.shape[1], spec=spec).eval().requires_grad_(False)
    residual = model.latents(data)  # [item, latent]
    rounding = ROUNDING * float(residual.square().sum(dim=1).mean().sqrt())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for level in ProgressBar(
            range(spec.num_levels), desc="fit RQ-k-means", unit="level", disable=not progress
        ):
            _fit_level(model, level, _distinct(residual, spec.levels[level], rounding), config, seed)
            codebook = model.codebooks[level]
            residual = residual - codebook[nearest(residual, codebook, model.prices[level])]
    stats = measure(1, float(residual.square().mean()), encode_all(model, data), spec)
    return model, QuantizerReport((stats,))


def is_few(num_items: int, num_codes: int) -> bool:
    """Whether items may be alone in a code of a level, so that residuals that are alike count once."""
    return num_items < FEW * num_codes


def _fit_level(model: RqKMeans, level: int, residual: Tensor, config: RqKMeansConfig, seed: int) -> None:
    num_codes = model.spec.levels[level]
    centroids = kmeans_centroids(residual, num_codes, seed=seed, num_starts=config.num_starts)
    # If there are no more different items than codes, each has its own code, and there is nothing to balance.
    if config.balanced and len(torch.unique(residual, dim=0)) > num_codes:
        found = balanced_kmeans(
            residual.numpy(), centroids.numpy(), max_rounds=config.balanced_rounds, seed=seed
        )
        centroids = torch.from_numpy(found.centroids)
        model.prices[level].copy_(torch.from_numpy(found.price))
    model.codebooks[level].copy_(centroids)


def _distinct(residual: Tensor, num_codes: int, rounding: float) -> Tensor:
    """The residuals [item, latent] of a catalog with few items for each code, one for those that are alike.

    In such a catalog many items are alone in their code, so nothing is left of them but rounding. Codewords
    between these would be other codes in another program. What is left of two items in one code differs
    in its sign alone, which makes more residuals alike. Other catalogs are returned as they are.
    """
    if not is_few(len(residual), num_codes):
        return residual
    distance = torch.cdist(residual, residual, compute_mode="donot_use_mm_for_euclid_dist")  # [item, item]
    num_groups, group = connected_components(csr_matrix((distance < rounding).numpy()), directed=False)
    if num_groups == len(residual):
        return residual
    first = np.unique(group, return_index=True)[1]  # [group]
    found = residual[np.sort(first)]
    is_rounding = found.square().sum(dim=1).sqrt() < rounding
    return torch.where(is_rounding[:, None], 0.0, found)
